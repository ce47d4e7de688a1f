"""How many neighbouring rows share their columns: beside a look at every group of rows of a dense mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from truesparse.topology import Topology
from truesparse.topology.shared import shared_rows


def by_hand(mask: Tensor) -> int:
    """Every group of rows is looked at."""
    rows = mask.shape[0]
    if not bool(mask.any()):
        return 1
    for size in (64, 32, 16, 8, 4, 2):
        groups = [mask[start : start + size] for start in range(0, rows, size)]
        if rows % size == 0 and all(bool((group == group[0]).all()) for group in groups):
            return size
    return 1


@given(
    repeats=st.lists(st.sampled_from([1, 2, 3, 4, 6, 8, 16, 64]), max_size=5),
    columns=st.integers(1, 5),
    density=st.sampled_from([0.0, 0.2, 0.6, 1.0]),
    seed=st.integers(0, 999),
)
def test_it_is_the_largest_group_of_equal_rows(repeats: list[int], columns: int, density: float, seed: int) -> None:
    of_group = torch.rand(len(repeats), columns, generator=torch.Generator().manual_seed(seed)) < density
    mask = of_group.repeat_interleave(torch.tensor(repeats, dtype=torch.int64), 0)
    assert shared_rows(Topology.from_mask(mask)) == by_hand(mask)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (["1100"] * 4, 4),
        (["1100", "1100", "0110", "0110"], 2),
        (["1100", "0011", "1100", "0011"], 1),  # equal rows, but not neighbours
        (["1100", "0110", "0110", "1100"], 1),  # not aligned
        (["1101", "1011"] * 2, 1),  # the first and last columns are alike, and the counts
        (["1100"] * 6, 2),
        (["1100"] * 128, 64),
        (["0000"] * 2 + ["0110"] * 2, 2),  # neurons that were ablated
        (["0110"] * 2 + ["0000"] * 2, 2),
        (["0000"] * 4, 1),
        (["1111"], 1),
        ([], 1),
    ],
)
def test_by_hand(rows: list[str], expected: int) -> None:
    mask = torch.tensor([[place == "1" for place in row] for row in rows], dtype=torch.bool).view(len(rows), 4)
    assert shared_rows(Topology.from_mask(mask)) == expected == by_hand(mask)


def test_it_is_found_once() -> None:
    topology = Topology.from_mask(torch.ones(4, 3, dtype=torch.bool))
    assert shared_rows(topology) == 4
    assert list(topology._derived.values()) == [4]
