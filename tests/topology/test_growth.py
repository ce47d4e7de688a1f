"""Growing where the gradient is largest: group by group against sorting in plain Python, and never more than a slab at a time."""

import dataclasses
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import Held, Watched, made, pairs_of
from oracles.patterns import ablated_layers, group_of, layers, members, of_fan_in, partly, sides, unit_of

from truesparse import NM, Block, FanIn, Neurons, SharedFanIn, Unstructured
from truesparse.topology import patterns
from truesparse.topology.patterns import Pattern

NAN, INF = float("nan"), float("inf")


def grown_by_hand(pattern, kept, dense, due):
    """`kept` and, in each group, the units of largest summed |gradient| up to `due`."""
    present = pairs_of(kept)
    expected = set(present)
    for units in members(pattern, kept.shape).values():
        scores = {
            unit: sum(abs(float(dense[pair])) for pair in connections)
            for unit, connections in units.items()
            if not set(connections) <= present
        }
        held = len(units) - len(scores)
        for unit in sorted(scores, key=lambda unit: (scores[unit] != scores[unit], -scores[unit], unit))[: due - held]:
            expected.update(units[unit])
    return expected


@given(layers(), st.data())
def test_grow_highest(layer, data):
    pattern, shape, due = layer
    kept, nnz = partly(layer, data)
    entry = st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0, NAN, INF, -INF])
    dense = torch.tensor(data.draw(st.lists(entry, min_size=kept.size, max_size=kept.size))).view(shape)
    expected = grown_by_hand(pattern, kept, dense, due)
    for entries in (1 << 22, 1, 7, 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patterns, "SLAB_ENTRIES", entries)
            gradients = Held(dense)
            assert pairs_of(pattern.grow_highest(kept, nnz, gradients)) == expected
            height = sides(pattern)[0]
            assert all((stop - start) * shape[1] <= max(entries, height * shape[1]) for start, stop in gradients.asked)


@given(ablated_layers(), st.data())
def test_each_row_grows_to_a_due_of_its_own(layer, data):
    shape, due = layer
    full = made(shape, {(row, column) for row in range(shape[0]) for column in range(shape[1])})
    kept = of_fan_in(shape[1], [data.draw(st.integers(0, most)) for most in due])
    entry = st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0, NAN, INF])
    dense = torch.tensor(data.draw(st.lists(entry, min_size=full.size, max_size=full.size))).view(shape)
    expected = pairs_of(kept)
    for row, most in enumerate(due):
        empty = [column for column in range(shape[1]) if (row, column) not in expected]
        scores = {column: abs(float(dense[row, column])) for column in empty}
        best = sorted(empty, key=lambda column: (scores[column] != scores[column], -scores[column], column))
        expected |= {(row, column) for column in best[: most - int(kept.fan_in[row])]}
    for entries in (1 << 22, 1, 7):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patterns, "SLAB_ENTRIES", entries)
            assert pairs_of(FanIn().grow_highest(kept, sum(due), Held(dense), torch.tensor(due))) == expected


def whole_units(units, pairs):
    """The units of a group that have all of their connections among `pairs`; none may have some."""
    whole = {unit for unit, connections in units.items() if set(connections) <= pairs}
    assert whole == {unit for unit, connections in units.items() if set(connections) & pairs}
    return whole


@given(layers(), st.data(), st.sampled_from([0.0, 0.5, 1.0, 1.5, 4.0]))
def test_sample_absent(layer, data, factor):
    pattern, shape, due = layer
    kept, nnz = partly(layer, data)
    sample = pattern.sample_absent(kept, nnz, factor, torch.Generator().manual_seed(2))
    assert not pairs_of(sample) & pairs_of(kept)
    if 0 in shape:
        assert not sample.nnz
        return
    for units in members(pattern, shape).values():
        held = len(whole_units(units, pairs_of(kept)))
        assert len(whole_units(units, pairs_of(sample))) == min(math.ceil((due - held) * factor), len(units) - held)
    assert pattern.sample_absent(kept, nnz, factor, torch.Generator().manual_seed(2)).equal(sample)


def test_a_sample_takes_all_there_are_of_one_group():
    kept = FanIn().random((100, 20), 200, torch.Generator().manual_seed(0)).drop(torch.tensor([0]))
    sample = FanIn().sample_absent(kept, 200, 50.0, torch.Generator().manual_seed(1))
    assert sample.fan_in.tolist() == [19] + [0] * 99
    assert not sample.contains(kept.keys).any()


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), SharedFanIn(2), NM(2, 4), Block(2), Neurons()], ids=str)
def test_a_sample_is_uniform(pattern):
    nnz, draws, generator = pattern.round((8, 8), 16), 400, torch.Generator().manual_seed(0)
    whole = pattern.random((8, 8), nnz, generator)
    kept = pattern.drop_units(whole, torch.arange(0, pattern.units(whole).nnz, 2))
    hits = torch.zeros(8, 8)
    for _ in range(draws):
        hits += pattern.sample_absent(kept, nnz, 1.0, generator).mask()
    assert not hits[kept.mask()].any()
    for units in members(pattern, (8, 8)).values():
        counts = torch.tensor([float(hits[connections[0]]) for connections in units.values() if not set(connections) & pairs_of(kept)])
        expected = float(counts.mean())
        assert float((counts - expected).abs().max()) < 4.5 * max(expected, 1.0) ** 0.5


