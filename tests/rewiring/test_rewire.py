"""rewire: under every optimizer of torch, each number follows its connection."""

import pytest
import torch
from oracles import made, pairs_of
from torch import nn
from torch.optim import (
    ASGD,
    LBFGS,
    SGD,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    Optimizer,
    RAdam,
    RMSprop,
    Rprop,
)

from truesparse import FanIn, MaskedLinear, Move, SparseLinear, Topology, rewire, testing
from truesparse.algorithms.rigl import RigL
from truesparse.algorithms.set import SET

# (optimizer, settings, state that follows the connections, what of it does not start at 0)
OPTIMIZERS = {
    "SGD": (SGD, {}, set(), {}),
    "momentum": (SGD, {"momentum": 0.9}, {"momentum_buffer"}, {}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}, {"momentum_buffer"}, {}),
    "SGD foreach": (SGD, {"momentum": 0.9, "foreach": True}, {"momentum_buffer"}, {}),
    "SGD fused": (SGD, {"momentum": 0.9, "fused": True}, {"momentum_buffer"}, {}),
    "Adam": (Adam, {}, {"exp_avg", "exp_avg_sq"}, {}),
    "amsgrad": (Adam, {"amsgrad": True}, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}, {}),
    "Adam foreach": (Adam, {"foreach": True}, {"exp_avg", "exp_avg_sq"}, {}),
    "Adam fused": (Adam, {"fused": True}, {"exp_avg", "exp_avg_sq"}, {}),
    "AdamW": (AdamW, {"weight_decay": 0.1}, {"exp_avg", "exp_avg_sq"}, {}),
    "AdamW fused": (AdamW, {"fused": True, "amsgrad": True}, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}, {}),
    "RMSprop": (RMSprop, {}, {"square_avg"}, {}),
    "RMSprop centered": (RMSprop, {"centered": True, "momentum": 0.5}, {"square_avg", "grad_avg", "momentum_buffer"}, {}),
    "Adagrad": (Adagrad, {"initial_accumulator_value": 0.25}, {"sum"}, {"sum": 0.25}),
    "Adagrad fused": (Adagrad, {"fused": True}, {"sum"}, {}),
    "Adadelta": (Adadelta, {}, {"square_avg", "acc_delta"}, {}),
    "Adamax": (Adamax, {}, {"exp_avg", "exp_inf"}, {}),
    "NAdam": (NAdam, {}, {"exp_avg", "exp_avg_sq"}, {}),
    "NAdam foreach": (NAdam, {"foreach": True}, {"exp_avg", "exp_avg_sq"}, {}),
    "RAdam": (RAdam, {}, {"exp_avg", "exp_avg_sq"}, {}),
    "ASGD": (ASGD, {"t0": 1}, {"ax"}, {}),
    "Rprop": (Rprop, {}, {"prev", "step_size"}, {"step_size": 0.01}),
    "Adafactor": (Adafactor, {}, {"variance"}, {}),
}
KINDS = [SparseLinear, MaskedLinear]


def optimizer_for(name, parameters):
    kind, settings, follows, starts = OPTIMIZERS[name]
    return kind(parameters, lr=0.01, **settings), follows, starts


def trained(kind, make, steps=4):
    """(a 6 x 9 layer after some steps, its optimizer, with a gradient in place)."""
    layer = kind(9, 6, sparsity=0.6, dtype=torch.float64)
    optimizer = make(list(layer.parameters()))
    for _ in range(steps):
        optimizer.zero_grad()
        layer(torch.randn(5, 9, dtype=torch.float64)).pow(2).sum().backward()
        optimizer.step()
    return layer, optimizer


def next_topology(topology):
    """A third of the connections gone, as many others in their place and two more."""
    kept = topology.keep(torch.arange(topology.nnz) % 3 != 1)
    empty = torch.tensor([key for key in range(topology.size) if key not in set(topology.keys.tolist())])
    return kept.grow(empty[torch.arange(topology.nnz - kept.nnz + 2) * 2 % empty.numel()].unique())


