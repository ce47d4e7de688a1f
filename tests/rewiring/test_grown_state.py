"""What an optimizer keeps of a connection that has just grown, and what its first updates are: against the formula, and the masked twin."""

import math

import pytest
import torch
from oracles import made
from torch.optim import SGD, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop
from training import backward, topologies, two_layers

from truesparse import SET, MaskedLinear, Rewirer, RigL, SparseLinear
from truesparse.nn import topology_layers

LONG_AGO = 100_000  # steps, after which no bias is left to correct
RATE, FIRST, SECOND = 1e-3, 0.9, 0.999


class Grow:
    """Adds the connection at (1, 2), once."""

    replaces_step, sees_absent, keeps_count = False, False, False

    def update(self, topology, signals):
        return topology.grow(torch.tensor([1 * 3 + 2])) if topology.nnz == 3 else topology


def updates_after_growth(kind, grown_state, steps, before=LONG_AGO, make=AdamW, gradient=(1.0, 1.0)):
    """(first updates of a grown connection, of one that was there), in learning rates. Gradients never change: these, by column."""
    layer = kind.from_dense(torch.nn.Linear(3, 2, bias=False).double(), made((2, 3), {(0, 0), (0, 2), (1, 0)}))
    optimizer = make(layer.parameters(), lr=RATE, betas=(FIRST, SECOND), eps=1e-30, weight_decay=0.0)
    rewirer = Rewirer(layer, optimizer, Grow(), every=2, until=4, grown_state=grown_state)
    x = torch.tensor([[gradient[0], 0.0, gradient[1]]], dtype=torch.float64)
    weights = []
    for step in range(steps + 2):
        layer(x).sum().backward()
        assert rewirer.step()
        if step == 1:
            state = optimizer.state[layer.parameter]
            state["step"].fill_(before - 1.0)  # as if training had been going on
            moments = {"exp_avg": 1 - FIRST ** (before - 1), "exp_avg_sq": 1 - SECOND ** (before - 1)}
            for power, (name, share) in enumerate(moments.items(), 1):
                state[name].copy_(share * layer.parameter.grad**power)
        optimizer.step()
        optimizer.zero_grad()
        weights.append(layer.to_dense().detach())
    assert layer.topology.nnz == 4
    steps_taken = -torch.stack(weights).diff(dim=0)[1:] / RATE
    return steps_taken[:, 1, 2].tolist(), steps_taken[:, 0, 0].tolist()


@pytest.mark.parametrize("kind", [SparseLinear, MaskedLinear])
@pytest.mark.parametrize("before", [5, 400, LONG_AGO])
def test_with_zero_the_first_updates_are_those_of_the_formula(kind, before):
    grown, old = updates_after_growth(kind, "zero", 20, before)
    for age, update in enumerate(grown, 1):
        now = before + age
        mean, mean_square = (1 - FIRST**age) / (1 - FIRST**now), (1 - SECOND**age) / (1 - SECOND**now)
        assert update == pytest.approx(mean / math.sqrt(mean_square), rel=1e-6)
    assert old == pytest.approx([1.0] * 20, rel=1e-6)
    if before == LONG_AGO:
        assert grown[0] == pytest.approx(3.16, abs=0.01)
        assert max(grown) == grown[11] == pytest.approx(6.57, abs=0.01)


@pytest.mark.parametrize("kind", [SparseLinear, MaskedLinear])
@pytest.mark.parametrize("gradient", [(1.0, 1.0), (1.0, 0.5), (1.0, 20.0)])
def test_with_warm_they_begin_at_the_mean_of_the_layer(kind, gradient):
    grown, old = updates_after_growth(kind, "warm", 20, gradient=gradient)
    mean = (2 * gradient[0] ** 2 + gradient[1] ** 2) / 3  # over the three that were there
    for age, update in enumerate(grown, 1):
        kept = SECOND**age
        assert update == pytest.approx((1 - FIRST**age) * gradient[1] / math.sqrt(kept * mean + (1 - kept) * gradient[1] ** 2), rel=1e-6)
    assert old == pytest.approx([1.0] * 20, rel=1e-6)
    if gradient == (1.0, 1.0):
        assert grown == sorted(grown), "never more than others'"
        assert grown[-1] < 1


@pytest.mark.parametrize("make", [Adam, AdamW, NAdam, RAdam, lambda parameters, lr: Adam(parameters, lr, amsgrad=True, foreach=True)])
@pytest.mark.parametrize("algorithm", [RigL(0.5), SET(0.5)], ids=["RigL", "SET"])
def test_warm_training_is_that_of_the_masked_twin(make, algorithm):
    runs = []
    for masked in (False, True):
        model = two_layers(masked)
        optimizer = make(model.parameters(), lr=0.01)
        rewirer = Rewirer(model, optimizer, algorithm, 3, 20, torch.Generator().manual_seed(0), grown_state="warm")
        for step in range(20):
            backward(model, step)
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
        assert rewirer.rewirings > 5
        layers = topology_layers(model)
        second = [layer.of_connections(optimizer.state[layer.parameter]["exp_avg_sq"]) for layer in layers.values()]
        runs.append([*(layer.to_dense().detach() for layer in layers.values()), *second])
    for sparse, masked in zip(*runs, strict=True):
        torch.testing.assert_close(sparse, masked, rtol=1e-9, atol=1e-12)
        assert sparse.count_nonzero() > 0


