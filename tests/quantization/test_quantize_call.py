"""Values of few bits, against float64 by hand; gradients through them, by finite sums; and what is refused."""

import copy

import pytest
import torch
from oracles import made
from torch import nn

import truesparse as ts
from truesparse.nn.quantized import KINDS, QuantizedLayer, QuantizedLinear
from truesparse.nn.rounded import straight_through
from truesparse.quantization import Affine, QuantizedWeights, quantized_layers


def linear(values, shape=(3, 4), pairs=((0, 0), (0, 2), (0, 3), (2, 1), (2, 2)), bias=True):
    layer = ts.SparseLinear.from_dense(nn.Linear(shape[1], shape[0], bias), made(shape, set(pairs)))
    with torch.no_grad():
        layer.values.copy_(torch.tensor(values))
    return layer


def net(seed=0, sparsity=0.5):
    torch.manual_seed(seed)
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3)
    return ts.sparsify(nn.Sequential(*layers), sparsity, budget=ts.Uniform()).eval()


def images(count=6):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))


VALUES = [0.5, -1.27, 0.3, 0.01, -0.04]


def test_by_row_by_hand():
    layer = ts.quantize(linear(VALUES), 8)
    assert type(layer) is QuantizedLinear
    numbers = quantized_layers(layer)[""]
    assert numbers.numbers.tolist() == [50, -127, 30, 32, -127]
    assert numbers.numbers.dtype == torch.int8
    assert numbers.table.tolist() == pytest.approx([0.01, 1.0, 0.04 / 127])
    scales = numbers.table[[0, 0, 0, 2, 2]]
    assert torch.equal(layer.values, numbers.numbers * scales)
    assert (numbers.by, numbers.bits, numbers.inputs) == ("row", 8, None)


@pytest.mark.parametrize("bits", range(2, 9))
def test_no_value_is_off_by_more_than_half_a_step(bits):
    model = net()
    before = {name: layer.values.detach().double() for name, layer in ts.nn.topology_layers(model).items()}
    ts.quantize(model, bits)
    for name, layer in ts.nn.topology_layers(model).items():
        topology, own = layer.topology, quantized_layers(model)[name]
        for row in range(topology.shape[0]):
            here = topology.rows == row
            values = before[name][here]
            step = float(values.abs().max()) / (2 ** (bits - 1) - 1) if len(values) else 1.0
            assert float(own.table[row]) == pytest.approx(step, rel=1e-6)
            assert not len(values) or float((layer.values[here].detach().double() - values).abs().max()) <= step / 2 * (1 + 1e-5)
        assert int(own.numbers.abs().max()) == 2 ** (bits - 1) - 1


def test_the_forward_pass_is_that_of_the_rounded_values(family):
    model, x = net(), images()
    ts.quantize(model, 3, by="codebook")
    dense = copy.deepcopy(model)
    for name, layer in ts.nn.topology_layers(model).items():
        assert len(layer.values.unique()) <= 8
        dense.set_submodule(name, layer.dense_module())
        assert torch.equal(dense.get_submodule(name).weight.flatten()[layer.topology.keys], layer.values)
    torch.testing.assert_close(model(x), dense(x))


def test_gradients_of_a_codebook_are_sums_over_its_connections():
    layer = ts.quantize(linear([0.5, -1.0, 0.5, -1.0, 0.25], bias=False), {"*": 2}, by="codebook")
    assert layer.rounding.trained.tolist() == [-1.0, 0.25, 0.5]
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [-1.0, 0.5, 0.0, 2.0]])
    dy = torch.tensor([[1.0, 0.0, 2.0], [0.5, 7.0, -1.0]])
    layer(x).backward(dy)
    by_connection = {(row, column): float((dy[:, row] * x[:, column]).sum()) for row, column in [(0, 0), (0, 2), (0, 3), (2, 1), (2, 2)]}
    expected = [by_connection[0, 2] + by_connection[2, 1], by_connection[2, 2], by_connection[0, 0] + by_connection[0, 3]]
    assert layer.rounding.trained.grad.tolist() == pytest.approx(expected)
    step = 1e-2  # the output is linear in the codebook, so a difference is exact but for rounding
    for entry in range(3):
        sides = []
        for sign in (1, -1):
            moved = copy.deepcopy(layer)
            moved.rounding.trained.data[entry] += sign * step
            sides.append(float((moved(x).detach() * dy).sum()))
        assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(expected[entry], rel=1e-3)


