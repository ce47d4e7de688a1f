"""What scripts have around an optimizer: groups, schedules, groups added later, checkpointed activations, weights it keeps itself.

Each run is that of the masked twin: the same topologies, the same weights up to rounding.
"""

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, OneCycleLR, ReduceLROnPlateau, SequentialLR
from torch.utils.checkpoint import checkpoint_sequential
from training import Spy, backward, two_layers

from truesparse import SET, Move, Rewirer, RigL, SparseLinear, rewire
from truesparse.nn import topology_layers

STEPS = 16


def trained(masked, make, algorithm, schedule=None, at_step=None, passes=backward, attached=False):
    """A run: (model, optimizer, rewirer, loss of each step)."""
    model = two_layers(masked)
    optimizer = make(model)
    rewirer = Rewirer(model, optimizer, algorithm, 3, STEPS, torch.Generator().manual_seed(0))
    scheduler = None if schedule is None else schedule(optimizer)
    if attached:
        rewirer.attach()
    losses = []
    for step in range(STEPS):
        if at_step is not None:
            at_step(step, model, optimizer)
        losses.append(passes(model, step))
        if attached or rewirer.step():
            optimizer.step()
        if scheduler is not None:
            scheduler.step(*([losses[-1]] if isinstance(scheduler, ReduceLROnPlateau) else []))
        optimizer.zero_grad()
    assert rewirer.rewirings == 5
    return model, optimizer, rewirer, torch.stack(losses)


def check_alike(make, algorithm, **settings):
    """Sparse as masked; returns the sparse run."""
    runs = [trained(masked, make, algorithm, **settings) for masked in (False, True)]
    (sparse, _, _, losses), (twin, _, _, of_twin) = runs
    for name, layer in topology_layers(sparse).items():
        other = twin.get_submodule(name)
        assert layer.topology.equal(other.topology)
        torch.testing.assert_close(layer.to_dense(), other.to_dense(), rtol=1e-8, atol=1e-11)
        torch.testing.assert_close(layer.bias, other.bias, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(losses, of_twin, rtol=1e-8, atol=1e-11)
    return runs[0]


def groups(model):
    """Each layer has its own settings, and biases do not decay."""
    first, second = topology_layers(model).values()
    return [
        {"params": [first.parameter], "lr": 0.05, "weight_decay": 0.3},
        {"params": [second.parameter], "lr": 0.01, "weight_decay": 0.0},
        {"params": [first.bias, second.bias], "weight_decay": 0.0},
    ]


BOTH = pytest.mark.parametrize("algorithm", [RigL(0.5), SET(0.5)], ids=["RigL", "SET"])


@BOTH
@pytest.mark.parametrize("make", [lambda held: AdamW(held, lr=0.02), lambda held: SGD(held, lr=0.02, momentum=0.9, nesterov=True)])
def test_groups_have_their_own_settings(make, algorithm):
    grouped, optimizer, *_ = check_alike(lambda model: make(groups(model)), algorithm)
    alike = trained(False, lambda model: make(model.parameters()), algorithm)[0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 2]
    assert not torch.equal(grouped[0].bias, alike[0].bias)


def test_an_algorithm_sees_the_rate_of_each_layers_group_as_its_schedule_left_it():
    spy = Spy()
    trained(False, lambda model: Adam(groups(model), lr=0.02), spy, lambda optimizer: LinearLR(optimizer, 1.0, 0.0, total_iters=100))
    for signals, rewiring in zip(spy.seen, [at for at in range(3, STEPS, 3) for _ in range(2)], strict=True):
        assert signals.learning_rate == pytest.approx((0.05 if signals.name == "0" else 0.01) * (1 - (rewiring - 1) / 100))


SCHEDULES = {
    "one cycle, which moves the betas too": lambda optimizer: OneCycleLR(optimizer, 0.05, total_steps=STEPS),
    "warm-up, then a cosine": lambda optimizer: SequentialLR(
        optimizer, [LinearLR(optimizer, 0.1, total_iters=4), CosineAnnealingLR(optimizer, STEPS - 4)], [4]
    ),
    "on a plateau": lambda optimizer: ReduceLROnPlateau(optimizer, threshold=0.5, patience=0),
}


@BOTH
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name, algorithm):
    _, optimizer, *_ = check_alike(lambda model: AdamW(groups(model), lr=0.02), algorithm, schedule=SCHEDULES[name])
    assert any(group["lr"] != rate for group, rate in zip(optimizer.param_groups, (0.05, 0.01, 0.02), strict=True))


