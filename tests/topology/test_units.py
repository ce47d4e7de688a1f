"""Blocks of connections, whole or not: there and back."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from truesparse import Topology
from truesparse.topology.units import block_of_each, blocks_of, connections_of


@st.composite
def masks(draw):
    """(mask of blocks, block): of no rows, no columns, nothing, everything, too."""
    rows, columns, height, width = (draw(st.integers(0, 4)), draw(st.integers(0, 5)), draw(st.integers(1, 4)), draw(st.integers(1, 3)))
    bits = draw(st.lists(st.booleans(), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(bits, dtype=torch.bool).view(rows, columns), (height, width)


def grown(mask, block):
    return mask.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)


@given(masks())
def test_whole_blocks(case):
    mask, block = case
    grid, whole = Topology.from_mask(mask), Topology.from_mask(grown(mask, block))
    assert connections_of(grid, block).equal(whole)
    assert blocks_of(whole, block).equal(grid)
    number = torch.full(mask.shape, -1)
    number[mask] = torch.arange(int(mask.sum()))
    assert torch.equal(block_of_each(whole, grid, block), grown(number, block)[whole.mask()].to(torch.int32))


@given(masks(), st.integers(0, 2**32 - 1))
def test_blocks_that_are_not_whole(case, seed):
    mask, block = case
    full = grown(mask, block)
    some = full & (torch.rand(full.shape, generator=torch.Generator().manual_seed(seed)) < 0.6)
    pooled = some.view(mask.shape[0], block[0], mask.shape[1], block[1]).any(3).any(1) if full.numel() else mask
    topology, grid = Topology.from_mask(some), Topology.from_mask(pooled)
    assert blocks_of(topology, block).equal(grid)
    assert torch.equal(grid.keys[block_of_each(topology, grid, block).long()], _keys(topology, block))


def _keys(topology, block):
    return topology.rows.long() // block[0] * (topology.shape[1] // block[1]) + topology.indices // block[1]


@pytest.mark.parametrize("mask", [[[1, 1, 0, 0], [0, 0, 1, 1]], [[1, 0, 1, 0], [1, 0, 1, 0]], [[1, 1, 1, 0], [1, 0, 0, 0]]], ids=str)
def test_as_many_as_whole_blocks_have_and_none_is_whole(mask):
    topology = Topology.from_mask(torch.tensor(mask).bool())
    assert blocks_of(topology, (2, 2)).equal(Topology.from_mask(torch.ones(1, 2)))
    assert blocks_of(topology, (2, 2)).nnz * 4 != topology.nnz


def test_more_connections_than_a_topology_holds():
    grid = Topology.from_mask(torch.ones(2, 2))
    with pytest.raises(ValueError, match="a topology holds at most 2147483647 connections, got 40000000000"):
        connections_of(grid, (100_000, 100_000))
