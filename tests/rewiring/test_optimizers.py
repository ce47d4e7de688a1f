"""Optimizers as users have them: state that follows the connections, and the others, refused by name before anything changes."""

import math

import pytest
import torch
from torch import nn
from torch.optim import Adafactor, Adam, Muon, Optimizer, SparseAdam
from training import Spy, backward, topologies, two_layers

from truesparse import SET, DeepR, MaskedLinear, Rewirer, RigL, SparseLinear
from truesparse.nn import topology_layers
from truesparse.rewiring.absent import Smoothing
from truesparse.rewiring.optimizers import smoothing_of


def train(model, optimizer, algorithm=None, steps=14):
    rewirer = Rewirer(model, optimizer, algorithm or RigL(0.5), 3, 40, torch.Generator().manual_seed(0))
    for step in range(steps):
        backward(model, step)
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
    return rewirer


def weights(model):
    return [layer.to_dense().detach() for layer in topology_layers(model).values()]


class ThreeBetas(Optimizer):
    """Adan's settings (Xie et al. 2022) and state, with the step of plain gradient descent."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01, "betas": (0.98, 0.92, 0.99), "eps": 1e-8})

    def square(self, gradient):
        return gradient**2

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                for name, beta, new in (("exp_avg", 0.98, parameter.grad), ("exp_avg_sq", 0.99, self.square(parameter.grad))):
                    state[name] = state.get(name, torch.zeros_like(new)).lerp(new, 1 - beta)
                parameter -= 0.01 * parameter.grad


class OneNumberForAll(ThreeBetas):
    """As NovoGrad: the second moment of a whole layer is one number."""

    def square(self, gradient):
        return gradient.pow(2).sum()[None]


@pytest.mark.parametrize("make", [ThreeBetas, OneNumberForAll])
def test_states_of_other_shapes_than_adams(make):
    seen = []
    for masked in (False, True):
        model = two_layers(masked)
        spy = Spy()
        spy.window = 2
        train(model, make(model.parameters()), spy, steps=5)
        seen.append([[signals.momentum, signals.absent_momentum.rows(0, 4)] for signals in spy.seen])
    assert len(seen[0]) == 2
    for sparse, twin in zip(*seen, strict=True):
        for one, other in zip(sparse, twin, strict=True):
            torch.testing.assert_close(one, other)


def test_the_second_moments_decay_is_the_last_of_the_betas():
    model = two_layers()
    optimizer = ThreeBetas(model.parameters())
    assert smoothing_of(optimizer, optimizer.param_groups[0]) == Smoothing(0.98, 0.99, 1e-8)
    optimizer = Adam(model.parameters(), betas=(0.5, 0.6), eps=1e-3)
    assert smoothing_of(optimizer, optimizer.param_groups[0]) == Smoothing(0.5, 0.6, 1e-3)


def transformers_adafactor(parameters, **settings):
    return pytest.importorskip("transformers.optimization").Adafactor(parameters, **settings)


FIXED = {"lr": 0.01, "relative_step": False, "scale_parameter": False}
ADAFACTORS = {
    "torch": lambda parameters: Adafactor(parameters, lr=0.01),
    "transformers": transformers_adafactor,
    "transformers with momentum": lambda parameters: transformers_adafactor(parameters, beta1=0.9, **FIXED),
}


@pytest.mark.parametrize("name", ADAFACTORS)
def test_adafactor_keeps_a_whole_second_moment_for_the_values_and_is_that_of_a_vector(name):
    """Without rewirings it is Adafactor of a vector as long, in plain torch; with them the state follows."""
    layer, vector = SparseLinear(6, 5, sparsity=0.5, bias=False, dtype=torch.float64), nn.Parameter(torch.empty(15, dtype=torch.float64))
    vector.data.copy_(layer.values)
    optimizers = [ADAFACTORS[name]([held]) for held in (layer.values, vector)]
    for _ in range(3):
        x = torch.randn(4, 6, dtype=torch.float64)
        layer(x).pow(2).sum().backward()
        nn.functional.linear(x, layer.topology.scatter(vector).view(5, 6)).pow(2).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(layer.values.detach(), vector.detach())

    model = two_layers()
    optimizer = ADAFACTORS[name](model.parameters())
    assert train(model, optimizer).rewirings == 4
    second = {"torch": "variance"}.get(name, "exp_avg_sq")
    assert optimizer.state[model[0].values][second].shape == (33,)
    assert all(bool(weight.isfinite().all()) for weight in weights(model))


@pytest.mark.parametrize("name", ADAFACTORS)
def test_adafactor_of_a_masked_weight_is_factored_and_refused(name):
    model = two_layers(masked=True)
    before = topologies(model)
    with pytest.raises(TypeError, match=r"Adafactor keeps '(row_var|exp_avg_sq_row)', a tensor of shape .* it cannot follow"):
        train(model, ADAFACTORS[name](model.parameters()))
    assert topologies(model) == before


def test_deep_r_needs_a_learning_rate_to_scale_its_noise():
    model = two_layers()
    with pytest.raises(ValueError, match="DeepR's noise is scaled by the learning rate, and the optimizer's is None: give it one"):
        train(model, transformers_adafactor(model.parameters()), DeepR())
    model, spy = two_layers(), Spy()
    train(model, transformers_adafactor(model.parameters()), spy, 4)
    assert math.isnan(spy.seen[0].learning_rate)


class Codes(Optimizer):
    """Keeps a state in eight bits, as bitsandbytes does, or as a tensor of another class, as torchao does."""

    def __init__(self, parameters, make):
        super().__init__(parameters, {"lr": 0.1})
        self.make = make

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["state1"] = self.make(parameter)


class Quantized(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda parameter: torch.zeros(parameter.shape, dtype=torch.uint8), r"Codes keeps 'state1', numbers of eight bits \(torch.uint8\)"),
        (lambda parameter: torch.zeros(parameter.shape).as_subclass(Quantized), "Codes keeps 'state1', a tensor of the class Quantized"),
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_states_of_few_bits_are_refused_and_nothing_changes(make, says, masked):
    model = two_layers(masked)
    before, values = topologies(model), weights(model)
    with pytest.raises(TypeError, match=says + ".*it cannot follow the connections; use an optimizer whose state has"):
        train(model, Codes(model.parameters(), make))
    assert topologies(model) == before
    assert all(torch.equal(one, other) for one, other in zip(values, weights(model), strict=True))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda parameters: Muon([held for held in parameters if held.ndim == 2], lr=0.01),
            r"Muon's step is a function of a whole matrix .* give them to AdamW or SGD and keep Muon for dense layers",
        ),
        (lambda parameters: SparseAdam(parameters, lr=0.01), r"SparseAdam is for gradients that are sparse tensors"),
    ],
)
def test_optimizers_whose_step_cannot_be_taken_are_refused_at_once(make, says):
    model = two_layers()
    with pytest.raises(TypeError, match=says):
        Rewirer(model, make(model.parameters()), RigL())


def test_muon_for_the_dense_layers_beside_adam_for_the_sparse_ones():
    model = nn.Sequential(SparseLinear(8, 8, sparsity=0.5), nn.Linear(8, 8, bias=False)).double()
    muon, adam = Muon(model[1].parameters(), lr=0.01), Adam(model[0].parameters(), lr=0.01)
    rewirer = Rewirer(model, adam, RigL(0.5), every=2, until=10)
    for step in range(5):
        backward(model, step)
        if rewirer.step():
            adam.step()
        muon.step()
        model.zero_grad()
    assert rewirer.rewirings == 2


def test_masked_layers_may_have_muon():
    """Their weight is a matrix. What it does where there is no connection stays without effect."""
    layer = MaskedLinear(8, 6, sparsity=0.5, bias=False)
    optimizer = Muon(layer.parameters(), lr=0.1)
    rewirer = Rewirer(layer, optimizer, SET(0.5), every=2)
    for _ in range(4):
        layer(torch.randn(3, 8)).pow(2).sum().backward()
        rewirer.step()
        optimizer.step()
        optimizer.zero_grad()
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), x @ layer.to_dense().T)
    assert int(layer.to_dense().count_nonzero()) <= layer.topology.nnz