def by_connection(layer, array):
    return dict(zip(sorted(pairs_of(layer.topology)), layer.of_connections(array).tolist(), strict=True))


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in OPTIMIZERS if (kind, name) != (MaskedLinear, "Adafactor")]
)
def test_every_number_follows_its_connection(kind, name):
    follows, starts = OPTIMIZERS[name][2:]
    layer, optimizer = trained(kind, lambda parameters: optimizer_for(name, parameters)[0])
    parameter, state = layer.parameter, optimizer.state[layer.parameter]
    assert {entry for entry, held in state.items() if isinstance(held, torch.Tensor) and held.shape == parameter.shape} == follows
    before = {entry: by_connection(layer, state[entry]) for entry in follows}
    others = {entry: held.clone() for entry, held in state.items() if entry not in follows and held is not None}
    values, gradient, bias = by_connection(layer, parameter), by_connection(layer, parameter.grad), layer.bias.grad.clone()

    new = next_topology(layer.topology)
    move = rewire(layer, optimizer, new)

    assert layer.topology is new
    assert move.new is new
    assert layer.parameter is parameter
    assert optimizer.state[parameter] is state
    for entry in follows:
        expected = {pair: before[entry].get(pair, starts.get(entry, 0.0)) for pair in pairs_of(new)}
        assert by_connection(layer, state[entry]) == expected, entry
    assert all(torch.equal(state[entry], held) for entry, held in others.items())
    assert by_connection(layer, parameter) == {pair: values.get(pair, 0.0) for pair in pairs_of(new)}
    assert by_connection(layer, parameter.grad) == {pair: gradient.get(pair, 0.0) for pair in pairs_of(new)}
    assert torch.equal(layer.bias.grad, bias)
    assert layer.parameter.requires_grad

    layer(torch.randn(5, 9, dtype=torch.float64)).sum().backward()
    optimizer.step()
    assert all(torch.isfinite(held).all() for held in layer.parameters())


# Adafactor scales its step by the size of the whole parameter, which counts the zeros of a masked weight.
@pytest.mark.parametrize(
    "name",
    [name for name, (kind, settings, *_) in OPTIMIZERS.items() if kind is not Adafactor and not {"foreach", "fused"} & set(settings)],
)
@pytest.mark.parametrize("algorithm", [RigL(0.5), SET(0.4, grown_std=0.1)], ids=["RigL", "SET"])
def test_training_is_that_of_the_masked_twin(monkeypatch, name, algorithm):
    monkeypatch.setitem(testing.OPTIMIZERS, name, lambda parameters: optimizer_for(name, parameters)[0])
    testing.check_against_masked(algorithm, testing.linear_model, name, steps=24, every=4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_move_says_who_starts_anew_and_where(kind):
    layer, optimizer = trained(kind, lambda parameters: Adam(parameters, lr=0.01))
    old, state = layer.topology, optimizer.state[layer.parameter]
    survivors = old.drop(torch.tensor([0, 3]))
    values, average = by_connection(layer, layer.parameter), by_connection(layer, state["exp_avg"])
    anew = sorted(pairs_of(old) - pairs_of(survivors))
    rewire(layer, optimizer, Move.through(old, survivors, old, torch.tensor([7.0, 8.0])))
    assert by_connection(layer, layer.parameter) == values | {anew[0]: 7.0, anew[1]: 8.0}
    assert by_connection(layer, state["exp_avg"]) == average | dict.fromkeys(anew, 0.0)
    assert layer.topology.equal(old)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [None, SGD], ids=["no optimizer", "an optimizer that never stepped"])
def test_without_state(kind, make):
    layer = kind(9, 6, sparsity=0.6)
    optimizer = None if make is None else make(layer.parameters(), 0.1)
    values, new = by_connection(layer, layer.parameter), next_topology(layer.topology)
    rewire(layer, optimizer, new)
    assert by_connection(layer, layer.parameter) == {pair: values.get(pair, 0.0) for pair in pairs_of(new)}
    assert layer.parameter.grad is None


