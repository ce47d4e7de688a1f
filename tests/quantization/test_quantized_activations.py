"""Activations in int8, by hand and against torch's own; batch norms that are folded before."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import truesparse as ts
from truesparse.nn.quantized import QuantizedConv2d
from truesparse.nn.rounded import RoundedInput
from truesparse.quantization import Affine, quantized_layers
from truesparse.quantization.ranges import Range


def by_hand(x, scale, zero_point):
    """One number after the other, in Python's floats."""
    numbers = [max(-128, min(127, round(one / scale) + zero_point)) for one in x]
    return [scale * (number - zero_point) for number in numbers]


@given(
    low=st.integers(-40, 20).map(lambda one: one / 4),
    span=st.integers(0, 100).map(lambda one: one / 4),
    zero=st.booleans(),
)
def test_every_range_has_zero_and_its_ends(low, span, zero):
    seen = Range(100.0)
    seen.see(torch.tensor([low, low + span, 0.0][: 2 + zero]))
    affine = seen.affine()
    assert affine.scale > 0
    assert -128 <= affine.zero_point <= 127
    ends = [min(low, 0.0), max(low + span, 0.0), 0.0]
    held = by_hand(ends, affine.scale, affine.zero_point)
    assert held[2] == 0.0
    step = (ends[1] - ends[0]) / 255
    for end, one in zip(ends, held, strict=True):
        assert abs(end - one) <= step * (1 + 1e-5), "half a step of the number, half of the zero point"


def test_ranges_by_hand():
    seen = Range(100.0)
    for batch in ([0.0, 2.55], [-2.55, 1.0]):
        seen.see(torch.tensor(batch))
    assert seen.affine() == Affine(pytest.approx(5.1 / 255), 0)  # -128 + 127.5, to even
    relu = Range(100.0)
    relu.see(torch.tensor([0.0, 0.0, 5.1]))
    assert relu.affine() == Affine(pytest.approx(0.02), -128)


def test_a_percentile_leaves_out_what_is_far_away():
    seen = Range(90.0)
    seen.see(torch.cat([torch.arange(0.0, 99.0), torch.tensor([1e6])]))
    seen.see(torch.arange(0.0, 100.0))
    # Ten of a hundred are left out at each end: 10 to 89, in both batches; 0 always lies inside.
    assert (seen.lows, seen.highs) == ([10.0, 10.0], [89.0, 89.0])
    assert seen.affine().scale == pytest.approx(89 / 255)


def test_rounded_inputs_by_hand_and_as_torch_has_them():
    rounded = RoundedInput((0.05, -20), (1.0, 0))
    x = torch.randn(500, generator=torch.Generator().manual_seed(2)) * 5
    x = x[((x / 0.05) % 1 - 0.5).abs() > 1e-3]  # torch multiplies by 1 / scale, which may end on the other side of a half
    x.requires_grad_()
    y = rounded(x)
    assert y.tolist() == pytest.approx(by_hand(x.tolist(), float(rounded.scale), -20), abs=1e-5)
    theirs = torch.fake_quantize_per_tensor_affine(x, 0.05, -20, -128, 127)
    torch.testing.assert_close(y, theirs)
    weights = torch.randn_like(x)
    (own,) = torch.autograd.grad((y * weights).sum(), x)
    (other,) = torch.autograd.grad((theirs * weights).sum(), x)
    torch.testing.assert_close(own, other)
    assert bool((own == 0).any())
    assert bool((own != 0).any())


