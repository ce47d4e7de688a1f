"""The kernels that change a topology against the same said in torch, and both against plain Python."""

from unittest.mock import patch

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import connections, keys_of, made, pairs_of

from truesparse import Move, Topology, Unstructured
from truesparse.ops.plans import transpose
from truesparse.topology import merge
from truesparse.topology.select import lowest, lowest_of_each, random_absent

NAN, INF = float("nan"), float("inf")
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True, params=[1, 2, 3])
def _threads(request, monkeypatch):
    """Small examples are shared out among threads too, more threads than there are rows at times."""
    monkeypatch.setattr(merge, "WORK_OF_A_THREAD", 1)
    torch.set_num_threads(request.param)


def in_torch(function, *arguments):
    """What `function` gives on a device that has no kernels."""
    with patch.object(merge, "here", lambda *arrays: False):
        return function(*arguments)


def same(actual, expected):
    """Equal tensors of one dtype, NaN included; or tuples of them; or None twice."""
    if isinstance(expected, Topology):
        actual, expected = (actual.indptr, actual.indices), (expected.indptr, expected.indices)
    if not isinstance(expected, tuple):
        actual, expected = (actual,), (expected,)
    for one, other in zip(actual, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@given(connections())
def test_rows_and_keys(example):
    (rows, columns), pairs = example
    topology = made((rows, columns), pairs)
    assert topology.rows.tolist() == [row for row, _ in sorted(pairs)]
    same(topology.rows, in_torch(lambda: topology.rows))
    same(topology.keys, in_torch(lambda: topology.keys))
    same(topology, in_torch(Topology.from_keys, topology.shape, keys_of((rows, columns), pairs)))


@given(connections(), st.data())
def test_keeping_and_dropping(example, data):
    topology = made(*example)
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=topology.nnz, max_size=topology.nnz)), dtype=torch.bool)
    same(topology.keep(kept), in_torch(topology.keep, kept))
    assert pairs_of(topology.keep(kept)) == {pair for pair, stays in zip(sorted(example[1]), kept.tolist(), strict=True) if stays}
    assert topology.keep(torch.zeros_like(kept)).nnz == 0
    same(topology.keep(torch.ones_like(kept)), topology)
    mixed = torch.tensor(data.draw(st.permutations((~kept).nonzero().squeeze(1).tolist())), dtype=torch.int64)
    same(topology.drop(torch.cat([mixed, mixed[:1]])), topology.keep(kept))  # in any order, even twice


@given(connections(), st.data())
def test_growing(example, data):
    shape, pairs = example
    _, more = data.draw(connections(shape))
    keys = torch.tensor(data.draw(st.permutations(keys_of(shape, more - pairs).tolist())), dtype=torch.int64)
    topology = made(shape, pairs)
    grown = topology.grow(keys)
    assert pairs_of(grown) == pairs | more
    same(grown, in_torch(topology.grow, keys))
    if more & pairs:
        for run in (topology.grow, lambda keys: in_torch(topology.grow, keys)):
            with pytest.raises(ValueError, match="a connection can grow only where there is none"):
                run(keys_of(shape, more))
    if keys.numel():
        for run in (topology.grow, lambda keys: in_torch(topology.grow, keys)):
            with pytest.raises(ValueError, match="each connection may be given once"):
                run(torch.cat([keys, keys[:1]]))


@given(connections(), st.data())
def test_collecting(example, data):
    shape, pairs = example
    often = data.draw(st.lists(st.sampled_from(sorted(pairs)))) if pairs else []
    mixed = data.draw(st.permutations([*sorted(pairs), *often]))
    rows, columns = torch.tensor(mixed, dtype=torch.int32).view(-1, 2).unbind(1)
    collected = Topology._collected(shape, rows, columns)
    same(collected, made(shape, pairs))
    same(collected, in_torch(Topology._collected, shape, rows, columns))


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.5, 1.0, 3.0, 1e6]), min_size=1, max_size=40), st.lists(st.floats(0, 1), max_size=40))
def test_places_in_a_running_sum_are_those_of_a_search(weights, shares):
    sums = torch.tensor([*weights, 1.0], dtype=torch.float64).cumsum(0)
    wanted = torch.cat([torch.tensor(shares, dtype=torch.float64) * sums[-1], sums])
    assert torch.equal(merge.placed(sums, wanted), torch.searchsorted(sums, wanted, right=True).clamp_(max=sums.numel() - 1))


