"""Topologies and a comparison for the tests of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from truesparse.ops import values_dtype
from truesparse.topology import Topology


def random_topology(rows: int, columns: int, density: float, seed: int = 0) -> Topology:
    """Unstructured, with the first row and the last column empty where there are others."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < density
    if 0 < density < 1:
        mask[:1] = False
        mask[:, -1:] = False
    return Topology.from_mask(mask)


def rows_together(rows: int, columns: int, alike: int, density: float, seed: int = 0) -> Topology:
    """Each `alike` rows, from the first on, have the same columns."""
    return Topology.from_mask(random_topology(-(-rows // alike), columns, density, seed).mask().repeat_interleave(alike, 0)[:rows])


def assert_close(actual: Tensor | None, expected: Tensor, terms: int) -> None:
    """Within rounding of a sum of `terms` products of numbers near 1, of an expectation in float64.

    What is narrower than its sum is rounded once more: by half a unit in its last place, not more.
    """
    assert actual is not None
    assert actual.shape == expected.shape
    unit = torch.finfo(values_dtype(actual.dtype)).eps
    narrowed = torch.finfo(actual.dtype).eps / 2 if actual.dtype != values_dtype(actual.dtype) else 0.0
    torch.testing.assert_close(actual.to(torch.float64), expected, rtol=8 * unit + narrowed, atol=4 * unit * max(terms, 16))
