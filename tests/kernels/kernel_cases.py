"""Topologies and a comparison for the tests of the kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from truesparse.ops import values_dtype
from truesparse.ops.cpu import MatrixKernels
from truesparse.topology import Topology
from truesparse.topology.geometry import Matrix


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


def check_matrix(topology: Topology, batch: int, dtype: torch.dtype) -> None:
    """All verbs of a matrix against float64 dense algebra."""
    rows, columns = topology.shape
    generator = torch.Generator().manual_seed(batch)
    x, dy = (torch.randn(batch, features, generator=generator, dtype=dtype) for features in (columns, rows))
    values, bias = (torch.randn(count, generator=generator, dtype=values_dtype(dtype)) for count in (topology.nnz, rows))
    kernels = MatrixKernels(topology, Matrix(rows, columns))
    dense = topology.scatter(values.double())
    y = x.double() @ dense.T
    fan_in, fan_out = int(topology.fan_in.max()), int(topology.fan_out.max())

    assert_close(kernels.spmm(values, x), y, fan_in)
    assert_close(kernels.spmm(values, x, bias), y + bias, fan_in)
    dx, dvalues = dy.double() @ dense, (dy.double().T @ x.double()).flatten()[topology.keys]
    assert_close(kernels.spmm_t(values, dy, x.shape), dx, fan_out)
    assert_close(kernels.sddmm(dy, x), dvalues, batch)
    assert_close(kernels.gradient_rows(dy, x, 0, rows).flatten()[topology.keys], dvalues, batch)
    for need in ((True, True, True), (True, False, True), (False, True, True), (False, False, True), (False, False, False)):
        for wanted, actual, expected, terms in zip(
            need, kernels.backward(values, x, dy, need), (dvalues, dx, dy.double().sum(0)), (batch, fan_out, batch), strict=True
        ):
            if wanted:
                assert_close(actual, expected, terms)
            else:
                assert actual is None