@given(connections(), st.data(), st.booleans())
def test_following(example, data, wide):
    shape, old = example
    new, survivors = data.draw(connections(shape))[1], data.draw(connections(shape))[1]
    if wide:  # more columns than connections, which another loop handles
        shape = shape[0], 1000
    old, survivors, new = made(shape, old), made(shape, survivors), made(shape, new)
    same(Move.between(old, new).source, in_torch(lambda: Move.between(old, new).source))
    same(Move.through(old, survivors, new).source, in_torch(lambda: Move.through(old, survivors, new).source))
    places = {key: at for at, key in enumerate(old.keys.tolist())}
    stays = set(survivors.keys.tolist())
    assert Move.between(old, new).source.tolist() == [places.get(key, -1) for key in new.keys.tolist()]
    assert Move.through(old, survivors, new).source.tolist() == [places.get(key, -1) if key in stays else -1 for key in new.keys.tolist()]


@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8, torch.bool, torch.int16, torch.int64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("fill", [0, 1])
def test_moving(dtype, fill):
    array = torch.randint(0, 2, (50,)).to(dtype)
    source = torch.randint(-1, 50, (70,))
    same(merge.moved(array, source, fill), in_torch(merge.moved, array, source, fill))
    strided = array.repeat_interleave(2)[::2]
    same(merge.moved(strided, source, fill), merge.moved(array, source, fill))
    same(merge.moved(array[:0], torch.full((3,), -1), fill), torch.full((3,), fill).to(dtype))
    same(merge.moved(array, source[:0], fill), array[:0])


def test_moving_keeps_what_is_not_a_number():
    array = torch.tensor([NAN, INF, -0.0])
    moved = merge.moved(array, torch.tensor([2, -1, 0, 1]), -INF)
    assert moved.tolist()[1::2] == [-INF, INF]
    assert moved[2].isnan()
    assert str(float(moved[0])) == "-0.0"


def test_moving_is_differentiable():
    array = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda array: merge.moved(array, torch.tensor([3, -1, 0, 0]), 2.0), (array,))


