"""Connections that have just grown are trained as by an optimizer without weight decay, to the bit; all others as by one with it."""

import copy

import pytest
import torch
from training import Spy, backward, two_layers

import truesparse as ts
from truesparse.nn import topology_layers
from truesparse.stability import DecayGrace

OPTIMIZERS = {
    "sgd": lambda parameters, **decay: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **decay),
    "ascent": lambda parameters, **decay: torch.optim.SGD(parameters, lr=0.01, maximize=True, **decay),
    "adam": lambda parameters, **decay: torch.optim.Adam(parameters, lr=0.05, **decay),
    "adamw": lambda parameters, **decay: torch.optim.AdamW(parameters, lr=0.05, **decay),
    "foreach": lambda parameters, **decay: torch.optim.AdamW(parameters, lr=0.05, foreach=True, **decay),
    "radam": lambda parameters, **decay: torch.optim.RAdam(parameters, lr=0.05, decoupled_weight_decay=True, **decay),
    "rmsprop": lambda parameters, **decay: torch.optim.RMSprop(parameters, lr=0.01, **decay),
    "adagrad": lambda parameters, **decay: torch.optim.Adagrad(parameters, lr=0.05, **decay),
}
DECAY = 0.3


def exchange(topology, signals):
    """Drops the first five connections and grows five elsewhere; only once."""
    absent = (~topology.mask()).flatten().nonzero().squeeze(1)
    return ts.Move.through(topology, kept := topology.drop(torch.arange(5)), kept.grow(absent[-5:]), torch.full((5,), 0.5))


def made(masked, kind, decay, replaces_step=False):
    model = two_layers(masked)
    optimizer = OPTIMIZERS[kind](model.parameters(), weight_decay=decay)
    return model, ts.Rewirer(model, optimizer, Spy(exchange, replaces_step), every=3, until=5)


def step(model, rewirer, seed):
    rewirer.optimizer.zero_grad()
    backward(model, seed)
    if rewirer.step():
        rewirer.optimizer.step()


def values(model):
    return {name: layer.of_connections(layer.parameter.detach()).clone() for name, layer in topology_layers(model).items()}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_is_that_of_two_optimizers(kind, masked):
    """Each step from one state is taken three times: as it is, with decay for all, and with decay for none."""
    model, rewirer = made(masked, kind, DECAY)
    grace = DecayGrace(rewirer, steps=2)
    spared_steps = []
    for number in range(8):
        found = {}
        if number > 3:  # the rewiring is over: copies of the state can be stepped without it
            for decay in (0.0, DECAY):
                other, others = made(masked, kind, decay)
                other.load_state_dict(model.state_dict())
                others.detach()
                state = copy.deepcopy(rewirer.optimizer.state_dict())
                for group in state["param_groups"]:
                    group["weight_decay"] = decay
                others.optimizer.load_state_dict(state)
                backward(other, number)
                others.optimizer.step()
                found[decay] = values(other), other[0].bias
        born = {name: array >= grace.steps + 1 for name, array in grace._spared_to.items()}
        step(model, rewirer, number)
        assert all(group["weight_decay"] == DECAY for group in rewirer.optimizer.param_groups)
        if not found:
            continue
        spared_steps.append(sum(int(array.sum()) for array in born.values()))
        for name, array in values(model).items():
            assert torch.equal(array, torch.where(born[name], found[0.0][0][name], found[DECAY][0][name])), (name, number)
            assert not torch.equal(found[0.0][0][name], found[DECAY][0][name])
        assert torch.equal(model[0].bias, found[DECAY][1]), "other parameters decay as ever"
    # Rewired after the third step: the fourth and the fifth are spared; the comparison begins with the fifth.
    assert spared_steps == [10, 0, 0, 0]


@pytest.mark.parametrize("attached", [False, True])
def test_a_replaced_step_uses_up_no_grace(attached):
    model, rewirer = made(False, "sgd", DECAY, replaces_step=True)
    if attached:
        rewirer.attach()
    grace = DecayGrace(rewirer, steps=2)
    for number in range(5):
        rewirer.optimizer.zero_grad()
        backward(model, number)
        if attached or rewirer.step():
            rewirer.optimizer.step()
        if number == 2:
            assert grace.steps == 2, "the third was a topology update"
            assert grace._latest == 4
    assert grace.steps == grace._latest == 4


