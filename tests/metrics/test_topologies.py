"""What is said of topologies, against sets of pairs, dense masks and NumPy."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import connections, made, topology_of

from truesparse import Move, Topology
from truesparse.metrics import change, dead_neurons, distribution, fan_in, fan_out
from truesparse.metrics.topologies import change_of, grown_keys, quantiles
from truesparse.topology.geometry import Convolution, Matrix


def test_a_change_one_can_check_by_eye():
    old = topology_of("xx.. ..x. x...")
    new = topology_of("x..x ..x. .xx.")
    found = change(old, new)
    assert (found.dropped, found.grown, found.common) == (2, 3, 2)
    assert found.hamming == 5 / 12
    assert found.jaccard == 5 / 7


@given(st.data())
def test_a_change_is_that_of_sets(data):
    shape, old = data.draw(connections())
    _, new = data.draw(connections(shape))
    found = change(made(shape, old), made(shape, new))
    assert (found.dropped, found.grown, found.common) == (len(old - new), len(new - old), len(old & new))
    size = shape[0] * shape[1]
    assert found.hamming == (len(old ^ new) / size if size else 0.0)
    either = len(old | new)
    assert found.jaccard == pytest.approx(1 - len(old & new) / either if either else 0.0)


def test_what_starts_anew_in_its_place_has_not_changed_the_mask():
    old, survivors, new = topology_of("xxx."), topology_of("x..."), topology_of("xx.x")
    move = Move.through(old, survivors, new)
    assert grown_keys(move).tolist() == [1, 3]
    found = change_of(move, grown_keys(move))
    assert (found.dropped, found.grown, found.common) == (1, 1, 2)


def test_a_change_stays_within_one_shape():
    with pytest.raises(ValueError, match="a move stays within one shape"):
        change(topology_of("x."), topology_of("x"))


@given(st.data())
def test_fans_of_a_matrix(data):
    shape, pairs = data.draw(connections())
    topology = made(shape, pairs)
    mask = np.zeros(shape, dtype=int)
    for row, column in pairs:
        mask[row, column] = 1
    assert fan_in(topology).tolist() == mask.sum(1).tolist()
    assert fan_out(topology, Matrix(*shape)).tolist() == mask.sum(0).tolist()
    assert dead_neurons(topology) == ((mask.sum(1) == 0).sum(), (mask.sum(0) == 0).sum())


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_fan_out_of_a_convolution_is_that_of_its_channels(groups):
    geometry = Convolution(in_channels=8, out_channels=12, kernel=(2, 3), groups=groups)
    mask = torch.rand(geometry.weight_shape) < 0.1
    mask[:, 1] = False
    topology = Topology.from_mask(mask)
    expected = [0] * 8
    for out, inside, *_ in mask.nonzero().tolist():
        expected[out // (12 // groups) * (8 // groups) + inside] += 1
    assert fan_out(topology, geometry).tolist() == expected
    assert 0 in expected
    assert dead_neurons(topology, geometry) == (int((mask.flatten(1).sum(1) == 0).sum()), expected.count(0))


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60))
def test_distributions(numbers):
    found = distribution(torch.tensor(numbers))
    assert found.quantiles == tuple(np.quantile(numbers, [0, 0.25, 0.5, 0.75, 1], method="inverted_cdf").tolist())
    assert len(found.counts) <= 32
    edges = np.arange(len(found.counts) + 1) * found.width
    assert found.counts == tuple(np.histogram(numbers, edges - 0.5)[0].tolist())
    assert sum(found.counts) == len(numbers)


def test_no_distribution_of_nothing():
    assert distribution(torch.zeros(0, dtype=torch.int64)).quantiles == ()


def test_quantiles_of_counts():
    counts = torch.tensor([0, 3, 0, 1])  # 1 1 1 3
    assert quantiles(counts, (0.0, 0.5, 0.75, 0.76, 1.0)) == (1, 1, 1, 3, 3)