@pytest.mark.parametrize("masked", [False, True])
def test_only_the_second_moment_of_grown_connections_differs(masked):
    model = two_layers(masked)
    optimizer = Adam(model.parameters(), 0.01, amsgrad=True)
    rewirer = Rewirer(model, optimizer, SET(0.5), every=3, grown_state="warm")
    moves, before = {}, {}
    rewirer.register_hook(moves.update)
    optimizer.register_step_post_hook(
        lambda *_: before.update(
            {
                (name, key): layer.of_connections(held).clone()
                for name, layer in rewirer.layers.items()
                for key, held in optimizer.state[layer.parameter].items()
                if key != "step"
            }
        )
    )
    rewirer.rewire_last()
    for step in range(3):
        optimizer.zero_grad()
        backward(model, step)
        rewirer.step()
        optimizer.step()
    for (name, key), was in before.items():
        layer, grown = rewirer.layers[name], moves[name].grown
        now = layer.of_connections(optimizer.state[layer.parameter][key])
        assert torch.equal(now[~grown], was[moves[name].source[~grown]])
        assert 0 < int(grown.sum()) < len(grown)
        expected = was.mean() if key == "exp_avg_sq" else torch.zeros(())
        torch.testing.assert_close(now[grown], expected.expand(int(grown.sum())).to(now))


def test_a_layer_that_never_stepped_and_one_without_connections():
    layers = torch.nn.ModuleList([SparseLinear(4, 3, sparsity=0.5), SparseLinear.from_dense(torch.nn.Linear(3, 2), made((2, 3), set()))])
    optimizer = Adam(layers.parameters(), 0.1)
    rewirer = Rewirer(layers, optimizer, SET(0.5), every=1, grown_state="warm")
    for _ in range(2):
        layers[0](torch.ones(1, 4)).sum().backward()
        rewirer.step()
        optimizer.step()
        layers[1](torch.ones(1, 3)).sum().backward()
    assert layers[1].topology.nnz == 0
    assert rewirer.rewirings == 2


@pytest.mark.parametrize("make", [SGD, RMSprop, Adamax])
def test_an_optimizer_without_a_second_moment_is_refused_at_once(make):
    model = two_layers()
    says = rf"grown_state='warm' starts the second moment .* 'exp_avg_sq', and {make.__name__} keeps none: leave grown_state out"
    with pytest.raises(ValueError, match=says):
        Rewirer(model, make(model.parameters(), 0.1), RigL(), grown_state="warm")


class Signed(Optimizer):
    """Lion in short: it keeps a first moment alone."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                state["exp_avg"] = state.get("exp_avg", torch.zeros_like(parameter)).lerp(parameter.grad, 0.1)
                parameter -= 0.01 * state["exp_avg"].sign()


def test_or_when_its_state_is_there_and_nothing_changes():
    model = two_layers()
    optimizer = Signed(model.parameters(), {"betas": (0.9, 0.99)})
    optimizer.param_groups[0]["lr"] = 0.01
    rewirer = Rewirer(model, optimizer, SET(), every=2, grown_state="warm")
    before = topologies(model)
    for step in range(2):
        backward(model, step)
        rewirer.step()
        if step == 0:
            optimizer.step()
    with pytest.raises(ValueError, match=r"and Signed keeps none: leave grown_state out"):
        optimizer.step()
    assert topologies(model) == before


def test_adafactors_second_moment_may_be_warm_too():
    transformers = pytest.importorskip("transformers.optimization")
    model = two_layers()
    optimizer = transformers.Adafactor(model.parameters())
    rewirer = Rewirer(model, optimizer, SET(0.5), every=4, grown_state="warm")
    moves = {}
    rewirer.register_hook(moves.update)
    for step in range(4):
        optimizer.zero_grad()
        backward(model, step)
        rewirer.step()
        optimizer.step()
    for name, layer in rewirer.layers.items():
        second, grown = optimizer.state[layer.parameter]["exp_avg_sq"], moves[name].grown
        assert bool((second[grown] == second[grown][0]).all())
        assert float(second[~grown].min()) < float(second[grown][0]) < float(second[~grown].max())


def test_a_rule_that_there_is_not():
    model = two_layers()
    with pytest.raises(ValueError, match=r"grown_state is 'zero' or 'warm', got 'hot'"):
        Rewirer(model, Adam(model.parameters()), RigL(), grown_state="hot")
