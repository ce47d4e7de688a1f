"""Topology against sets of (row, column)."""

import copy
import dataclasses
import io
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import Watched, connections, keys_of, made, pairs_of

from truesparse import Topology


def int32(*entries):
    return torch.tensor(entries, dtype=torch.int32)


@given(connections(), st.randoms(use_true_random=False))
def test_from_keys_takes_any_order(example, random):
    shape, pairs = example
    keys = keys_of(shape, pairs).tolist()
    random.shuffle(keys)
    topology = Topology.from_keys(shape, torch.tensor(keys, dtype=torch.int64))
    assert pairs_of(topology) == pairs
    assert topology.indptr.dtype == topology.indices.dtype == torch.int32
    Topology(topology.shape, topology.indptr, topology.indices)


def test_the_positions_given_stay_as_they_are():
    empty = Topology.from_keys((3, 4), torch.empty(0, dtype=torch.int64))
    for dtype in (torch.int64, torch.int32):
        keys = torch.tensor([7, 2, 11, 0], dtype=dtype)
        before = keys.clone()
        assert Topology.from_keys((3, 4), keys).keys.tolist() == empty.grow(keys).keys.tolist() == [0, 2, 7, 11]
        assert torch.equal(keys, before)
        dropped = torch.tensor([3, 0])
        Topology.from_keys((3, 4), keys).drop(dropped)
        assert dropped.tolist() == [3, 0]


@given(connections())
def test_what_a_topology_says_of_itself(example):
    (rows, columns), pairs = example
    topology = made((rows, columns), pairs)
    ordered = sorted(pairs)
    assert (topology.nnz, topology.size) == (len(pairs), rows * columns)
    assert topology.sparsity == pytest.approx(1 - len(pairs) / (rows * columns) if rows * columns else 0)
    assert topology.rows.tolist() == [row for row, _ in ordered]
    assert topology.indices.tolist() == [column for _, column in ordered]
    assert topology.keys.tolist() == [row * columns + column for row, column in ordered]
    assert topology.fan_in.tolist() == [sum(row == r for row, _ in pairs) for r in range(rows)]
    assert topology.fan_out.tolist() == [sum(column == c for _, column in pairs) for c in range(columns)]
    assert topology.rows.dtype == torch.int32
    assert topology.keys.dtype == torch.int64


@given(connections())
def test_mask_and_scatter(example):
    (rows, columns), pairs = example
    topology = made((rows, columns), pairs)
    mask = topology.mask()
    assert mask.shape == (rows, columns)
    assert {tuple(pair) for pair in mask.nonzero().tolist()} == pairs
    assert pairs_of(Topology.from_mask(mask)) == pairs
    values = torch.randn(topology.nnz, dtype=torch.float64, requires_grad=True)
    dense = topology.scatter(values)
    for value, (row, column) in zip(values.tolist(), sorted(pairs), strict=True):
        assert dense[row, column] == value
    assert int((dense != 0).sum()) == len(pairs)
    weights = torch.randn(rows, columns, dtype=torch.float64)
    (dense * weights).sum().backward()
    assert torch.equal(values.grad, weights[mask])


@given(connections(), st.data())
def test_keep_drop_and_grow(example, data):
    shape, pairs = example
    topology, ordered = made(shape, pairs), sorted(pairs)
    before = topology.indptr.clone(), topology.indices.clone()
    gone = data.draw(st.sets(st.sampled_from(range(len(ordered)))) if ordered else st.just(set()))
    left = {pair for index, pair in enumerate(ordered) if index not in gone}
    kept = torch.tensor([index not in gone for index in range(len(ordered))], dtype=torch.bool)
    assert pairs_of(topology.keep(kept)) == left
    assert pairs_of(topology.drop(torch.tensor(sorted(gone), dtype=torch.int64))) == left

    empty = sorted({(row, column) for row in range(shape[0]) for column in range(shape[1])} - left)
    new = data.draw(st.lists(st.sampled_from(empty), unique=True) if empty else st.just([]))
    grown = topology.keep(kept).grow(torch.tensor([row * shape[1] + column for row, column in new], dtype=torch.int64))
    assert pairs_of(grown) == left | set(new)
    assert torch.equal(topology.indptr, before[0])
    assert torch.equal(topology.indices, before[1])


