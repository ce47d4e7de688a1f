"""Growing where the gradient is largest: group by group against sorting in plain Python, and never more than a slab at a time."""

import dataclasses

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from oracles import Held, Watched, made, pairs_of
from test_patterns import connections_due, group_of, layers, members, unit_of

from truesparse import NM, Block, FanIn, Unstructured, patterns
from truesparse.patterns import Pattern

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
    nnz = connections_due(pattern, shape, due)
    whole = pattern.random(shape, nnz, torch.Generator().manual_seed(1))
    units = pattern.units(whole).nnz
    dropped = data.draw(st.sets(st.sampled_from(range(units)))) if units else set()
    kept = pattern.drop_units(whole, torch.tensor(sorted(dropped), dtype=torch.int64))
    entry = st.sampled_from([0.0, 1.0, -1.0, 2.0, -3.0, NAN, INF, -INF])
    dense = torch.tensor(data.draw(st.lists(entry, min_size=whole.size, max_size=whole.size))).view(shape)
    expected = grown_by_hand(pattern, kept, dense, due)
    for entries in (1 << 22, 1, 7, 20):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(patterns, "SLAB_ENTRIES", entries)
            gradients = Held(dense)
            assert pairs_of(pattern.grow_highest(kept, nnz, gradients)) == expected
            assert all((stop - start) * shape[1] <= max(entries, pattern.unit[0] * shape[1]) for start, stop in gradients.asked)


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), NM(2, 4), Block(2)], ids=str)
def test_ties_go_to_the_lowest_position_and_nan_comes_last(pattern, monkeypatch):
    monkeypatch.setattr(patterns, "SLAB_ENTRIES", 16)
    dense = torch.zeros(4, 8)
    dense[0, 0] = dense[2, 4] = NAN
    nnz = pattern.round((4, 8), 16)
    grown = pattern.grow_highest(made((4, 8), set()), nnz, Held(dense))
    due = {Unstructured: 16, FanIn: 4, NM: 2, Block: 4}[type(pattern)]
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


@pytest.mark.parametrize("pattern", [FanIn(), NM(2, 4), Block(2)], ids=str)
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
    for pattern in (Unstructured(), FanIn(), NM(2, 4), Block(2)):
        groups = members(pattern, (4, 8))
        assert sorted(pair for units in groups.values() for unit in units.values() for pair in unit) == [
            (row, column) for row in range(4) for column in range(8)
        ]
        assert group_of(pattern, unit_of(pattern, 3, 7)) in groups