def normed(bias=False):
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 4, 3, padding=1, bias=bias), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4)
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6, affine=False), nn.ReLU(), nn.Linear(6, 3))
    for _ in range(3):
        model(torch.randn(8, 2, 6, 6) * 3 + 1)
    for norm in (model[1], model[4]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return ts.prune(model, 0.4)


@pytest.mark.parametrize("bias", [False, True])
def test_norms_are_folded_first(bias):
    model, x = normed(bias), torch.randn(16, 2, 6, 6) * 3 + 1
    model.train()
    expected = copy.deepcopy(model).eval()(x).detach()
    ts.quantize(model, 8, data=[x])
    assert [type(model[place]) for place in (1, 4, 7)] == [nn.Identity] * 3
    assert type(model[0]) is QuantizedConv2d
    assert model[0].bias is not None
    assert model.training
    assert all(module.training for module in model.modules())
    model.eval()
    torch.testing.assert_close(model(x), expected, atol=0.05 * float(expected.abs().max()), rtol=0.0)
    exact = copy.deepcopy(ts.dequantize(model))
    for name, layer in ts.nn.topology_layers(normed(bias)).items():
        assert exact.get_submodule(name).topology.equal(layer.topology)


def test_a_folded_layer_is_the_layer_and_its_norm_in_float64():
    model, x = normed(), torch.randn(16, 2, 6, 6)
    layer, norm = model[0], model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    values = layer.values.double() * scale[layer.topology.rows]
    bias = norm.bias.double() - norm.running_mean.double() * scale
    ts.quantize(model, 8, data=[x])
    torch.testing.assert_close(model[0].rounding.trained.double(), values, rtol=1e-6, atol=0.0)
    torch.testing.assert_close(model[0].bias.double(), bias, rtol=1e-5, atol=1e-7)


def test_without_data_norms_stay():
    model = ts.quantize(normed(), 8)
    assert type(model[1]) is nn.BatchNorm2d
    assert model[0].input_rounding is None


class Branches(nn.Module):
    """The first norm is used twice, and the second reads a layer that something else reads, too."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (ts.SparseLinear(5, 5, sparsity=0.2) for _ in range(3))
        self.twice, self.once = nn.BatchNorm1d(5), nn.BatchNorm1d(5)

    def forward(self, x):
        y = self.twice(self.one(x)) + self.twice(self.two(x))
        z = self.three(y)
        return z + self.once(z)


def test_norms_that_something_else_needs_stay():
    model = Branches()
    for _ in range(3):
        model(torch.randn(9, 5))
    x = torch.randn(9, 5)
    expected = copy.deepcopy(model).eval()(x).detach()
    ts.quantize(model, 8, data=x)
    assert type(model.twice) is nn.BatchNorm1d
    assert type(model.once) is nn.BatchNorm1d
    torch.testing.assert_close(model.eval()(x), expected, atol=0.1, rtol=0.0)


class Untraced(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = ts.SparseLinear(5, 5, sparsity=0.2), nn.BatchNorm1d(5)

    def forward(self, x):
        return self.norm(self.layer(x)) if float(x.sum()) > 0 else x


def test_where_nothing_can_be_traced_norms_stay_and_it_is_said():
    model = Untraced()
    with pytest.warns(UserWarning, match="batch norms stay as they are, in float: cannot trace"):
        ts.quantize(model, 8, data=torch.ones(3, 5))
    assert type(model.norm) is nn.BatchNorm1d
    assert quantized_layers(model)["layer"].inputs is not None


def test_ranges_are_those_of_the_folded_network():
    model, x = normed(), torch.randn(16, 2, 6, 6) * 3 + 1
    float_model = copy.deepcopy(model).eval()
    ts.quantize(model, 8, data=[x[:8], x[8:]])
    found = quantized_layers(model)
    outputs = float_model[1](float_model[0](x)).detach()  # with its norm
    inputs = float_model[2](outputs)
    assert found["0"].inputs.scale == pytest.approx(float(x.max() - x.min()) / 255, rel=1e-5)
    assert found["0"].outputs.scale == pytest.approx(float(outputs.max() - outputs.min()) / 255, rel=1e-4)
    assert found["3"].inputs == Affine(pytest.approx(float(inputs.max()) / 255, rel=1e-4), -128)


def test_batches_of_every_form():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = ts.SparseLinear(4, 2)

        def forward(self, features):
            return self.layer(input=features)

    x = torch.randn(6, 4)
    batches = ([{"features": x}], [(x, torch.zeros(6))], x, {"features": x})
    models = [Named() for _ in batches]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    found = {quantized_layers(ts.quantize(model, 8, data=data))["layer"].inputs for model, data in zip(models, batches, strict=True)}
    assert len(found) == 1
    model = Named()
    ts.quantize(model, 8, data=[3.0], forward=lambda network, batch: network(x * batch))
    assert quantized_layers(model)["layer"].inputs.scale == pytest.approx(3 * found.pop().scale, rel=1e-5)


def test_whole_numbers_give_what_the_model_gives():
    """The contract of those who run it elsewhere: int8 x int8 in int32, a bias at the product of the scales."""
    torch.manual_seed(4)
    layer = ts.SparseLinear(30, 7, sparsity=0.6)
    x = torch.randn(11, 30)
    expected = ts.quantize(layer, 8, data=x)(x)
    weights = quantized_layers(layer)[""]
    numbers = ((x.double() / weights.inputs.scale).round() + weights.inputs.zero_point).clamp(-128, 127).to(torch.int64)
    sums = torch.zeros(11, 7, dtype=torch.int64)
    for row, column, number in zip(layer.topology.rows.tolist(), layer.topology.indices.tolist(), weights.numbers.tolist(), strict=True):
        sums[:, row] += number * (numbers[:, column] - weights.inputs.zero_point)
    unit = weights.inputs.scale * weights.table.double()
    sums += (layer.bias.double() / unit).round().to(torch.int64)
    torch.testing.assert_close(sums * unit, expected.double(), atol=float(unit.max()), rtol=1e-5)
