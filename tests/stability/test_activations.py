"""The penalty is the mean that one writes down by hand, its gradient the one that autograd finds, and it wakes dead neurons."""

import copy

import pytest
import torch
from torch import nn
from training import two_layers

import truesparse as ts
from truesparse.stability import ActivationPenalty
from truesparse.stability.activations import hidden_layers


def test_the_penalty_is_the_sum_of_means():
    model = two_layers()
    penalty = ActivationPenalty([model[0], model[1]], l1=0.3, l2=0.7)
    x = torch.randn(5, 8, dtype=torch.float64)
    model(x)
    before = model[0](x).detach()  # another pass of the first layer, which counts too
    after = before.relu()
    expected = 2 * (0.3 * before.abs().mean() + 0.7 * (before**2).mean()) + 0.3 * after.abs().mean() + 0.7 * (after**2).mean()
    torch.testing.assert_close(penalty.loss(), expected)
    assert penalty.loss() == 0.0, "each pass counts once"


def test_its_gradient_is_that_of_the_masked_network():
    gradients = []
    for masked in (False, True):
        model = two_layers(masked)
        penalty = ActivationPenalty(hidden_layers(model), l1=0.1, l2=0.2)
        x = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        loss = model(x).pow(2).mean() + penalty.loss()
        loss.backward()
        gradients.append([layer.of_connections(layer.parameter.grad) for layer in (model[0], model[2])])
    for sparse, masked in zip(*gradients, strict=True):
        torch.testing.assert_close(sparse, masked)


def test_l2_before_the_relu_revives_a_dead_neuron_and_after_it_does_not():
    x = torch.rand(16, 4)
    alive = {}
    for where in (0, 1):
        model = nn.Sequential(ts.SparseLinear(4, 6, sparsity=0.5), nn.ReLU(), ts.SparseLinear(6, 2, sparsity=0.5))
        with torch.no_grad():
            model[0].bias.fill_(-2.0)  # far below zero for every input
        penalty = ActivationPenalty([model[where]], l2=1.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for _ in range(60):
            optimizer.zero_grad()
            (model(x).pow(2).mean() + penalty.loss()).backward()
            optimizer.step()
        alive[where] = int((model[:2](x) > 0).any(0).sum())
    assert alive[0] >= 5
    assert alive[1] == 0


def test_only_training_counts():
    model = two_layers()
    penalty = ActivationPenalty([model[0]], l2=1.0)
    x = torch.ones(1, 8, dtype=torch.float64)
    model.eval()(x)
    with torch.no_grad():
        model.train()(x)
    assert penalty.loss() == 0.0
    copy.deepcopy(model)(x)
    assert penalty.loss() == 0.0, "a copy of the model reports to nobody"
    penalty.detach()
    model(x)
    assert penalty.loss() == 0.0


def test_half_precision_is_summed_in_float32():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)).bfloat16()
    penalty = ActivationPenalty(hidden_layers(model), l1=1.0)
    model(torch.ones(3, 4, dtype=torch.bfloat16))
    assert penalty.loss().dtype == torch.float32


def test_hidden_layers():
    model = two_layers()
    assert hidden_layers(model) == [model[0]]
    dense = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(1, 1), nn.Linear(1, 1))
    assert hidden_layers(dense) == [dense[0], dense[2]]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (([], 1.0), "expected modules whose outputs are penalised, got none"),
        (([nn.ReLU()], -1.0), r"l1 must be at least 0, got -1\.0"),
        (([nn.ReLU()], 0.0, float("inf")), "l2 must be at least 0, got inf"),
    ],
)
def test_impossible_penalties(arguments, text):
    with pytest.raises(ValueError, match=text):
        ActivationPenalty(*arguments)


def test_the_hoyer_measure_by_hand():
    model = nn.Identity()
    penalty = ActivationPenalty([model], hoyer=2.0)
    x = torch.tensor([[1.0, 1.0, -1.0, 1.0], [0.0, 5.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0]], dtype=torch.float64, requires_grad=True)
    model(x)
    loss = penalty.loss()
    torch.testing.assert_close(loss, torch.tensor(2.0 * (1 + 1 / 4 + 49 / 25 / 4) / 3, dtype=torch.float64))
    model(10 * x)
    torch.testing.assert_close(penalty.loss(), loss)
    assert torch.autograd.gradcheck(lambda x: (model(x), penalty.loss())[1], x[2:, :2].detach().requires_grad_())
    zeros = torch.zeros(2, 3, requires_grad=True)
    model(zeros)
    of_zeros = penalty.loss()
    of_zeros.backward()
    assert of_zeros.item() == 0
    assert torch.equal(zeros.grad, torch.zeros(2, 3))


def test_hoyer_makes_activations_few():
    torch.manual_seed(0)
    x, target = torch.randn(64, 8), torch.randn(64, 3)
    shares = {}
    for hoyer in (0.0, 2.0):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
        penalty = ActivationPenalty([model[1]], hoyer=hoyer)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(150):
            optimizer.zero_grad()
            ((model(x) - target).square().mean() + penalty.loss()).backward()
            optimizer.step()
        shares[hoyer] = ts.metrics.activations(model, x).layers["2"].share
    assert shares[2.0] > shares[0.0] + 0.2, shares