@given(connections())
def test_contains(example):
    shape, pairs = example
    everything = torch.arange(shape[0] * shape[1]).view(shape)
    found = made(shape, pairs).contains(everything)
    assert found.shape == everything.shape
    assert {tuple(pair) for pair in found.nonzero().tolist()} == pairs


@given(connections(), st.data())
def test_equal(example, data):
    shape, pairs = example
    _, others = data.draw(connections(shape))
    assert made(shape, pairs).equal(made(shape, others)) == (pairs == others)
    assert not made(shape, pairs).equal(Topology.from_keys((shape[0] + 1, shape[1]), torch.empty(0)))


def test_a_mask_of_more_dimensions_is_a_matrix_with_its_trailing_ones_flattened():
    mask = torch.rand(4, 3, 2, 2) < 0.5
    assert Topology.from_mask(mask).shape == (4, 12)
    assert torch.equal(Topology.from_mask(mask).mask(), mask.flatten(1))
    assert pairs_of(Topology.from_mask(mask.float())) == pairs_of(Topology.from_mask(mask))
    with pytest.raises(ValueError, match=r"mask of two or more dimensions, got shape \(4,\)"):
        Topology.from_mask(torch.ones(4))


@pytest.mark.parametrize(
    ("shape", "indptr", "indices", "error", "says"),
    [
        ((2, 3), int32(0, 1, 2).long(), int32(0, 0), TypeError, r"indptr must be int32, got torch\.int64; convert with"),
        ((2, 3), int32(0, 1, 2), int32(0, 0).float(), TypeError, r"indices must be int32, got torch\.float32"),
        ((2, 3), int32(0, 1, 2)[None], int32(0, 0), ValueError, r"indptr must be one contiguous dimension, got shape \(1, 3\)"),
        ((2, 3), int32(0, 1, 2), int32(0, 9, 0, 9)[::2], ValueError, "indices must be one contiguous dimension"),
        ((2, 3), int32(0, 2), int32(0, 1), ValueError, r"indptr must have rows \+ 1 = 3 entries, got 2"),
        ((2, 3), int32(0, 1, 3), int32(0, 1), ValueError, "rise from 0 to the number of connections, 2; got 0 to 3"),
        ((2, 3), int32(1, 1, 2), int32(0, 1), ValueError, "rise from 0 to the number of connections, 2; got 1 to 2"),
        ((3, 3), int32(0, 2, 1, 2), int32(0, 1), ValueError, "rise from 0 to the number of connections"),
        ((2, 3), int32(0, 1, 2), int32(0, 3), ValueError, r"columns lie in \[0, 3\), got 0 to 3"),
        ((2, 3), int32(0, 1, 2), int32(-1, 2), ValueError, r"columns lie in \[0, 3\), got -1 to 2"),
        ((2, 3), int32(0, 2, 2), int32(1, 0), ValueError, r"columns must ascend within each row.*Topology\.from_keys"),
        ((2, 3), int32(0, 2, 2), int32(1, 1), ValueError, "columns must ascend within each row, without repeats"),
        ((-1, 3), int32(0), int32(), ValueError, r"rows and columns lie in \[0, 2147483647\], got \(-1, 3\)"),
        ((2, 2**31), int32(0, 0, 0), int32(), ValueError, r"rows and columns lie in \[0, 2147483647\]"),
    ],
)
def test_arrays_that_are_no_topology(shape, indptr, indices, error, says):
    with pytest.raises(error, match=says):
        Topology(shape, indptr, indices)


