"""CHT against a table drawn by hand and against its rule in dense NumPy."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import drawing, signals, topology_of
from oracles.cht import grown, update

from truesparse import CHT, FanIn, Move, Topology, Unstructured
from truesparse.topology.paths import grow

UNSTRUCTURED = Unstructured()

BEFORE = "xxx. .xxx x.x."
VALUES = [0.9, -0.8, 0.1, 0.7, -0.6, 0.5, -0.2, 0.4]
# A quarter of 8 go: 0.1 at (0, 2) and -0.2 at (2, 0). What stays:
#   xx..
#   .xxx
#   ..x.
# Paths of three, one each: (1, 0), whose inner neurons row 0 and column 1 have no connections outside, scores 1. The paths of (0, 2),
# (0, 3), (2, 1) and (2, 3) go through row 1, which has one outside: 1 / sqrt(2). (1, 0) grows, and of the equals the first, (0, 2).
AFTER = ["xxx.", "xxxx", "..x."]
WEIGHTS_AFTER = [0.9, -0.8, 0.1, 0.0, 0.7, -0.6, 0.5, 0.4]


def one(algorithm, topology, values, memory=None, **more):
    """(new topology, memory) of a network of one layer."""
    new, memory = algorithm.update_network({"only": signals(values, topology=topology, **more)}, memory or {})
    return new["only"], memory


def hold_to_the_table(update):
    topology = topology_of(BEFORE)
    new = update(topology, signals(VALUES, topology=topology))
    assert drawing(new) == AFTER
    assert Move.between(topology, new).values(torch.tensor(VALUES)).tolist() == pytest.approx(WEIGHTS_AFTER)


def test_the_table():
    hold_to_the_table(lambda topology, given: CHT(0.25).update_network({"only": given}, {})[0]["only"])


def scoring_before_the_drop(topology, kept):
    """The mistake: paths through what has just been dropped."""
    new = grow(topology, topology.nnz + 2, UNSTRUCTURED, "CH3-L3p", None)
    return kept.grow(new.keys[~topology.contains(new.keys)])


def counting_paths(topology, kept):
    """The mistake: every path counts the same."""
    mask = kept.mask().double()
    count = (mask @ mask.T @ mask).masked_fill(kept.mask(), 0).flatten()
    return kept.grow(count.sort(descending=True, stable=True).indices[:2])


def forgetting_what_was_just_dropped(topology, kept):
    """The mistake: growth only where there was no connection before the update."""
    new = grow(kept, topology.nnz + 1, UNSTRUCTURED, "CH3-L3p", None)
    return kept.grow(new.keys[~topology.contains(new.keys)][:2])


@pytest.mark.parametrize("mistake", [scoring_before_the_drop, counting_paths, forgetting_what_was_just_dropped])
def test_the_table_catches_mistakes(mistake):
    with pytest.raises(AssertionError):
        hold_to_the_table(lambda topology, given: mistake(topology, given.pattern.drop(topology, given.values.abs(), 2)))


def network(draw, sizes, density):
    """(topologies, weights [rows, columns]) of a chain of layers."""
    masks = [draw.random((rows, columns)) < density for columns, rows in pairwise(sizes)]
    weights = [draw.normal(size=mask.shape) * mask for mask in masks]
    for mask, weight in zip(masks, weights, strict=True):
        weight[mask & (draw.random(mask.shape) < 0.2)] = 0.5  # ties
    return [Topology.from_mask(torch.tensor(mask)) for mask in masks], weights


def of_connections(topology, weight):
    return torch.tensor(weight).flatten()[topology.keys]


@pytest.mark.parametrize("seed", range(40))
def test_an_update_is_that_of_the_rule_in_numpy(seed):
    draw = np.random.default_rng(seed)
    density, fraction = draw.choice([0.0, 0.1, 0.3, 0.6, 1.0]), draw.choice([0.0, 0.3, 0.6, 1.0])
    topologies, weights = network(draw, draw.integers(1, 9, 4), density)
    layers = {str(i): signals(of_connections(*pair), topology=pair[0]) for i, pair in enumerate(zip(topologies, weights, strict=True))}
    new, _ = CHT(fraction, stop_overlap=0).update_network(layers, {})
    rule = update([topology.mask().numpy() for topology in topologies], weights, fraction)
    for ours, old, *expected in zip(new.values(), topologies, *rule, strict=True):
        mask, missing = grown(*expected)
        assert ours.nnz == old.nnz
        assert np.array_equal(ours.mask().numpy() & mask, mask)
        assert int(mask.sum()) == old.nnz - missing


def test_a_neuron_without_outputs_is_removed_and_its_connections_grow_elsewhere():
    # Neuron 1 of the hidden four is read through -0.1 only, which is dropped. Its input grows where there is a path, not back.
    first, second = topology_of("xxx.. x.... ..xxx ..x.x"), topology_of("x.x. xxx. ..xx")
    layers = {"0": signals([1.0] * 9, topology=first), "2": signals([1.0, 1.0, 1.0, -0.1, 1.0, 1.0, 1.0], topology=second)}
    new, _ = CHT(0.15).update_network(layers, {})
    assert int(new["2"].fan_out[1]) == 0
    assert drawing(new["0"])[1] == "....."
    assert (new["0"].nnz, new["2"].nnz) == (9, 7)
    apart, _ = CHT(0.15, chain="none").update_network(layers, {})
    assert drawing(apart["0"])[1] == "x...."


def test_a_layer_stops_when_it_grows_what_it_dropped():
    topology = topology_of(BEFORE)
    new, memory = one(CHT(0.25, stop_overlap=0.5), topology, VALUES)
    assert (drawing(new), memory) == (AFTER, {"only": 1.0}), "one of the two that grew had just been dropped"
    assert one(CHT(0.25, stop_overlap=0.51), topology, VALUES)[1] == {}
    assert one(CHT(0.25, stop_overlap=0.0), topology, VALUES)[1] == {}
    again, memory = one(CHT(0.25, stop_overlap=0.5), new, [0.1] * 8, memory)
    assert again is new
    assert memory == {"only": 1.0}


def test_each_row_gets_back_what_it_lost_when_the_fan_in_is_constant():
    # 0.1 in row 0 and 0.2 in row 1 go; each row grows where it has the best path.
    topology = topology_of("xx.. .xx. x..x")
    new, _ = one(CHT(0.34), topology, [0.9, 0.1, 0.2, -0.8, 0.7, 0.6], pattern=FanIn())
    assert new.fan_in.tolist() == [2, 2, 2]
    assert drawing(new)[0] == "x..x", "row 2 has column 0 too, and leads to 3"


def test_settings():
    assert CHT() == CHT(fraction=0.3, chain="sequential", stop_overlap=0.9)
    assert CHT.each_epoch is True
    assert not getattr(CHT, "replaces_step", False)
    with pytest.raises(ValueError, match=r"fraction is a share of the connections and lies in \[0, 1\], got 1.1"):
        CHT(1.1)
    with pytest.raises(ValueError, match=r"stop_overlap is a share of the connections and lies in \[0, 1\], got -1"):
        CHT(stop_overlap=-1)
    with pytest.raises(ValueError, match=r"chain is one of sequential, neighbours, none, got 'both'"):
        CHT(chain="both")