def test_algorithms_see_gradients_and_values_without_the_detour():
    """A rewiring right after a step sees the gradient of the loss, not the one with decay in it."""
    seen = []

    def look(topology, signals):
        seen.append(signals.gradients.clone())
        return exchange(topology, signals)

    model = two_layers()
    rewirer = ts.Rewirer(model, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=DECAY), Spy(look), every=1)
    DecayGrace(rewirer, steps=5)
    for number in range(3):
        rewirer.optimizer.zero_grad()
        backward(model, number)
        expected = [layer.parameter.grad.clone() for layer in topology_layers(model).values()]
        if rewirer.step():
            rewirer.optimizer.step()
        for found, wanted in zip(seen, expected, strict=True):
            assert torch.equal(found, wanted)
        seen.clear()


def test_a_gradient_discarded_within_the_step_stays_discarded():
    """A hook of the user's that clears gradients after each step: none may come back."""
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=DECAY)
    rewirer = ts.Rewirer(model, optimizer, Spy(exchange), every=1)
    optimizer.register_step_post_hook(lambda stepped, *_: stepped.zero_grad())
    grace = DecayGrace(rewirer, steps=5)
    for number in range(3):
        backward(model, number)
        assert rewirer.step()
        optimizer.step()
        assert all(parameter.grad is None for parameter in model.parameters())
    assert grace.steps == 3


def test_states():
    model, rewirer = made(False, "adamw", DECAY)
    grace = DecayGrace(rewirer, steps=3)
    for number in range(4):
        step(model, rewirer, number)
    saved = copy.deepcopy([part.state_dict() for part in (model, rewirer.optimizer, rewirer, grace)])
    other, others = made(False, "adamw", DECAY)
    again = DecayGrace(others, steps=3)
    for part, state in zip((other, others.optimizer, others, again), saved, strict=True):
        part.load_state_dict(state)
    for number in range(4, 8):
        step(model, rewirer, number)
        step(other, others, number)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    smaller = ts.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 12)), 0.9)
    theirs = DecayGrace(ts.Rewirer(smaller, torch.optim.SGD(smaller.parameters(), lr=1.0), ts.SET()), steps=1)
    with pytest.raises(ValueError, match=r"expected the state of layers with \{'0': 10\} connections, got .*: load the model's own state"):
        theirs.load_state_dict(grace.state_dict())


def test_what_it_cannot_do_is_said():
    model = two_layers()

    def rewirer(optimizer):
        return ts.Rewirer(model, optimizer, ts.SET())

    with pytest.raises(TypeError, match="it is not known how Rprop decays weights; known are SGD, Adam, AdamW"):
        DecayGrace(rewirer(torch.optim.Rprop(model.parameters())), 3)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    for steps in (0, 1.5, True):
        with pytest.raises(ValueError, match="steps must be a whole number, at least 1"):
            DecayGrace(rewirer(sgd), steps)
    held = rewirer(sgd)
    grace = DecayGrace(held, 3)
    backward(model)
    with pytest.raises(RuntimeError, match=r"call rewirer\.step\(\) before optimizer\.step\(\), or rewirer\.attach\(\) once"):
        sgd.step()
    held.step()
    with pytest.raises(RuntimeError, match="weight decay cannot spare connections where the optimizer calls a closure"):
        sgd.step(lambda: 0.0)
    grace.detach()
    sgd.step()


def test_attaching_afterwards_is_attaching_before():
    states = []
    for before in (True, False):
        model, rewirer = made(False, "sgd", DECAY)
        if before:
            rewirer.attach()
        DecayGrace(rewirer, steps=2)
        if not before:
            rewirer.attach()
        for step in range(5):
            backward(model, step)
            rewirer.optimizer.step()
            rewirer.optimizer.zero_grad()
        states.append(model.state_dict())
    assert all(torch.equal(entry, states[1][name]) for name, entry in states[0].items())
