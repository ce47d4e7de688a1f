"""No two things lie at one place while both are needed; and connections come back as they were written."""

import itertools

import numpy as np
import pytest
import torch
from c_build import NETWORKS, sparse
from hypothesis import given
from hypothesis import strategies as st

from truesparse.embedded.connections import encoded
from truesparse.embedded.float_c import FloatC
from truesparse.embedded.floats import size_of
from truesparse.embedded.memory import plan
from truesparse.embedded.network import Function, Linear, Matrix, Network, Pair, Place, sources_of
from truesparse.embedded.read import read


def checked(network, item, scratch):
    """Plays the steps on a block of memory in which every number has an owner."""
    planned, sizes = plan(network, item, scratch), size_of(network)
    owner, output = [None] * planned.size, [None] * (network.output.size * item)

    def spread(place):
        where = output if place.buffer in planned.in_output else owner
        begin = item * place.offset + (0 if place.buffer in planned.in_output else planned.offsets[place.buffer])
        return where, range(begin, begin + item * place.size)

    for number, step in enumerate(network.steps):
        for place in sources_of(step):
            if place.buffer:
                where, places = spread(place)
                assert all(where[at] == place.buffer for at in places), f"{step.name} reads what is no longer there"
        if planned.scratch[number] is not None:
            begin = planned.scratch[number]
            assert begin % 4 == 0
            busy = range(begin, begin + scratch(step))
            for place in (*sources_of(step), step.target):
                if place.buffer and place.buffer not in planned.in_output:
                    assert not set(busy) & set(spread(Place(place.buffer, (sizes[place.buffer],)))[1])
            for at in busy:
                owner[at] = "scratch"
        where, places = spread(step.target)
        for at in places:
            where[at] = step.target.buffer
    assert all(one == network.output.buffer for one in output)
    return planned


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("item", [1, 4])
def test_nothing_is_written_over_that_is_still_read(kind, item):
    model = sparse(NETWORKS[kind](), 0.5)
    network = read(model, torch.randn(1, *model.shape))
    checked(network, item, FloatC(network).scratch)


def random_network(choices):
    """Steps of one kind or another between buffers of several sizes."""
    shapes, steps = {0: (6,)}, []
    for number, (kind, one, other, rows) in enumerate(choices, 1):
        source = Place(one % number, shapes[one % number])
        twin = next((buffer for buffer in range(other % number, -1, -1) if shapes[buffer] == source.shape), source.buffer)
        if kind == 0:
            empty = np.zeros(0)
            matrix = Matrix(rows, source.size, np.zeros(rows, int), empty.astype(int), empty, np.zeros(rows))
            steps.append(Linear(f"{number}", source, Place(number, (rows,)), matrix))
        elif kind == 1:
            steps.append(Function(f"{number}", source, Place(number, source.shape), "tanh"))
        else:
            steps.append(Pair(f"{number}", source, Place(twin, source.shape), Place(number, source.shape), "add"))
        shapes[number] = steps[-1].target.shape
    return Network(tuple(steps), Place(0, (6,)), steps[-1].target)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.integers(0, 50), st.integers(1, 9)), min_size=1, max_size=12))
def test_nor_in_networks_of_any_form(choices):
    network = random_network(choices)
    planned = checked(network, 4, lambda step: 12 if isinstance(step, Linear) else 0)
    every = sum(4 * size + 16 for size in size_of(network).values())
    assert planned.size <= every


def test_layers_in_a_row_take_turns():
    network = random_network([(0, number, 0, 8) for number in range(10)])
    assert plan(network, 4, lambda step: 0).size == 2 * 8 * 4


@given(st.integers(1, 2000), st.integers(1, 4), st.data())
def test_connections_come_back(columns, rows, data):
    kept = [sorted(data.draw(st.sets(st.integers(0, columns - 1), max_size=12))) for _ in range(rows)]
    indices = np.array(list(itertools.chain(*kept)), int)
    values = np.arange(1, len(indices) + 1).astype(np.int8)
    matrix = Matrix(rows, columns, np.array(list(map(len, kept))), indices, values, np.zeros(rows))
    held = encoded(matrix, values, np.uint16)
    found = np.zeros((rows, columns), np.int8)
    if held.gaps is None:
        found[:] = held.values.reshape(rows, columns)
    else:
        place = 0
        for row, count in enumerate(held.counts):
            column = 0
            for _ in range(count):
                column += int(held.gaps[place])
                found[row, column] += held.values[place]
                place += 1
        assert place == len(held.gaps)
    expected = np.zeros((rows, columns), np.int8)
    expected[np.repeat(np.arange(rows), list(map(len, kept))), indices] = values
    assert np.array_equal(found, expected)
    assert held.nbytes <= rows * columns