def test_the_gradient_goes_straight_through_the_rounding():
    layer = ts.quantize(linear(VALUES), 4)
    plain = copy.deepcopy(ts.dequantize(copy.deepcopy(layer)))
    with torch.no_grad():
        layer.rounding.trained[0] = 3.0  # far past the largest number, which is what the layer has there
        plain.values[0] = layer.values[0]
    assert float(layer.values[0].detach()) == pytest.approx(7 * float(layer.rounding.scale[0]))
    x = torch.randn(5, 4)
    for one in (layer, plain):
        one(x).square().sum().backward()
    torch.testing.assert_close(layer.rounding.trained.grad, plain.values.grad)
    torch.testing.assert_close(layer.bias.grad, plain.bias.grad)


def test_straight_through_under_vmap():
    x = torch.tensor([[0.4, 1.6], [-9.0, 2.5]])
    both = torch.func.vmap(torch.func.grad(lambda one: straight_through(one, 3.0).square().sum()))(x)
    assert both.tolist() == [[0.0, 4.0], [-6.0, 4.0]]


@pytest.mark.parametrize(("by", "bits"), [("row", 4), ("codebook", 2)])
def test_training_goes_on_in_a_loop_of_ones_own(by, bits):
    model, x = net(), images()
    target = model(x).detach()
    topologies = [layer.topology for layer in ts.nn.topology_layers(model).values()]
    ts.quantize(model, bits, by)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < 0.6 * losses[0]
    for layer, topology in zip(ts.nn.topology_layers(model).values(), topologies, strict=True):
        assert layer.topology is topology
        most = 2 ** (bits - 1) if by == "row" else 2**bits
        assert int(quantized_layers(layer)[""].numbers.abs().max()) < most


