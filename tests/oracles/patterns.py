"""Units and groups of each pattern by plain loops, and drawn layers of each."""

import hypothesis.strategies as st
import torch

from oracles import made
from truesparse import NM, Block, FanIn, Neurons, SharedFanIn, Unstructured

PATTERNS = [
    Unstructured(),
    FanIn(),
    SharedFanIn(1),
    SharedFanIn(2),
    SharedFanIn(3),
    NM(1, 4),
    NM(2, 4),
    NM(3, 3),
    NM(1, 2, apart=3),
    NM(2, 3, apart=2),
    Block(2),
    Block(3),
    Neurons(),
]


def unit_of(pattern, row, column):
    """Which unit a connection belongs to."""
    if isinstance(pattern, Neurons):
        return row, 0
    height, width = sides(pattern)
    return row // height, column // width


def sides(pattern):
    """(rows, columns) of a unit that is no whole neuron."""
    if isinstance(pattern, SharedFanIn):
        return pattern.rows, 1
    return (pattern.size, pattern.size) if isinstance(pattern, Block) else (1, 1)


def group_of(pattern, unit):
    """Which units compete: those of the same group."""
    row, column = unit
    if isinstance(pattern, NM):
        # A convolution's columns are (channel, tap): those of m channels at one tap.
        channel, tap = divmod(column, pattern.apart)
        return row, channel // pattern.m, tap
    return row if isinstance(pattern, FanIn) else 0


def members(pattern, shape):
    """{group: {unit: [connections]}} of a whole layer."""
    groups = {}
    for row in range(shape[0]):
        for column in range(shape[1]):
            unit = unit_of(pattern, row, column)
            groups.setdefault(group_of(pattern, unit), {}).setdefault(unit, []).append((row, column))
    return groups


@st.composite
def layers(draw):
    """(pattern, shape it fits, number of units in each group)."""
    pattern = draw(st.sampled_from(PATTERNS))
    down, across = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    height, width = sides(pattern)
    width = pattern.m * pattern.apart if isinstance(pattern, NM) else width
    shape = down * height, across * width
    groups = members(pattern, shape)
    most = len(next(iter(groups.values()))) if groups else 0
    if isinstance(pattern, Neurons) and not across:
        most = 0
    return pattern, shape, pattern.n if isinstance(pattern, NM) and groups else draw(st.integers(0, most))


def connections_due(pattern, shape, due):
    """Connections of a layer with `due` units in each group."""
    return len(members(pattern, shape)) * due * connections_of_a_unit(pattern, shape)


def connections_of_a_unit(pattern, shape):
    height, width = sides(pattern)
    return shape[1] if isinstance(pattern, Neurons) else height * width


def partly(layer, data):
    """(kept, nnz): whole units, each group with at most its due of `nnz`."""
    pattern, shape, due = layer
    nnz = connections_due(pattern, shape, due)
    whole = pattern.random(shape, nnz, torch.Generator().manual_seed(1))
    units = pattern.units(whole).nnz
    dropped = data.draw(st.sets(st.sampled_from(range(units)))) if units else set()
    return pattern.drop_units(whole, torch.tensor(sorted(dropped), dtype=torch.int64)), nnz


@st.composite
def ablated_layers(draw):
    """(shape, connections of each row) legal for constant fan-in, with as many connections as rows x some count."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    nnz = rows * draw(st.integers(0, columns))
    active = draw(st.sets(st.sampled_from(range(rows)), min_size=-(-nnz // columns) or 1))
    share, remainder = divmod(nnz, len(active))
    longer = draw(st.sets(st.sampled_from(sorted(active)), min_size=remainder, max_size=remainder)) if remainder else set()
    return (rows, columns), [(share + (row in longer)) * (row in active) for row in range(rows)]


def of_fan_in(columns, fan_in, seed=0):
    """A topology with that many connections in each row, anywhere in it."""
    generator = torch.Generator().manual_seed(seed)
    pairs = {(row, int(column)) for row, count in enumerate(fan_in) for column in torch.randperm(columns, generator=generator)[:count]}
    return made((len(fan_in), columns), pairs)
