"""The lowest, the highest, drawn at random: against sorting in plain Python."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import Watched

from truesparse.topology.select import highest, highest_of_all, lowest, lowest_of_each, random_absent, shared_out, weighted

NAN, INF = float("nan"), float("inf")


def ranked(scores):
    """Indices from highest to lowest; ties to the earlier, NaN after every number, -inf last."""

    def rank(index):
        score = scores[index]
        return (1, 0.0, index) if score != score else (2 if score == -INF else 0, -score, index)

    return sorted(range(len(scores)), key=rank)


@st.composite
def grouped_scores(draw):
    """(scores as lists of equal length, how many to choose of each)."""
    size = draw(st.integers(0, 6))
    entry = st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5, NAN, INF, -INF])
    scores = draw(st.lists(st.lists(entry, min_size=size, max_size=size), max_size=5))
    return scores, [draw(st.integers(0, sum(score != -INF for score in group))) for group in scores], size


@given(grouped_scores(), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_highest(example, dtype):
    scores, counts, size = example
    chosen = highest(torch.tensor(scores, dtype=dtype).view(len(scores), size), torch.tensor(counts, dtype=torch.int64))
    assert chosen.shape == (len(scores), size)
    for group, count, found in zip(scores, counts, chosen, strict=True):
        assert found.nonzero().flatten().tolist() == sorted(ranked(group)[:count])


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, -1.0, NAN, INF])), st.data())
def test_lowest(scores, data):
    count = data.draw(st.integers(0, len(scores)))
    in_order = sorted(range(len(scores)), key=lambda index: (scores[index] != scores[index], scores[index], index))
    if not any(score == INF for score in scores):
        assert lowest(torch.tensor(scores), count).tolist() == sorted(in_order[:count])


def test_inputs_stay_as_they_are():
    scores = torch.tensor([[NAN, 1.0, -INF]])
    highest(scores, torch.tensor([1]))
    lowest(scores[0], 1)
    assert scores.isnan().tolist() == [[True, False, False]]


@st.composite
def groups(draw):
    """(present positions, size, counts): groups empty, full, and in between, with anything drawn from nothing to all."""
    number, size = draw(st.integers(0, 5)), draw(st.integers(0, 12))
    everywhere = list(range(number * size))
    present = sorted(draw(st.sets(st.sampled_from(everywhere)))) if everywhere else []
    free = [size - sum(position // size == group for position in present) if size else 0 for group in range(number)]
    return present, size, [draw(st.integers(0, most)) for most in free]


@given(groups(), st.integers(0, 3))
def test_random_absent(example, seed):
    present, size, counts = example
    drawn = [
        random_absent(
            torch.tensor(present, dtype=torch.int64), size, torch.tensor(counts, dtype=torch.int64), torch.Generator().manual_seed(seed)
        )
        for _ in range(2)
    ]
    assert torch.equal(*drawn)
    found = drawn[0].tolist()
    assert found == sorted(set(found) - set(present))
    assert [sum(position // size == group for position in found) if size else 0 for group in range(len(counts))] == counts


@pytest.mark.parametrize(("size", "present", "count"), [(40, [3, 4, 20], 2), (10, [1, 2, 5, 9], 3)], ids=["by rejection", "from a list"])
def test_random_absent_is_uniform(size, present, count):
    generator, draws = torch.Generator().manual_seed(0), 6000
    hits = torch.zeros(2 * size)
    occupied = torch.tensor(present + [size + position for position in present])
    for _ in range(draws):
        hits[random_absent(occupied, size, torch.tensor([count, 0]), generator)] += 1
    assert not hits[size:].any(), "nothing was asked of the second group"
    free = size - len(present)
    expected = draws * count / free
    absent = torch.ones(size, dtype=torch.bool)
    absent[present] = False
    chi_square = float(((hits[:size][absent] - expected) ** 2 / expected).sum())
    assert chi_square < free + 5 * (2 * free) ** 0.5, f"chi square {chi_square:.1f} with {free - 1} degrees of freedom"
    assert not hits[:size][~absent].any()


def test_random_absent_among_five_thousand_million_positions_lists_none_of_them():
    present = torch.arange(0, 70_000**2, 70_001)
    with Watched() as watched:
        found = random_absent(present, 70_000, torch.full((70_000,), 2), torch.Generator().manual_seed(0))
    assert watched.largest < 1_000_000
    assert found.numel() == found.unique().numel() == 140_000
    assert torch.equal(torch.bincount(found // 70_000), torch.full((70_000,), 2))
    assert not torch.isin(found, present).any()


def test_weighted_draws_in_proportion_and_never_what_weighs_nothing():
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, NAN, 6.0, 0.0])
    drawn = weighted(weights, 20_000, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=7) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.0, 0.1, 0.0, 0.3, 0.0, 0.6, 0.0]), atol=0.015, rtol=0)
    assert torch.equal(drawn, weighted(weights, 20_000, torch.Generator().manual_seed(0)))
    assert torch.equal(share == 0, weights.nan_to_num() == 0)


def test_weights_of_nothing_draw_all_alike():
    share = torch.bincount(weighted(torch.zeros(4), 8_000, torch.Generator().manual_seed(0)), minlength=4) / 8_000
    torch.testing.assert_close(share, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_a_draw_of_exactly_zero_finds_something_of_weight(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *size, **settings: torch.tensor([0.0, 0.5], dtype=torch.float64))
    assert weighted(torch.tensor([0.0, 2.0, 2.0, 0.0]), 2, None).tolist() == [1, 2]


def from_lowest(scores):
    """Indices from lowest to highest; ties to the earlier, NaN after every other number but infinity."""
    key = [1.7e308 if score != score else score for score in scores]
    return sorted(range(len(scores)), key=lambda index: (key[index], index))


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, -1.0, NAN, INF]), max_size=6), min_size=1, max_size=5), st.data())
def test_lowest_of_each(groups, data):
    counts = [data.draw(st.integers(0, len(group))) for group in groups]
    flat = torch.tensor([score for group in groups for score in group], dtype=torch.float64)
    of = torch.tensor([number for number, group in enumerate(groups) for _ in group], dtype=torch.int64)
    expected, first = [], 0
    for group, count in zip(groups, counts, strict=True):
        expected += sorted(first + index for index in from_lowest(group)[:count])
        first += len(group)
    assert lowest_of_each(flat, of, torch.tensor(counts)).tolist() == expected
    # Groups that lie among one another: reversed groups keep each one's order.
    spread = torch.tensor(
        sorted(range(len(of)), key=lambda index: (index - of.tolist().index(of[index]), int(of[index]))), dtype=torch.int64
    )
    found = spread[lowest_of_each(flat[spread], of[spread], torch.tensor(counts))].sort().values
    assert found.tolist() == expected


@given(st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.0]), max_size=6), min_size=1, max_size=4), st.data())
def test_highest_of_all(layers, data):
    flat = [(score, number) for number, layer in enumerate(layers) for score in layer]
    least = [data.draw(st.integers(0, len(layer))) for layer in layers]
    count = data.draw(st.integers(sum(least), len(flat)))
    kept = [len(layer) for layer in layers]
    for index in from_lowest([score for score, _ in flat]):
        if sum(kept) > count and kept[flat[index][1]] > least[flat[index][1]]:
            kept[flat[index][1]] -= 1
    assert highest_of_all([torch.tensor(layer) for layer in layers], count, least) == kept


@pytest.mark.parametrize(
    ("total", "weights", "least", "most", "steps", "expected"),
    [
        (10, [3, 1], [0, 0], [99, 99], [1, 1], [8, 2]),  # 7.5 and 2.5: the first of equals
        (7, [1, 1, 1], [0, 0, 0], [9, 9, 9], [1, 1, 1], [3, 2, 2]),
        (9, [0, 0], [0, 3], [9, 9], [1, 1], [3, 6]),  # no weights: equal parts of what remains
        (10, [8, 1, 1], [0, 0, 0], [4, 9, 9], [1, 1, 1], [4, 3, 3]),  # 8, 1, 1: the first passes 4 on in equal parts
        (12, [8, 2, 2], [0, 0, 0], [4, 3, 9], [1, 1, 1], [4, 3, 5]),  # 8, 2, 2: then 4, 4, 4: then the second passes 1 on
        (5, [1, 5], [4, 0], [9, 0], [1, 1], [5, 0]),
        (24, [1, 1], [0, 0], [40, 40], [5, 3], [10, 12]),  # 12 and 12: of the 2 that are left no step can be made
        (10, [1, 2], [0, 0], [9, 9], [1, 1], [3, 7]),  # 3.33 and 6.67
        (14, [1, 0, 0], [0, 0, 0], [4, 20, 20], [1, 1, 4], [4, 6, 4]),  # 4, 5, 5: of the second's 5 all, of the third's 4
        (30, [16, 7, 7], [0, 0, 0], [40] * 3, [10, 4, 4], [10, 12, 8]),  # 0.6, 0.75, 0.75 of a step are left: the last two, then one more
        (0, [1.0, 2.0], [0, 0], [4, 4], [2, 2], [0, 0]),
        (0, [], [], [], [], []),
        (20, [0.5, 0.5], [7, 3], [40, 40], [4, 4], [12, 8]),  # 12 and 8
        (20, [0.5, 0.5], [7, 4], [40, 40], [4, 4], [12, 8]),  # 11.5 and 8.5: 8 and 8, 0.875 of a step and 0.125
    ],
)
def test_shared_out(total, weights, least, most, steps, expected):
    assert shared_out(total, weights, least, most, steps) == expected


@pytest.mark.parametrize(
    ("total", "weights", "least", "most", "steps", "spared", "expected"),
    [
        (10, [9, 1], [0, 0], [99, 99], [1, 1], [1, 1], [9, 1]),  # nobody is under it: nothing changes
        (10, [1, 0], [0, 0], [99, 99], [1, 1], [1, 1], [9, 1]),
        (10, [1, 0, 0], [0, 0, 0], [99, 99, 0], [1, 1, 1], [1, 2, 0], [8, 2, 0]),
        (12, [5, 1], [0, 0], [99, 99], [4, 4], [4, 4], [8, 4]),  # 10 and 2: 8 and 0, the step that is left goes to the second
        (12, [11, 1], [2, 0], [99, 99], [4, 4], [4, 4], [8, 4]),  # 11.2 and 0.8: 8 and 0, the step goes to the first, and must not
        (6, [1, 1, 4], [0, 0, 0], [9, 9, 9], [1, 1, 1], [2, 2, 2], [2, 2, 2]),  # 1, 1, 4
        (
            7,
            [2, 3, 9],
            [0, 0, 0],
            [9, 9, 9],
            [1, 1, 1],
            [1, 2, 1],
            [1, 2, 4],
        ),  # 1, 1.5, 4.5: then 0.91 and 4.09
    ],
)
def test_shared_out_spares(total, weights, least, most, steps, spared, expected):
    assert shared_out(total, weights, least, most, steps, spared) == expected


@given(st.data())
def test_shared_out_keeps_the_total_and_the_bounds(data):
    number = data.draw(st.integers(1, 5))

    def each(values):
        return [data.draw(values) for _ in range(number)]

    steps = each(st.integers(1, 4))
    most = [step * data.draw(st.integers(0, 6)) for step in steps]
    least = [data.draw(st.integers(0, bound)) for bound in most]
    weights = each(st.sampled_from([0.0, 0.1, 0.3, 1.0, 7.0]))
    total = data.draw(st.integers(sum(least), sum(most)))
    counts = shared_out(total, weights, least, most, steps)
    assert all(0 <= count <= bound and count % step == 0 for count, bound, step in zip(counts, most, steps, strict=True))
    room = [step for count, bound, step in zip(counts, most, steps, strict=True) if count < bound]
    assert 0 <= total - sum(counts) < min(room, default=1)
    if set(steps) == {1}:
        assert all(count >= begin for count, begin in zip(counts, least, strict=True))


def test_what_shared_out_refuses():
    for total in (2, 10):
        with pytest.raises(ValueError, match=rf"{total} cannot be shared out among entries that begin at \[3, 0\] and hold at most"):
            shared_out(total, [1, 1], [3, 0], [4, 5], [1, 1])
    for weight in (-1.0, NAN, INF):
        with pytest.raises(ValueError, match="weights are finite and not negative, got"):
            shared_out(3, [1.0, weight], [0, 0], [4, 4], [1, 1])