def test_arrays_that_are_a_topology():
    topology = Topology((4, 3), int32(0, 0, 2, 2, 3), int32(0, 2, 0))
    assert pairs_of(topology) == {(1, 0), (1, 2), (3, 0)}
    assert Topology([4, 3], topology.indptr, topology.indices).equal(topology)
    assert Topology((0, 3), int32(0), int32()).nnz == 0
    assert Topology((3, 0), int32(0, 0, 0, 0), int32()).nnz == 0


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([3, 1, 3], "each connection may be given once, got position 3 twice; pass unique positions"),
        ([0, 6], r"positions in shape \(2, 3\) lie in \[0, 6\), got 0 to 6"),
        ([-1, 5], r"positions in shape \(2, 3\) lie in \[0, 6\), got -1 to 5"),
    ],
)
def test_keys_that_are_no_topology(keys, says):
    with pytest.raises(ValueError, match=says):
        Topology.from_keys((2, 3), torch.tensor(keys))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ([0], "a connection can grow only where there is none"),
        ([1, 0], "a connection can grow only where there is none"),
        ([1, 1], "got position 1 twice"),
        ([6], r"lie in \[0, 6\)"),
    ],
)
def test_what_cannot_grow(keys, says):
    topology = Topology.from_keys((2, 3), torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=says):
        topology.grow(torch.tensor(keys))


def test_a_topology_is_frozen():
    topology = made((2, 3), {(0, 1)})
    for name in ("shape", "indptr", "indices"):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(topology, name, None)
    assert "Topology(2 x 3, 1 connections, sparsity 0.8333)" in repr(topology)


def test_what_is_derived_is_computed_once_for_each_setting():
    calls = []

    def build(topology, *settings):
        calls.append((topology, settings))
        return object()

    topology, other = made((2, 3), {(0, 1)}), made((2, 3), {(0, 1)})
    assert topology.derived(build, 3) is topology.derived(build, 3)
    assert topology.derived(build, 4) is not topology.derived(build, 3)
    assert other.derived(build, 3) is not topology.derived(build, 3)
    assert [settings for _, settings in calls] == [(3,), (4,), (3,)]


@given(connections())
def test_copies(example):
    topology = made(*example)
    topology.derived(lambda _: "a plan")
    assert copy.deepcopy(topology) is topology
    for again in (pickle.loads(pickle.dumps(topology)), copy.copy(topology)):
        assert again.equal(topology)
        assert again is not topology
        assert not again._derived
    file = io.BytesIO()
    torch.save(topology, file)
    file.seek(0)
    assert torch.load(file, weights_only=False).equal(topology)


def test_to_another_device():
    topology = made((2, 3), {(0, 1)})
    assert topology.to("cpu") is topology
    moved = topology.to("meta")
    assert moved.device.type == "meta"
    assert (moved.shape, moved.nnz) == ((2, 3), 1)


def test_positions_beyond_two_to_the_31_cost_no_rows_times_columns():
    extent = 70_000
    pairs = {(0, 0), (3, 69_999), (35_000, 1), (69_999, 0), (69_999, 69_998), (69_999, 69_999)}
    with Watched() as watched:
        topology = made((extent, extent), pairs)
        grown = topology.drop(torch.tensor([0])).grow(torch.tensor([extent * extent - 3, 5]))
        found = grown.contains(torch.tensor([0, 5, extent * extent - 3, extent * extent - 4]))
        fan_in, fan_out = grown.fan_in, grown.fan_out
    assert watched.largest <= extent + 1
    assert topology.size > 2**32
    assert topology.keys.tolist()[-1] == extent * extent - 1
    assert found.tolist() == [False, True, True, False]
    assert pairs_of(grown) == (pairs - {(0, 0)}) | {(0, 5), (69_999, 69_997)}
    assert int(fan_in[-1]) == 4
    assert int(fan_out.sum()) == grown.nnz == 7


@pytest.mark.parametrize("keys", [torch.tensor([0.0, 1.0]), torch.tensor([True, False])])
def test_positions_are_whole_numbers(keys):
    with pytest.raises(TypeError, match=r"positions are whole numbers, got torch\.(float32|bool); a mask goes to"):
        Topology.from_keys((2, 2), keys)