@given(layers(), st.data())
def test_grow_scored(layer, data):
    pattern, shape, due = layer
    kept, nnz = partly(layer, data)
    everything = [(row, column) for row in range(shape[0]) for column in range(shape[1])]
    pairs = data.draw(st.sets(st.sampled_from(everything))) if everything else set()
    entry = st.sampled_from([0.0, 1.0, 1.0, 2.0, -1.0])
    scores = dict(zip(sorted(pairs), data.draw(st.lists(entry, min_size=len(pairs), max_size=len(pairs))), strict=True))
    candidates = made(shape, pairs)
    given_scores = torch.tensor(list(scores.values()), dtype=torch.float64)
    grown = pattern.grow_scored(kept, nnz, candidates, given_scores, torch.Generator().manual_seed(3))
    assert grown.nnz == nnz
    pattern.check(grown)
    assert pairs_of(kept) <= pairs_of(grown)
    if 0 in shape:
        return
    for units in members(pattern, shape).values():
        held = whole_units(units, pairs_of(kept))
        sums = {
            unit: sum(scores[pair] for pair in connections if pair in scores)
            for unit, connections in units.items()
            if unit not in held and set(connections) & pairs
        }
        best = set(sorted(sums, key=lambda unit: (-sums[unit], unit))[: due - len(held)])
        new = whole_units(units, pairs_of(grown)) - held
        assert len(new) == due - len(held)
        # Without enough candidates the rest is drawn from what is no candidate.
        assert best <= new
        assert len(best) == len(new) or not (new - best) & set(sums)
    assert pattern.grow_scored(kept, nnz, candidates, given_scores, torch.Generator().manual_seed(3)).equal(grown)


def test_candidates_without_a_number_come_last():
    grown = FanIn().grow_scored(made((1, 4), set()), 2, made((1, 4), {(0, 0), (0, 1), (0, 2)}), torch.tensor([NAN, -1.0, 2.0]))
    assert pairs_of(grown) == {(0, 1), (0, 2)}


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), SharedFanIn(2), NM(2, 4), Block(2), Neurons()], ids=str)
def test_ties_go_to_the_lowest_position_and_nan_comes_last(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "SLAB_ENTRIES", 16)
    dense = torch.zeros(4, 8)
    dense[0, 0] = dense[2, 4] = NAN
    nnz = pattern.round((4, 8), 16)
    grown = pattern.grow_highest(made((4, 8), set()), nnz, Held(dense))
    due = {Unstructured: 16, FanIn: 4, SharedFanIn: 4, NM: 2, Block: 4, Neurons: 2}[type(pattern)]
    expected = set()
    for units in members(pattern, (4, 8)).values():
        clean = [unit for unit in sorted(units) if not {(0, 0), (2, 4)} & set(units[unit])]
        expected.update(pair for unit in clean[:due] for pair in units[unit])
    assert pairs_of(grown) == expected


@dataclasses.dataclass(frozen=True)
class RowPairs(Pattern):
    """A user's own pattern: every two neighbouring rows hold the same number of connections."""

    def group_size(self, grid):
        return 2 * grid[1]


def test_a_group_of_several_rows_is_never_cut_by_a_slab(monkeypatch):
    dense = torch.randn(6, 5, dtype=torch.float64)
    kept = made((6, 5), {(0, 0), (3, 3)})
    expected = pairs_of(RowPairs().grow_highest(kept, 9, Held(dense)))
    assert [sum(row // 2 == pair for row, _ in expected) for pair in range(3)] == [3, 3, 3]
    for entries in (1, 5, 10, 15):
        monkeypatch.setattr(patterns, "SLAB_ENTRIES", entries)
        assert pairs_of(RowPairs().grow_highest(kept, 9, Held(dense))) == expected


@pytest.mark.parametrize("pattern", [FanIn(), SharedFanIn(4), NM(2, 4), Block(2), Neurons()], ids=str)
def test_growth_in_a_layer_of_many_positions_holds_one_slab(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "SLAB_ENTRIES", 4000)
    shape = (400, 800)
    nnz = pattern.round(shape, 3200) if not isinstance(pattern, NM) else shape[0] * shape[1] // 2

    class Computed:
        def rows(self, start, stop):
            return torch.arange(start * 800, stop * 800).remainder(97).float().view(-1, 800)

    with Watched() as watched:
        grown = pattern.grow_highest(made(shape, set()), nnz, Computed())
    assert grown.nnz == nnz
    assert watched.largest <= max(8000, nnz + 1)


def test_units_and_groups_of_the_oracle_cover_the_layer():
    for pattern in (Unstructured(), FanIn(), SharedFanIn(2), NM(2, 4), Block(2), Neurons()):
        groups = members(pattern, (4, 8))
        assert sorted(pair for units in groups.values() for unit in units.values() for pair in unit) == [
            (row, column) for row in range(4) for column in range(8)
        ]
        assert group_of(pattern, unit_of(pattern, 3, 7)) in groups
