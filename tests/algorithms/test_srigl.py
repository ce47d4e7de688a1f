"""SRigL against a table drawn by hand and a dense transcription: which neurons are ablated, who gets their connections, what survives."""

import dataclasses

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from oracles import Watched, drawing, signals, topology_of
from oracles.patterns import ablated_layers, of_fan_in
from oracles.srigl import srigl

from truesparse import (
    NM,
    Block,
    FanIn,
    Neurons,
    Rewirer,
    SharedFanIn,
    SparseConv2d,
    SparseLinear,
    SRigL,
    Topology,
    Unstructured,
    rewire,
    sparsify,
)
from truesparse.algorithms import srigl as algorithm_file
from truesparse.nn import topology_layers
from truesparse.testing import convolution_model, example_signals, linear_model

BEFORE = "xxx... .xxx.. ..xxx. ...xxx"
#         0    1    2    3    4    5
VALUES = [0.9, 0.8, 0.7,
               0.6, -0.5, 0.4,
                    -0.03, 0.02, 0.01,
                         0.3, 0.05, -0.2]  # fmt: skip
# A quarter of 12 go, the smallest: 0.01, 0.02 and 0.03, all of row 2. The three largest gradients of the whole layer:
GRADIENT = [
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    [0.1, 0.2, 0.3, 0.4, 0.9, 0.6],  # 0.9 is new
    [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    [0.1, 1.0, 0.3, 0.8, 0.5, 0.6],  # 1.0 is new, 0.8 stands at a weight that stays anyway
]
# Salient, of each row: 3, 4, 0, 4. At least max(1, int(0.3 x 3)) = 1 is needed: row 2 is ablated, the others have 4.
AFTER = ["xxx..x", ".xxxx.", "......", ".x.xxx"]
WEIGHTS_AFTER = [0.9, 0.8, 0.7, 0.0, 0.6, -0.5, 0.4, 0.0, 0.0, 0.3, 0.05, -0.2]


def at(values, gradient, topology=None, progress=0.0, output=False):
    """What SRigL sees of a layer with constant fan-in."""
    given = signals(values, torch.as_tensor(gradient), progress, FanIn(), topology=topology)
    return dataclasses.replace(given, output=output)


def updated(algorithm, before, values, gradient, **seen):
    topology = topology_of(before)
    new = algorithm.update(topology, at(values, gradient, topology, **seen))
    assert new.nnz == topology.nnz
    FanIn().check(new)
    return drawing(new)


def test_the_table():
    assert updated(SRigL(0.25), BEFORE, VALUES, GRADIENT) == AFTER


def test_weights_and_adamw_state_through_rewire():
    layer = SparseLinear.from_dense(torch.nn.Linear(6, 4), topology_of(BEFORE), pattern=FanIn(), values=torch.tensor(VALUES))
    optimizer = torch.optim.AdamW(layer.parameters(), weight_decay=0.0)
    layer(torch.randn(5, 6)).sum().backward()
    optimizer.step()
    with torch.no_grad():
        layer.values.copy_(torch.tensor(VALUES))
    state = optimizer.state[layer.values]
    state["exp_avg"], state["exp_avg_sq"] = torch.arange(1.0, 13.0), torch.arange(21.0, 33.0)
    rewire(layer, optimizer, SRigL(0.25).update(layer.topology, at(layer.values.detach(), GRADIENT)))
    assert drawing(layer.topology) == AFTER
    assert layer.topology.empty_rows == 1
    assert layer.values.tolist() == pytest.approx(WEIGHTS_AFTER)
    # Those of row 2 were 7, 8 and 9: nothing of them is left.
    assert state["exp_avg"].tolist() == [1.0, 2.0, 3.0, 0.0, 4.0, 5.0, 6.0, 0.0, 0.0, 10.0, 11.0, 12.0]
    assert state["exp_avg_sq"].tolist() == [21.0, 22.0, 23.0, 0.0, 24.0, 25.0, 26.0, 0.0, 0.0, 30.0, 31.0, 32.0]
    assert torch.equal(layer(torch.randn(3, 6))[:, 2], layer.bias.detach()[2].expand(3)), "an ablated neuron says its bias"


def keeps_every_class():
    assert updated(SRigL(0.25), BEFORE, VALUES, GRADIENT, output=True) == ["xxx...", ".xxx..", "...xxx", "...xxx"]
    assert updated(SRigL(0.25, gamma=0.0), BEFORE, VALUES, GRADIENT) == ["xxx...", ".xxx..", "...xxx", "...xxx"]


def keeps_the_largest_of_an_overfull_neuron():
    # The 3 smallest of 6 go. Three rows share 6 connections, and row 0, which has three left, keeps the larger two: -0.6 and 0.5.
    gradient = [[0.0] * 6, [9.0, 8.0, 7.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 6.0, 5.0, 4.0]]
    values = [0.1, 0.2, 0.3, 0.4, -0.6, 0.5]
    assert updated(SRigL(0.5, gamma=0.0), "xxxxxx ...... ......", values, gradient) == ["....xx", "xx....", "...xx."]
    # The three largest gradients are all in row 1: row 2 is ablated, and rows 0 and 1 have 3.
    assert updated(SRigL(0.5, gamma=0.5), "xxxxxx ...... ......", values, gradient) == ["...xxx", "xxx...", "......"]
    # All go: row 0 has no salient one.
    assert updated(SRigL(1.0, gamma=0.5), "xxxxxx ...... ......", values, gradient) == ["......", "xxx...", "...xxx"]


def loses_no_connection_to_division():
    # 0.01 and 0.02 go, and row 3 is ablated. 12 connections for 5 neurons: 2 each, and 3 for the most salient, rows 2 and 4.
    values = [0.5, 0.6, 0.5, 0.6, 0.5, 0.6, 0.01, 0.02, 0.5, 0.6, 0.5, 0.6]
    gradient = torch.zeros(6, 8)
    gradient[2, 7], gradient[4, 0] = 2.0, 3.0
    before = "xx...... xx...... xx...... xx...... ....xx.. ....xx.."
    after = ["xx......", "xx......", "xx.....x", "........", "x...xx..", "....xx.."]
    assert updated(SRigL(1 / 6, gamma=0.5), before, values, gradient) == after


@pytest.mark.parametrize("table", [keeps_every_class, keeps_the_largest_of_an_overfull_neuron, loses_no_connection_to_division])
def test_tables_of_what_goes_wrong_elsewhere(table):
    table()


def by_position(monkeypatch):
    right = FanIn.excess
    monkeypatch.setattr(FanIn, "excess", lambda self, topology, scores, **due: right(self, topology, -topology.keys.double(), **due))


def last_layer_unprotected(monkeypatch):
    right = SRigL._threshold
    monkeypatch.setattr(SRigL, "_threshold", lambda self, topology, salient, output: right(self, topology, salient, False))


def rounded_down(monkeypatch):
    monkeypatch.setattr(algorithm_file, "shared_evenly", lambda nnz, active, salient: active * (nnz // int(active.sum())))


@pytest.mark.parametrize(
    ("mistake", "table"),
    [
        (by_position, keeps_the_largest_of_an_overfull_neuron),
        (last_layer_unprotected, keeps_every_class),
        (rounded_down, loses_no_connection_to_division),
    ],
)
def test_the_tables_catch_the_mistakes_of_published_code(monkeypatch, mistake, table):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        table()


def test_a_neuron_returns_as_soon_as_its_gradients_are_large():
    layer = SparseLinear.from_dense(torch.nn.Linear(6, 4), topology_of(BEFORE), pattern=FanIn(), values=torch.tensor(VALUES))
    rewire(layer, None, SRigL(0.25).update(layer.topology, at(layer.values.detach(), GRADIENT)))
    assert drawing(layer.topology) == AFTER
    # The three that have just grown are still 0 and go; the others have 3 left, and so has row 2 again.
    gradient = torch.zeros(4, 6)
    gradient[2, 1] = 5.0
    rewire(layer, None, SRigL(0.25).update(layer.topology, at(layer.values.detach(), gradient)))
    assert drawing(layer.topology) == ["xxx...", ".xxx..", "xxx...", "...xxx"]


def test_as_many_neurons_stay_as_the_connections_need():
    # Half go, the weights of 0.1; the four largest gradients are all in row 0. Salient: 4, 1, 1, 0, and 2 are asked for. But 8 connections
    # do not fit into one row of 4: the third best row must stay, so 1 is enough. Of the 8 three each go to rows 0 and 1.
    gradient = torch.zeros(4, 4)
    gradient[0] = 1.0
    values = [0.9, 0.8, 0.7, 0.1, 0.6, 0.1, 0.1, 0.1]
    assert updated(SRigL(0.5, gamma=1.0), "xx.. xx.. xx.. xx..", values, gradient) == ["xxx.", "xxx.", "xx..", "...."]
    # All go, and the gradients of two rows are the largest. The third best has nothing salient: with it, all stay.
    gradient[1] = 1.0
    assert updated(SRigL(1.0, gamma=1.0), "xx.. xx.. xx.. xx..", values, gradient) == ["xx..", "xx..", "xx..", "xx.."]


@st.composite
def cases(draw):
    """(mask, weights, gradients) with many ties."""
    shape, fan_in = draw(ablated_layers())
    mask = of_fan_in(shape[1], fan_in, draw(st.integers(0, 9))).mask().numpy()
    level = st.sampled_from([0.0, 0.5, -0.5, 1.0, 2.0, -3.0, 4.0])
    size = shape[0] * shape[1]
    weight, gradient = (np.array(draw(st.lists(level, min_size=size, max_size=size))).reshape(shape) for _ in range(2))
    return mask, weight, gradient


@given(
    cases(),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    st.sampled_from([0.0, 0.3, 0.5, 0.95, 1.0]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.booleans(),
)
def test_the_dense_transcription(case, fraction, gamma, progress, output):
    mask, weight, gradient = case
    topology = Topology.from_mask(torch.from_numpy(mask))
    given = at(weight[mask], gradient, topology, progress, output)
    new = SRigL(fraction, gamma).update(topology, given)
    assert np.array_equal(new.mask().numpy(), srigl(mask, weight, gradient, fraction, gamma, progress, output))
    FanIn().check(new)
    assert new.nnz == topology.nnz
    assert not (output and mask.any() and new.empty_rows)


@given(
    cases(),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from([0.0, 0.5, 0.95]),
    st.booleans(),
)
def test_groups_of_rows_are_as_one_row_each_of_the_dense_transcription(case, height, fraction, gamma, output):
    """Rows that share columns, of weights and gradients with one sign each, are what one row of their sums is."""
    mask, weight, gradient = case
    portions = np.array([3.0, 1.0, 0.0])[:height, None]  # of each row of a group
    repeated = np.repeat(mask, height, 0)
    weights, gradients = ((one[:, None] * portions).reshape(repeated.shape) for one in (weight, gradient))
    topology = Topology.from_mask(torch.from_numpy(repeated))
    given = dataclasses.replace(at(weights[repeated], gradients, topology, 0.4, output), pattern=SharedFanIn(height))
    new = SRigL(fraction, gamma).update(topology, given)
    SharedFanIn(height).check(new)
    summed = portions.sum()
    expected = srigl(mask, weight * summed, gradient * summed, fraction, gamma, 0.4, output)
    assert np.array_equal(new.mask().numpy(), np.repeat(expected, height, 0))


def test_groups_are_ablated_whole_while_a_network_trains():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8)).double()
    sparsify(model, 0.6, pattern=SharedFanIn(4), generator=torch.Generator().manual_seed(3))
    counts = [layer.topology.nnz for layer in topology_layers(model).values()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rewirer, ablated = Rewirer(model, optimizer, SRigL(0.5, gamma=0.9), every=2, until=30), 0
    for step in range(28):
        draw = torch.Generator().manual_seed(step)
        model(torch.randn(8, 12, generator=draw, dtype=torch.float64)).pow(2).mean().backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        hidden, output = topology_layers(model).values()
        groups = (hidden.topology.fan_in == 0).view(8, 4)
        assert torch.equal(groups, groups[:, :1].expand_as(groups))
        assert not output.topology.empty_rows
        assert [hidden.topology.nnz, output.topology.nnz] == counts
        ablated += int(groups.sum())
    assert ablated


@pytest.mark.parametrize("seed", range(20))
def test_the_dense_transcription_of_larger_layers_over_several_updates(seed):
    draw = torch.Generator().manual_seed(seed)
    rows, columns = 4 + seed, 30 - seed
    topology = FanIn().random((rows, columns), rows * (2 + seed % 5), draw)
    mask, ablated = topology.mask().numpy(), 0
    strength = torch.rand(rows, 1, generator=draw, dtype=torch.float64) ** 2
    for step in range(4):
        weight, gradient = (torch.randn(rows, columns, generator=draw, dtype=torch.float64) * strength for _ in range(2))
        given = at(weight.flatten()[topology.keys], gradient, topology, step / 4)
        topology = SRigL(0.5, 0.6).update(topology, given)
        mask = srigl(mask, weight.numpy(), gradient.numpy(), 0.5, 0.6, step / 4, False)
        assert np.array_equal(topology.mask().numpy(), mask)
        ablated += topology.empty_rows
    assert ablated, "the case is too easy"


@pytest.mark.parametrize("make", [linear_model, convolution_model])
def test_training_ablates_neurons_and_keeps_the_count_and_the_classes(make):
    model = sparsify(make(), 0.7, pattern=FanIn(), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rewirer = Rewirer(model, optimizer, SRigL(0.5, gamma=0.9), every=2, until=30)
    counts = {name: layer.topology.nnz for name, layer in topology_layers(model).items()}
    histories = []
    for step in range(28):
        draw = torch.Generator().manual_seed(step)
        model(torch.randn(8, 12, generator=draw, dtype=torch.float64)).pow(2).mean().backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        layers = topology_layers(model)
        assert {name: layer.topology.nnz for name, layer in layers.items()} == counts
        histories.append([(layer.topology.fan_in == 0).tolist() for layer in layers.values()])
        for layer in layers.values():
            state = optimizer.state[layer.parameter]
            assert all(entry.shape == layer.values.shape for entry in (state["exp_avg"], state["exp_avg_sq"]))
    hidden, output = ([layers[which] for layers in histories] for which in (0, -1))
    assert any(map(any, hidden))
    assert not any(map(any, output))


def test_nothing_of_the_size_of_the_layer_is_held():
    rows, columns = 2000, 3000
    topology = FanIn().random((rows, columns), 20 * rows, torch.Generator().manual_seed(0))

    class Computed:
        def rows(self, start, stop):
            return torch.arange(start * columns, stop * columns).remainder(9973).float().view(-1, columns)

        def top(self, kept, count):
            return torch.arange(count) * 100

    given = dataclasses.replace(at(torch.rand(topology.nnz), torch.zeros(1, 1), topology), absent=Computed())
    with Watched() as watched:
        SRigL().update(topology, given)
    assert watched.largest <= rows * columns // 4


def test_other_patterns_are_refused_with_the_reason():
    for pattern in (Unstructured(), NM(2, 4), Block(2), Neurons()):
        model = torch.nn.Sequential(SparseLinear(8, 8, sparsity=0.5, pattern=pattern))
        with pytest.raises(ValueError, match=r"layer '0': SRigL gives neurons a constant fan-in and ablates them, which .* does not allow"):
            Rewirer(model, torch.optim.SGD(model.parameters(), lr=0.1), SRigL())
    layer = SparseConv2d(4, 6, 3, sparsity=0.5, pattern=FanIn())
    Rewirer(torch.nn.Sequential(layer), torch.optim.SGD(layer.parameters(), lr=0.1), SRigL())


def test_a_layer_without_connections_and_a_full_one():
    nothing = topology_of(".... ....")
    assert SRigL().update(nothing, at([], torch.ones(2, 4), nothing)).nnz == 0
    full = topology_of("xxxx xxxx")
    assert SRigL(1.0, 0.95).update(full, at([0.1] * 8, torch.rand(2, 4), full)).equal(full)


def test_settings():
    assert (SRigL().fraction, SRigL().gamma, SRigL.replaces_step, SRigL.default_pattern) == (0.3, 0.3, True, FanIn())
    for wrong in ({"fraction": 1.1}, {"gamma": -0.1}):
        with pytest.raises(ValueError, match=r"is a share of the connections and lies in \[0, 1\]"):
            SRigL(**wrong)
    given = example_signals(topology_of(BEFORE), torch.tensor(VALUES), torch.tensor(GRADIENT), FanIn())
    assert given.output is False