@BOTH
def test_a_schedule_warns_of_nothing_where_the_first_step_is_a_rewiring(algorithm):
    """Warnings are errors here: a rewiring in the place of the step would look like a schedule before the optimizer."""
    model = two_layers()
    optimizer = SGD(model.parameters(), lr=0.1)
    rewirer = Rewirer(model, optimizer, algorithm, 2, STEPS, torch.Generator().manual_seed(0))
    scheduler = CosineAnnealingLR(optimizer, STEPS)
    for step in range(4):
        backward(model, step)
        if rewirer.step():
            optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    assert rewirer.rewirings == 2


@BOTH
@pytest.mark.parametrize("attached", [False, True])
@pytest.mark.filterwarnings("ignore:the optimizer does not hold the parameters of '2'")
def test_a_group_added_later_is_trained_and_rewired_from_then_on(algorithm, attached):
    """As in gradual unfreezing: the second layer joins at step 7, in a group of its own."""
    seen = []

    def add(step, model, optimizer):
        if step == 7:
            optimizer.add_param_group({"params": list(model[2].parameters()), "lr": 0.01})
        if step in (6, 15):
            seen.append(model[2].topology)

    start = two_layers()[2].topology
    model, optimizer, *_ = check_alike(lambda model: Adam(model[0].parameters(), lr=0.05), algorithm, at_step=add, attached=attached)
    assert all(topology.equal(start) for topology in seen[::2])
    assert not any(topology.equal(start) for topology in seen[1::2])
    assert optimizer.state[model[2].values]["exp_avg"].shape == model[2].values.shape


def in_segments(reentrant):
    def passes(model, step):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(step), dtype=torch.float64).requires_grad_()
        loss = checkpoint_sequential(model, 2, x, use_reentrant=reentrant).pow(2).mean()
        loss.backward()
        return loss.detach()

    return passes


@BOTH
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_checkpointed_activations_change_nothing(reentrant, masked, algorithm):
    """Layers run a second time in the backward pass, in one of their own with `use_reentrant`: each gradient counts once. Bit for bit."""
    model, _, _, losses = trained(masked, lambda model: Adam(model.parameters(), lr=0.05), algorithm)
    checkpointed, _, _, others = trained(masked, lambda model: Adam(model.parameters(), lr=0.05), algorithm, passes=in_segments(reentrant))
    assert torch.equal(losses, others)
    for name, layer in topology_layers(model).items():
        assert layer.topology.equal(checkpointed.get_submodule(name).topology)
        assert torch.equal(layer.parameter, checkpointed.get_submodule(name).parameter)


class ScheduleFree(Optimizer):
    """Schedule-free gradient descent (Defazio et al. 2024, https://arxiv.org/abs/2405.15682), where the model trains at y.

    z <- z - lr g; x <- (1 - 1/t) x + z/t; y = (1 - beta) z + beta x. Of the three it keeps z; y is in the model.
    """

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1, "beta": 0.9})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for group in self.param_groups:
            for y in group["params"]:
                z = self.state[y].setdefault("z", y.detach().clone())
                x = (y - 0.1 * z) / 0.9
                z -= 0.1 * y.grad
                y.copy_(0.1 * z + 0.9 * x.lerp(z, 1 / self.steps))


@BOTH
def test_weights_that_an_optimizer_keeps_beside_the_models_own(algorithm):
    model, optimizer, rewirer, _ = check_alike(lambda model: ScheduleFree(model.parameters()), algorithm)
    assert optimizer.state[model[0].values]["z"].shape == model[0].values.shape
    assert rewirer.rewirings


def test_a_connection_that_grows_at_a_value_has_that_value_in_them_too():
    layer = SparseLinear(4, 3, sparsity=0.5)
    optimizer = ScheduleFree(layer.parameters())
    layer(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    old = layer.topology
    new = old.grow(next(key for key in torch.arange(12) if key not in old.keys)[None])
    rewire(layer, optimizer, Move.through(old, old, new, torch.tensor([0.7])))
    grown = ~torch.isin(new.keys, old.keys)
    assert layer.values[grown].tolist() == optimizer.state[layer.values]["z"][grown].tolist() == [pytest.approx(0.7)]