@given(
    st.lists(st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, NAN, INF, -INF, 3.4e38, 1e-40]), st.floats(width=16))),
    st.data(),
    st.sampled_from(DTYPES),
)
def test_lowest(scores, data, dtype):
    count = data.draw(st.integers(0, len(scores)))
    scores = torch.tensor(scores, dtype=dtype)
    found = lowest(scores, count)
    same(found, in_torch(lowest, scores, count))
    most = torch.finfo(dtype).max  # what is not a number counts as the largest
    ordered = sorted(range(len(scores)), key=lambda index: (most if scores[index].isnan() else float(scores[index]), index))
    assert found.tolist() == sorted(ordered[:count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("levels", [1, 3, 1000, 10**9])
def test_lowest_of_many(dtype, levels):
    scores = (torch.randn(200_001, dtype=dtype) * levels).round() / levels
    for count in (0, 1, 70_000, 200_000, 200_001):
        expected = scores.sort(stable=True).indices[:count].sort().values
        same(lowest(scores, count), expected)


@given(
    *(st.sets(st.integers(0, 30)).map(sorted) for _ in range(2)),
    st.lists(st.integers(0, 30)).map(sorted),
)
def test_accepting(present, taken, drawn):
    taken = sorted(set(taken) - set(present))
    merged, refused = merge.accepted(*(torch.tensor(keys, dtype=torch.int64) for keys in (present, taken, drawn)))
    fresh = set(drawn) - set(present) - set(taken)
    left = list(drawn)
    for key in fresh:
        left.remove(key)
    assert merged.tolist() == sorted(fresh | set(taken))
    assert refused.tolist() == left


def test_what_is_drawn_is_what_a_seed_has_always_drawn():
    present, counts = torch.arange(0, 4000, 7), torch.tensor([120, 0, 90, 200])
    found = random_absent(present, 1000, counts, torch.Generator().manual_seed(3))
    generator, wanted, drawn = torch.Generator().manual_seed(3), torch.arange(4).repeat_interleave(counts).tolist(), set()
    occupied = set(present.tolist())
    while wanted:
        offsets = torch.randint(1000, (len(wanted),), generator=generator).tolist()
        refused = []
        for group, offset in zip(wanted, offsets, strict=True):
            key = group * 1000 + offset
            if key in occupied or key in drawn:
                refused.append(group)
            drawn.add(key)
        drawn -= occupied
        wanted = refused
    assert found.tolist() == sorted(drawn)


@given(connections())
def test_transposing(example):
    (rows, columns), pairs = example
    topology = made((rows, columns), pairs)
    indptr, indices, permutation = transpose(topology)
    ordered = sorted((column, row, place) for place, (row, column) in enumerate(sorted(pairs)))
    assert indices.tolist() == [row for _, row, _ in ordered]
    assert permutation.tolist() == [place for *_, place in ordered]
    assert indptr.tolist() == [sum(column < c for column, *_ in ordered) for c in range(columns + 1)]


def test_transposing_many():
    topology = Unstructured().random((700, 1300), 600_000, torch.Generator().manual_seed(0))  # several runs of columns
    indptr, indices, permutation = transpose(topology)
    order = topology.indices.sort(stable=True).indices
    assert torch.equal(permutation.long(), order)
    assert torch.equal(indices, topology.rows[order])
    assert torch.equal(indptr.diff(), topology.fan_out.int())


@given(st.lists(st.booleans()))
def test_places_are_found_without_asking_how_many(drawn):
    chosen = torch.tensor(drawn, dtype=torch.bool)
    expected = torch.tensor([place for place, one in enumerate(drawn) if one], dtype=torch.int64)
    for count in (None, sum(drawn)):
        same(merge.places(chosen, count), expected)
        same(in_torch(merge.places, chosen, count), expected)


@given(st.lists(st.integers(0, 6)), st.integers(7, 9))
def test_numbers_are_counted_without_asking_for_the_largest(drawn, bins):
    expected = torch.tensor([drawn.count(number) for number in range(bins)])
    for dtype in (torch.int32, torch.int64):
        same(merge.counted(torch.tensor(drawn, dtype=dtype), bins), expected)
        same(in_torch(merge.counted, torch.tensor(drawn, dtype=dtype), bins), expected)


@given(st.lists(st.tuples(st.sampled_from([0.0, 1.0, 2.0, NAN, INF, -INF]), st.integers(0, 3))), st.data())
def test_the_lowest_of_each_group(drawn, data):
    scores, groups = torch.tensor([score for score, _ in drawn]), torch.tensor([group for _, group in drawn], dtype=torch.int64)
    counts = torch.tensor([data.draw(st.integers(0, int((groups == group).sum()))) for group in range(4)])

    def rank(place):  # NaN comes after every number, and before infinity
        score = float(scores[place])
        return (torch.finfo(torch.float32).max if score != score else score), place

    expected = [
        place for group in range(4) for place in sorted((groups == group).nonzero().flatten().tolist(), key=rank)[: int(counts[group])]
    ]
    for found in (lowest_of_each(scores, groups, counts), in_torch(lowest_of_each, scores, groups, counts, len(expected))):
        same(found, torch.tensor(sorted(expected), dtype=torch.int64))
