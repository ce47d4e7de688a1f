"""The momentum of absent connections over several steps, each scaled by its own factor: what a dense optimizer would hold."""

import copy

import pytest
import torch
from training import Spy, backward, two_layers

import truesparse as ts
from truesparse.nn import topology_layers

BETAS, EPSILON = (0.7, 0.9), 1e-6


@pytest.mark.parametrize("masked", [False, True], ids=["sparse", "masked"])
@pytest.mark.parametrize("adam", [False, True], ids=["SGD", "Adam"])
def test_each_step_of_a_window_is_clipped_by_its_own_factor(masked, adam):
    """What SNFS ranks by. The dense optimizers here are given the clipped dense gradients."""
    model, window, shown = two_layers(masked), 3, []

    def look(topology, signals):
        shown.append((signals.name, signals.absent_momentum.rows(0, topology.shape[0]), signals.momentum, topology))
        return topology

    spy = Spy(look)
    spy.window = window

    def optimizer_of(parameters):
        if adam:
            return torch.optim.Adam(parameters, lr=0.01, betas=BETAS, eps=EPSILON)
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.7)

    optimizer = optimizer_of(model.parameters())
    rewirer = ts.Rewirer(model, optimizer, spy, every=window)
    weights = {name: torch.nn.Parameter(torch.zeros(layer.topology.shape).double()) for name, layer in topology_layers(model).items()}
    theirs, factors = optimizer_of(weights.values()), []
    for step, most in enumerate([0.5, 1e6, 0.01]):
        dense = ts.densify(copy.deepcopy(model))
        for part in range(2):
            backward(model, 2 * step + part)
            backward(dense, 2 * step + part)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
        factors.append(min(1.0, most / (float(norm) + 1e-6)))
        for name, weight in weights.items():
            weight.grad = factors[-1] * dense.get_submodule(name).weight.grad
        theirs.step()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
    assert factors[0] < 1
    assert factors[1] == 1
    assert factors[2] < 0.1
    assert [name for name, *_ in shown] == list(weights)
    for name, found, present, topology in shown:
        state = theirs.state[weights[name]]
        expected = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + EPSILON) if adam else state["momentum_buffer"]
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(present, expected.flatten()[topology.keys], rtol=1e-8, atol=1e-12)
