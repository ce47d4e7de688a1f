"""Move against dictionaries from connection to value."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import connections, made

from truesparse import Move


@st.composite
def two_topologies(draw):
    """(shape, connections before, connections after)."""
    shape, old = draw(connections())
    return shape, old, draw(connections(shape))[1]


@given(two_topologies(), st.sampled_from([0.0, 2.5]))
def test_between_keeps_what_is_in_both(example, fill):
    shape, old, new = example
    move = Move.between(made(shape, old), made(shape, new))
    array = torch.arange(1.0, len(old) + 1)
    before = dict(zip(sorted(old), array.tolist(), strict=True))
    assert move(array, fill).tolist() == [before.get(pair, fill) for pair in sorted(new)]
    assert move.grown.tolist() == [pair not in old for pair in sorted(new)]
    assert array.tolist() == list(before.values())


@given(two_topologies(), st.data())
def test_through_keeps_only_survivors(example, data):
    shape, old, new = example
    survivors = data.draw(st.sets(st.sampled_from(sorted(old)))) if old else set()
    grown = [pair for pair in sorted(new) if pair not in survivors or pair not in old]
    initial = torch.arange(len(grown)) * 0.5 - 100
    move = Move.through(made(shape, old), made(shape, survivors), made(shape, new), initial)
    array = torch.arange(1.0, len(old) + 1)
    before = {pair: value for pair, value in zip(sorted(old), array.tolist(), strict=True) if pair in survivors}
    assert move(array).tolist() == [before.get(pair, 0.0) for pair in sorted(new)]
    first = dict(zip(grown, initial.tolist(), strict=True))
    assert move.values(array).tolist() == [before.get(pair, first.get(pair)) for pair in sorted(new)]
    assert move(array, 9.0).tolist() == [before.get(pair, 9.0) for pair in sorted(new)], "grown_values are for values only"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_dtype_is_kept(dtype):
    move = Move.through(made((1, 4), {(0, 0)}), made((1, 4), set()), made((1, 4), {(0, 0), (0, 2)}), torch.tensor([1.0, 2.0]))
    moved = move.values(torch.tensor([5]).to(dtype))
    assert moved.dtype == dtype
    assert moved.tolist() == [1, 2]


def test_errors():
    one, other = made((2, 3), {(0, 0)}), made((3, 2), {(0, 0)})
    with pytest.raises(ValueError, match=r"a move stays within one shape, got \(2, 3\), \(2, 3\) and \(3, 2\)"):
        Move.between(one, other)
    with pytest.raises(ValueError, match=r"expected an array of shape \(1,\), one entry per connection, got \(2,\)"):
        Move.between(one, one)(torch.zeros(2))
    with pytest.raises(ValueError, match=r"expected an array of shape \(1,\)"):
        Move.between(one, one)(torch.zeros(1, 1))


def test_positions_beyond_two_to_the_31():
    shape = (70_000, 70_000)
    move = Move.between(made(shape, {(0, 1), (69_999, 69_998)}), made(shape, {(50_000, 3), (69_999, 69_998)}))
    assert move(torch.tensor([1.0, 2.0])).tolist() == [0.0, 2.0]