@pytest.mark.parametrize("kind", KINDS)
def test_to_none_and_from_none(kind):
    layer, optimizer = trained(kind, lambda parameters: Adam(parameters, lr=0.01))
    parameter = layer.parameter
    for pairs in (set(), {(2, 3)}, set(), {(0, 0), (5, 8)}):
        rewire(layer, optimizer, made((6, 9), pairs))
        assert not any(by_connection(layer, parameter).values())
        optimizer.zero_grad()
        layer(torch.randn(5, 9, dtype=torch.float64)).sum().backward()
        optimizer.step()
        assert len(by_connection(layer, optimizer.state[parameter]["exp_avg"])) == len(pairs)


class Quarrelling(Optimizer):
    """Keeps a state that cannot follow."""

    def __init__(self, parameters, entry):
        super().__init__(parameters, {})
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {"kept": torch.ones_like(parameter), "odd": entry}

    def step(self, closure=None):
        pass


def lbfgs(layer):
    optimizer = LBFGS(list(layer.parameters())[::-1])

    def closure():
        optimizer.zero_grad()
        loss = layer(torch.ones(3, 9)).pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return optimizer


def adafactor(layer):
    optimizer = Adafactor(layer.parameters())
    layer(torch.ones(3, 9)).pow(2).sum().backward()
    optimizer.step()
    return optimizer


@pytest.mark.parametrize(
    ("kind", "make", "says"),
    [
        (
            SparseLinear,
            lambda layer: Quarrelling(layer.parameters(), torch.zeros(3, 2)),
            r"Quarrelling keeps 'odd', a tensor of shape \(3, 2\)",
        ),
        (
            SparseLinear,
            lambda layer: Quarrelling(layer.parameters(), [1, 2]),
            r"Quarrelling keeps 'odd', a list, for a parameter of shape \(22,\)",
        ),
        (MaskedLinear, adafactor, "Adafactor keeps 'row_var', a tensor of shape .*use an optimizer whose state has the parameter's shape"),
        (SparseLinear, lbfgs, "LBFGS keeps"),
        (MaskedLinear, lbfgs, "LBFGS keeps"),
    ],
)
def test_state_that_cannot_follow_is_refused_and_nothing_changes(kind, make, says):
    layer = kind(9, 6, sparsity=0.6)
    optimizer = make(layer)
    topology, values = layer.topology, layer.parameter.detach().clone()
    with pytest.raises(TypeError, match=says):
        rewire(layer, optimizer, next_topology(topology))
    assert layer.topology is topology
    assert torch.equal(layer.parameter, values)


def test_topologies_that_cannot_be_installed():
    layer = SparseLinear(9, 6, sparsity=0.5, pattern=FanIn())
    topology = layer.topology
    with pytest.raises(ValueError, match=r"a move stays within one shape"):
        rewire(layer, None, made((5, 9), set()))
    with pytest.raises(ValueError, match=r"FanIn\(\) needs the same count, give or take one"):
        rewire(layer, None, topology.drop(torch.tensor([0, 1])))
    other = made((6, 9), {(0, 0)})
    with pytest.raises(ValueError, match=r"the move does not start at the layer's present topology: make it with Move\.between"):
        rewire(layer, None, Move.between(other, topology))
    with pytest.raises(ValueError, match=r"expected 3 values, one for each grown connection, got shape \(2,\)"):
        rewire(layer, None, Move.through(topology, topology.drop(torch.tensor([0, 1, 2])), topology, torch.zeros(2)))
    assert layer.topology is topology


def test_a_graph_that_is_alive_while_the_number_of_connections_changes():
    layer = SparseLinear(9, 6, sparsity=0.7)
    x = torch.randn(4, 9)
    alive = layer(x)
    rewire(layer, None, next_topology(layer.topology))
    layer(x).sum().backward()
    assert layer.values.grad.shape == (layer.topology.nnz,)
    dense = nn.functional.linear(x, layer.to_dense().detach().requires_grad_())
    assert dense.shape == alive.shape


def test_equal_topologies_of_another_object_are_where_a_move_may_start():
    layer = SparseLinear(9, 6, sparsity=0.7)
    again = Topology.from_keys((6, 9), layer.topology.keys)
    rewire(layer, None, Move.between(again, next_topology(again)))
