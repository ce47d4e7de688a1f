"""What becomes part of a layer: its norm and its activation, where nothing else reads what lies between."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from truesparse import MaskedLinear, SparseConv2d, SparseLinear, sparsify
from truesparse.inference import FusedLayer, simplify

ACTIVATIONS = [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.3), nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(), nn.Sigmoid(), nn.Tanh()]


class Net(nn.Module):
    """A layer, a norm and an activation, called as a function says."""

    def __init__(self, function, layer, norm=None, activation=None):
        super().__init__()
        self.function, self.layer, self.norm, self.activation = function, layer, norm, activation

    def forward(self, x):
        return self.function(self, x)


def trained(norm):
    """A norm with statistics, weights and biases as after training."""
    for array in (norm.running_mean, norm.weight, norm.bias):
        if array is not None:
            array.data.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm.double()


def same(model, x):
    """The simplified model, after a look at its output."""
    simplified = simplify(model, x)
    torch.testing.assert_close(simplified.module(x), model.eval()(x), rtol=1e-9, atol=1e-9)
    return simplified


def called(simplified):
    """What the graph calls, in order."""
    graph = simplified.module.graph
    return [str(node.target) for node in graph.nodes if node.op not in ("placeholder", "output")]


LAYERS = {
    "linear": lambda bias: (nn.Linear(4, 3, bias), nn.BatchNorm1d(3), (4,)),
    "sparse linear": lambda bias: (SparseLinear(4, 3, bias, sparsity=0.2), nn.BatchNorm1d(3), (4,)),
    "masked linear": lambda bias: (MaskedLinear(4, 3, bias, sparsity=0.2), nn.BatchNorm1d(3), (4,)),
    "convolution": lambda bias: (nn.Conv2d(4, 6, 3, groups=2, bias=bias), nn.BatchNorm2d(6), (4, 5, 5)),
    "sparse convolution": lambda bias: (
        SparseConv2d(4, 6, 3, 2, "valid", groups=2, bias=bias, sparsity=0.2),
        nn.BatchNorm2d(6, affine=False),
        (4, 5, 5),
    ),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", LAYERS)
def test_norm_dropout_and_activation_become_one_call(kind, bias):
    layer, norm, shape = LAYERS[kind](bias)
    model = nn.Sequential(nn.Dropout(), layer.double(), nn.Identity(), trained(norm), nn.Dropout(), nn.ReLU(), nn.Dropout(0.2))
    x = torch.randn(3, *shape, dtype=torch.float64)
    before = {name: array.clone() for name, array in model.state_dict().items()}
    simplified = same(model, x)
    assert called(simplified) == ["1"]
    fused = simplified.module.get_submodule("1")
    assert isinstance(fused, FusedLayer)
    assert type(fused.layer) is type(layer)
    change = simplified.layers[0]
    assert (change.name, change.norm, change.activation) == ("1", "3", "ReLU()")
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=repr)
def test_activations(activation):
    model = nn.Sequential(SparseLinear(4, 3, sparsity=0.2, dtype=torch.float64), activation)
    simplified = same(model, torch.randn(5, 4, dtype=torch.float64))
    assert called(simplified) == ["0"]
    assert simplified.layers[0].activation == repr(activation)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.relu, "ReLU()"),
        (torch.relu, "ReLU()"),
        (lambda x: x.relu(), "ReLU()"),
        (lambda x: F.relu(x, inplace=True), "ReLU()"),
        (F.relu6, "ReLU6()"),
        (lambda x: F.leaky_relu(x, 0.2), "LeakyReLU(negative_slope=0.2)"),
        (lambda x: F.leaky_relu(negative_slope=0.2, input=x), "LeakyReLU(negative_slope=0.2)"),
        (lambda x: F.gelu(x, approximate="tanh"), "GELU(approximate='tanh')"),
        (F.silu, "SiLU()"),
        (F.hardswish, "Hardswish()"),
        (torch.sigmoid, "Sigmoid()"),
        (lambda x: x.tanh(), "Tanh()"),
        (lambda x: F.dropout(F.relu(x), 0.5, training=False), "ReLU()"),
    ],
)
def test_functions_and_methods_are_activations_too(function, name):
    model = Net(lambda m, x: function(m.layer(x)), SparseLinear(4, 3, sparsity=0.2, dtype=torch.float64))
    simplified = same(model, torch.randn(5, 4, dtype=torch.float64))
    assert called(simplified) == ["layer"]
    assert simplified.layers[0].activation == name


def test_a_layer_called_twice_is_fused_if_the_same_follows_each_time():
    layer, x = nn.Linear(4, 4).double(), torch.randn(3, 4, dtype=torch.float64)
    simplified = same(Net(lambda m, x: F.relu(m.layer(F.relu(m.layer(x)))), layer), x)
    assert called(simplified) == ["layer", "layer"]
    simplified = same(Net(lambda m, x: F.relu(m.layer(torch.tanh(m.layer(x)))), layer), x)
    assert simplified.layers[0].activation == ""


def test_one_norm_goes_into_two_layers():
    model = Net(
        lambda m, x: m.norm(m.layer[0](x)) + m.norm(m.layer[1](x)), nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), nn.BatchNorm1d(3)
    )
    trained(model.norm)
    simplified = same(model.double(), torch.randn(5, 4, dtype=torch.float64))
    assert [(change.joined, change.norm) for change in simplified.layers] == [(("layer.0", "layer.1"), "norm")]


STAYS = {
    "something else reads the layer": lambda m, x: m.norm(y := m.layer(x)) + y,
    "the layer is called twice": lambda m, x: m.norm(m.layer(x)) + m.layer(x),
    "something lies between": lambda m, x: m.norm(torch.tanh(m.layer(x))),
    "something else reads the weight": lambda m, x: m.norm(m.layer(x)) + m.layer.bias,
}


@pytest.mark.parametrize("function", STAYS.values(), ids=STAYS)
def test_a_norm_stays_where(function):
    model = Net(function, nn.Linear(4, 4), trained(nn.BatchNorm1d(4))).double()
    simplified = same(model, torch.randn(5, 4, dtype=torch.float64))
    assert "norm" in called(simplified)
    assert simplified.layers == () or simplified.layers[0].norm is None


def test_a_norm_over_positions_stays():
    model = nn.Sequential(nn.Linear(4, 3), trained(nn.BatchNorm1d(3))).double()
    simplified = same(model, torch.randn(5, 3, 4, dtype=torch.float64))  # it norms dimension 1, the layer's rows are dimension 2
    assert called(simplified) == ["0", "1"]


def test_a_norm_without_running_statistics_stays():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    assert called(same(model, torch.randn(5, 4, dtype=torch.float64))) == ["0", "1"]


def test_hooks_are_called_and_hold_their_modules():
    model = nn.Sequential(nn.Linear(4, 3), trained(nn.BatchNorm1d(3)), nn.ReLU(), nn.Linear(3, 2)).double()
    model[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    model[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    simplified = same(model, torch.randn(5, 4, dtype=torch.float64))
    assert called(simplified) == ["0", "1", "2", "3"]
    assert [change.name for change in simplified.layers] == ["3"]


def test_float32_stays_float32_and_close():
    torch.manual_seed(1)
    model = sparsify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)), 0.8)
    trained(model[1]).float()
    x = torch.randn(4, 3, 6, 6)
    module = simplify(model, x).module
    assert all(array.dtype == torch.float32 for array in module.parameters())
    torch.testing.assert_close(module(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def convolution_and(pool, activation=None, kind=nn.Conv2d):
    torch.manual_seed(0)
    layer = kind(2, 3, 3, padding=1) if kind is nn.Conv2d else kind(2, 3, 3, padding=1, sparsity=0.5)
    return nn.Sequential(layer, *([activation] if activation else []), pool)


@pytest.mark.parametrize("kind", [nn.Conv2d, SparseConv2d])
@pytest.mark.parametrize("activation", [None, nn.ReLU(), nn.ReLU6(), nn.Tanh()])
@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d((2, 2), (2, 2), 0)], ids=str)
def test_a_max_pool_of_two_by_two_becomes_part_of_a_convolution(kind, activation, pool):
    simplified = same(convolution_and(pool, activation, kind).double(), torch.randn(2, 2, 7, 6).double())
    assert called(simplified) == ["0"]
    fused = simplified.module.get_submodule("0")
    assert isinstance(fused, FusedLayer)
    assert isinstance(fused.pool, nn.MaxPool2d)
    assert repr(fused.activation) == repr(activation)


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(3), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, padding=1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2)], ids=str
)
def test_other_pools_stay(pool):
    simplified = same(convolution_and(pool, nn.ReLU()).double(), torch.randn(2, 2, 7, 7).double())
    assert called(simplified) == ["0", "2"]


def test_a_pool_stays_where_something_else_reads_the_convolution():
    def function(self, x):
        y = self.layer(x)
        return F.max_pool2d(y, 2), y.sum()

    model = Net(function, nn.Conv2d(2, 3, 3)).double()
    x = torch.randn(1, 2, 6, 6).double()
    simplified = simplify(model, x)
    assert not any(isinstance(module, FusedLayer) for module in simplified.module.modules())
    for given, wanted in zip(simplified.module(x), model(x), strict=True):
        torch.testing.assert_close(given, wanted)