def test_by_row_parameters_are_the_same_objects():
    model = net()
    before = [layer.values for layer in ts.nn.topology_layers(model).values()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    ts.quantize(model, 8)
    layers = list(ts.nn.topology_layers(model).values())
    assert [id(layer.rounding.trained) for layer in layers] == [id(one) for one in before]
    assert layers[1].rounding.trained.ndim == 2, "weight decay by dimensions takes it for a matrix"
    model(images()).sum().backward()
    was = layers[1].rounding.trained.detach().clone()
    optimizer.step()
    assert not torch.equal(was, layers[1].rounding.trained)
    ts.dequantize(model)
    assert [id(layer.values) for layer in layers] == [id(one) for one in before]


@pytest.mark.parametrize("by", ["row", "codebook"])
def test_dequantize_keeps_the_rounded_values(by):
    model, x = net(), images()
    expected = ts.quantize(model, 4, by)(x)
    values = {name: layer.values.clone() for name, layer in ts.nn.topology_layers(model).items()}
    assert ts.dequantize(model) is model
    for name, layer in ts.nn.topology_layers(model).items():
        assert type(layer) in KINDS
        assert not isinstance(layer, QuantizedLayer)
        assert torch.equal(layer.values, values[name])
        assert layer.values.is_leaf
        assert layer.values.requires_grad
    torch.testing.assert_close(model(x), expected)
    ts.prune(model, 0.9)  # as any other
    ts.pack(model, x, tune=False)


def test_bits_by_name_and_layers_left_alone():
    model = ts.quantize(net(), {"0": 5, "6": 3})
    assert {name: one.bits for name, one in quantized_layers(model).items()} == {"0": 5, "6": 3}
    assert type(model[4]) is ts.SparseLinear
    model = ts.quantize(net(), 4, exclude=["0"])
    assert list(quantized_layers(model)) == ["4", "6"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_layer(kind):
    dimensions = {"1": 1, "2": 2, "3": 3}.get(kind.__name__[-2])
    layer = kind(6, 4, sparsity=0.5) if dimensions is None else kind(6, 4, 2, sparsity=0.5)
    x = torch.randn(2, 6) if dimensions is None else torch.randn(2, 6, *[4] * dimensions)
    expected, before = layer(x), layer.values.detach().clone()
    ts.quantize(layer, 8, data=x)
    assert type(layer) is KINDS[kind]
    assert isinstance(layer, kind)
    torch.testing.assert_close(layer(x), expected, atol=0.1, rtol=0.0)
    assert 0 < float((layer.values.detach() - before).abs().max()) < 0.02


def test_empty_rows_and_no_connections():
    empty = ts.SparseLinear.from_dense(nn.Linear(3, 2), made((2, 3), set()))
    for by in ("row", "codebook"):
        layer = ts.quantize(copy.deepcopy(empty), 8, by)
        assert layer.values.shape == (0,)
        assert torch.equal(layer(torch.ones(1, 3)), empty(torch.ones(1, 3)))
        layer(torch.ones(1, 3)).sum().backward()
    zeros = ts.quantize(linear([0.0] * 5), 8)
    assert zeros.values.tolist() == [0.0] * 5
    assert quantized_layers(zeros)[""].table.tolist() == [1.0] * 3


def test_connections_that_do_not_act_stay_so():
    layer = linear(VALUES)
    layer.acting = torch.tensor([True, False, True, True, True])
    ts.quantize(layer, 8)
    assert layer.to_dense()[0, 2] == 0
    assert float(layer.acting_values[1].detach()) == 0.0
    assert float(layer.values[1].detach()) != 0.0


def test_dtypes_and_devices_follow():
    layer = ts.quantize(linear(VALUES), 8).double()
    assert layer.values.dtype == torch.float64
    assert layer(torch.ones(1, 4, dtype=torch.float64)).dtype == torch.float64


def test_the_value_says_the_same_numbers():
    topology, table = made((2, 3), {(0, 0), (1, 1), (1, 2)}), torch.tensor([0.5, 0.25])
    by_row = QuantizedWeights("row", 8, torch.tensor([-3, 4, 127], dtype=torch.int8), table)
    assert by_row.values(topology).tolist() == [-1.5, 1.0, 31.75]
    by_codebook = QuantizedWeights("codebook", 1, torch.tensor([1, 0, 1], dtype=torch.uint8), table)
    assert by_codebook.values(topology).tolist() == [0.25, 0.5, 0.25]
    for one in (ts.quantize(net(), 5), ts.quantize(net(), 4, "codebook")):
        for name, weights in quantized_layers(one).items():
            assert torch.equal(weights.values(one.get_submodule(name).topology), one.get_submodule(name).values)


REFUSED = {
    "by what": (lambda: ts.quantize(net(), 8, by="tensor"), ValueError, "by is one of 'row', 'codebook', got 'tensor'"),
    "one bit": (lambda: ts.quantize(net(), 1), ValueError, "by row a number has 2 to 8 bits, got 1"),
    "nine bits": (lambda: ts.quantize(net(), 9, "codebook"), ValueError, "by codebook a number has 1 to 8 bits, got 9"),
    "half a bit": (lambda: ts.quantize(net(), 2.0), ValueError, "by row a number has 2 to 8 bits, got 2.0"),
    "a name": (lambda: ts.quantize(net(), {"conv": 4}), ValueError, "bits names 'conv', which matches no sparse layer; there are: 0, 4, 6"),
    "bits of a name": (lambda: ts.quantize(net(), {"*": 0}), ValueError, "by row a number has 2 to 8 bits, got 0"),
    "more entries than connections": (
        lambda: ts.quantize(net(), 5, "codebook"),
        ValueError,
        r"layer '6' has 18 connections, fewer than the 32 entries of a codebook of 5 bits: give it fewer, bits=\{'6': 4, '\*': 5\}",
    ),
    "NaN": (lambda: ts.quantize(linear([1.0, torch.nan, 1.0, 1.0, 1.0])), ValueError, "layer '' has weights that are NaN or infinite"),
    "infinity": (lambda: ts.quantize(linear([1.0, torch.inf, 1.0, 1.0, 1.0])), ValueError, "weights that are NaN or infinite"),
    "no sparse layer": (lambda: ts.quantize(nn.Linear(2, 2)), ValueError, r"found no sparse layer: ts.prune\(model, sparsity\) makes some"),
    "twice": (lambda: ts.quantize(ts.quantize(net())), ValueError, "layer '0' is quantised already"),
    "masked": (
        lambda: ts.quantize(ts.sparsify(nn.Sequential(nn.Linear(4, 4)), 0.5, masked=True)),
        TypeError,
        "layer '0' is a masked twin",
    ),
    "no batch": (lambda: ts.quantize(net(), data=[]), ValueError, "there is no batch in data"),
    "percentile": (
        lambda: ts.quantize(net(), data=images(), percentile=20.0),
        ValueError,
        "percentile lies above 50 and up to 100",
    ),
    "not finite": (lambda: ts.quantize(net(), data=images() / 0.0), ValueError, "layer '0': its inputs or outputs on this data are not"),
    "a subclass": (
        lambda: ts.quantize(type("Mine", (ts.SparseLinear,), {})(3, 3)),
        TypeError,
        "layer '' is a Mine, whose own behaviour would be lost",
    ),
}


@pytest.mark.parametrize(("call", "error", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()


def test_an_error_leaves_the_model_as_it_was():
    model = nn.ModuleList([linear(VALUES), linear([1.0, torch.nan, 1.0, 1.0, 1.0])])
    with pytest.raises(ValueError, match="layer '1' has weights that are NaN"):
        ts.quantize(model)
    assert [type(layer) for layer in model] == [ts.SparseLinear] * 2
    assert model[0].values.tolist() == pytest.approx(VALUES)


def test_data_that_does_not_reach_a_layer():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = ts.SparseLinear(4, 4), ts.SparseLinear(4, 4)

        def forward(self, x):
            return self.used(x)

    model = Half()
    with pytest.raises(ValueError, match="no data reached 'unused' by a call of the layer"):
        ts.quantize(model, data=torch.ones(2, 4))
    assert type(model.used) is ts.SparseLinear
    assert list(quantized_layers(ts.quantize(model, data=torch.ones(2, 4), exclude=["unused"]))) == ["used"]


def test_connections_stay():
    model = ts.quantize(net(), 8)
    layer = model[4]
    with pytest.raises(TypeError, match=r"quantised layers keep their connections: prune and rewire before ts\.quantize"):
        ts.rewire(layer, None, layer.topology.keep(torch.zeros(layer.topology.nnz, dtype=torch.bool)))
    with pytest.raises(TypeError, match=r"call ts.dequantize\(model\) first; quantised: '0', '4', '6'"):
        ts.prune(model, 0.9)
    with pytest.raises(TypeError, match="quantised layers keep their connections"):
        ts.Rewirer(model, torch.optim.SGD(model.parameters(), lr=0.1), ts.SET(), every=1, until=10)
    for write in (layer.reset_parameters, lambda: layer.initialise(nn.init.zeros_)):
        with pytest.raises(TypeError, match="the values of a quantised layer are made in every forward pass"):
            write()
    with pytest.raises(AttributeError):
        layer.values = torch.zeros(3)


def test_rounded_inputs_are_not_lost_in_silence():
    model, x = ts.quantize(net(), 8, data=images()), images()
    with pytest.raises(TypeError, match=r"QuantizedConv2d rounds its input, which no layer of torch\.nn does"):
        ts.densify(copy.deepcopy(model))
    assert torch.equal(ts.pack(model, x, tune=False)(x), model(x))
    with pytest.raises(TypeError, match="layer '0' is quantised, and this file would have its values in floats"):
        ts.save(model, "nowhere.safetensors")


def test_affine_is_a_value():
    assert Affine(0.5, -3) == Affine(0.5, -3)
    with pytest.raises(AttributeError):
        Affine(0.5, -3).scale = 1.0
