"""A network of `ts.quantize` leaves as C with its own numbers: by float64 from these numbers alone, and beside the model of torch."""

from collections import Counter

import numpy as np
import pytest
import torch
from c_build import NETWORKS, Gates, called, settled, sparse
from torch import nn

import truesparse as ts
from truesparse.embedded import quantised, run_integers
from truesparse.embedded.network import Copy, Recurrent, matrices_of
from truesparse.embedded.quantised import ranges
from truesparse.embedded.read import read
from truesparse.nn.rounded import RoundedInput
from truesparse.quantization import quantized_layers


def images():
    """Batch norms, a clamp, both pools, strides, padding, groups."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.BatchNorm2d(12), nn.ReLU6(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(12, 5)),
    )


def perceptron():
    return nn.Sequential(nn.Linear(20, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5))


class Branches(nn.Module):
    """One tensor read by two layers and by a sum; a sum behind which a clamp stands; parts that are joined; a tanh, a softmax."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.three, self.head = nn.Linear(32, 9), nn.Linear(9, 4)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(x + self.one(x))
        y = self.three(torch.cat([y, torch.tanh(self.two(x))], 1))
        return self.head(y.softmax(-1))


MODELS = {
    "images": (images, (3, 16, 13)),
    "perceptron": (perceptron, (20,)),
    "branches": (Branches, (12,)),
    "gru": (Gates, Gates.shape),
    "lstm": (lambda: Gates(nn.LSTM), Gates.shape),
}


def rounded(kind, sparsity=0.7, **settings):
    """(a model that is quantised, in eval mode; data of it)."""
    torch.manual_seed(0)
    make, shape = MODELS[kind]
    x = torch.randn(400, *shape)
    model = sparse(settled(make(), *shape), sparsity)
    return ts.quantize(model, data=[x], **settings), x


def integers_of(model, x, calibrated=()):
    network = read(model, x[:2])
    return quantised(network, ranges(network, calibrated) if len(calibrated) else {})


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_the_c_gives_the_bits_of_the_model(kind, bits, tmp_path):
    model, x = rounded(kind, bits=bits)
    seen = [x] if kind == "branches" else None  # of the sum nobody knows the range
    exported = ts.export_c(model, x[:2], tmp_path / "net.h", values="int8", calibration=seen)
    integers = integers_of(model, x, seen or ())
    want = integers.output_scale.real(run_integers(integers, integers.input_scale.quantised(x.numpy())))
    assert np.array_equal(called(exported, x.numpy(), want.shape[1:]), want)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", MODELS)
def test_it_gives_what_the_model_of_torch_gives_but_for_steps(kind, bits):
    model, x = rounded(kind, bits=bits)
    integers = integers_of(model, x, [x])
    given = run_integers(integers, integers.input_scale.quantised(x.numpy())).astype(int)
    with torch.no_grad():
        want = integers.output_scale.quantised(model(x).numpy()).astype(int)
    assert np.abs(given - want).max() <= (6 if kind in ("gru", "lstm") else 3)
    assert (given.argmax(1) == want.argmax(1)).mean() > 0.97


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("kind", MODELS)
def test_numbers_are_those_of_the_layers(kind, bits):
    model, x = rounded(kind, bits=bits)
    said, layers = quantized_layers(model), dict(model.named_modules())
    integers = integers_of(model, x, [x])
    seen = 0
    for step in integers.network.steps:
        for name, ours in by_name(integers, step):
            matrix, whole, topology = ours.matrix, said[name], layers[name].topology
            dense = torch.zeros(topology.shape, dtype=torch.int8)
            dense[topology.rows.long(), topology.indices.long()] = whole.numbers
            assert np.abs(ours.values).max() <= 2 ** (bits - 1) - 1
            whole_rows = [Counter(row.tolist()) for row in dense]  # of which those that read what never changes, and that nobody reads, go
            assert all(any(Counter(row) <= one for one in whole_rows) for row in by_row(matrix, ours.values))
            assert (ours.source.scale, ours.source.zero) == (whole.inputs.scale, whole.inputs.zero_point)
            seen += 1
    assert seen == len(said)


def by_name(integers, step):
    """(name of a layer of the model, its integers)"""
    if isinstance(step, Recurrent):
        layer, _, number = step.name.rpartition(".")
        gates = integers.gates[step.target.buffer]
        return [(f"{layer}.ih_{number}", gates.inputs), (f"{layer}.hh_{number}", gates.state)]
    return [(step.name, integers.matrices[step.target.buffer])] if matrices_of(step) else []


def by_row(matrix, values):
    return [part.tolist() for part in np.split(values, np.cumsum(matrix.fan_in)[:-1])]


def test_two_layers_by_hand(tmp_path):
    """From the numbers of `quantized_layers` alone, in float64; left out is what lies in the middle of two steps."""
    torch.manual_seed(1)
    model = ts.sparsify(nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30)), 0.5).eval()
    x = torch.randn(300, 20)
    ts.quantize(model, data=[x])
    first, last = (quantized_layers(model)[name] for name in "02")
    y = x.double().numpy()
    for layer, own, then in ((model[0], first, last.inputs), (model[2], last, last.outputs)):
        dense = np.zeros(layer.topology.shape)
        dense[layer.topology.rows, layer.topology.indices] = own.numbers
        q = y if own is last else np.clip(np.round(y / own.inputs.scale) + own.inputs.zero_point, -128, 127)
        real = (q - own.inputs.zero_point) @ dense.T * (
            own.inputs.scale * own.table.double().numpy()
        ) + layer.bias.detach().double().numpy()
        exact = (np.maximum(real, 0) if own is first else real) / then.scale
        y = np.clip(np.round(exact) + then.zero_point, -128, 127)
        bias = own.inputs.scale * float(own.table.max()) / then.scale / 2  # it is rounded to a unit of the sum
        sure = np.abs(exact % 1 - 0.5).min(1) > bias + 1e-4
        y, x = y[sure], x[torch.from_numpy(sure)]
    exported = ts.export_c(model, x[:1], tmp_path / "net.h", values="int8")
    given = called(exported, x.numpy(), (30,)) / np.float32(last.outputs.scale)
    assert len(x) > 100
    q = np.round(given).astype(int) + last.outputs.zero_point
    assert np.array_equal(q, y.astype(int))


def test_weights_alone_and_norms_that_come_after(tmp_path):
    """Rows that nothing reads, a norm that turns signs and one that lets nothing through: the numbers stay, whatever rows do."""
    torch.manual_seed(0)
    model = settled(perceptron(), 20)
    with torch.no_grad():
        model[1].weight[:20] *= -1
        model[1].weight[7] = 0
        model[3].weight[:, 11] = 0
    model = ts.sparsify(model.eval(), sparsity=None, from_weights=True)
    ts.quantize(model, bits=4)
    x = torch.randn(400, 20)
    with torch.no_grad():
        want = model(x).numpy()
    floats = ts.export_c(model, x[:2], tmp_path / "floats.h")
    assert np.abs(called(floats, x.numpy(), (5,)) - want).max() < 1e-5
    exported = ts.export_c(model, x[:2], tmp_path / "net.h", values="int8", calibration=[x])
    integers = integers_of(model, x, [x])
    assert integers.network.steps[0].matrix.rows == 38
    assert all(np.abs(one.values).max() == 7 for one in integers.matrices.values())
    assert np.abs(called(exported, x.numpy(), (5,)) - want).max() < 0.05 * np.ptp(want)
    with pytest.raises(ValueError, match="needs calibration=batches, inputs like those to come, or a model of ts"):
        ts.export_c(model, x[:2], tmp_path / "net.h", values="int8")


def test_layers_that_round_one_tensor_in_two_ways(tmp_path):
    model, x = rounded("branches")
    scale, zero = float(model.two.input_rounding.scale), int(model.two.input_rounding.zero_point)
    model.two.input_rounding = RoundedInput((scale / 2, zero), (0.01, 0))
    integers = integers_of(model, x, [x])
    [copy] = [step for step in integers.network.steps if isinstance(step, Copy) and step.name == "two.rounded"]
    assert integers.scales[copy.target.buffer].scale == scale / 2
    assert integers.scales[copy.source.buffer].scale == scale
    exported = ts.export_c(model, x[:2], tmp_path / "net.h", values="int8", calibration=[x])
    want = integers.output_scale.real(run_integers(integers, integers.input_scale.quantised(x.numpy())))
    assert np.array_equal(called(exported, x.numpy(), (4,)), want)
    with torch.no_grad():
        assert np.abs(want - model(x).numpy()).max() < 0.06


@pytest.mark.parametrize("activations", [False, True])
def test_norms_that_stay_in_the_model(activations, tmp_path):
    """`ts.quantize` leaves those after convolutions of sequences; here they are folded, and the scales of rows with them."""
    torch.manual_seed(0)
    model = sparse(
        settled(nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 5, 3), nn.BatchNorm1d(5)), 4, 20), 0.5
    )
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([3.0, -2.0, 0.0, 0.1, 1.0, 5.0]))
    x = torch.randn(200, 4, 20)
    ts.quantize(model, data=[x] if activations else None)
    assert isinstance(model[1], nn.BatchNorm1d)
    integers = integers_of(model, x, [x])
    given = integers.output_scale.real(run_integers(integers, integers.input_scale.quantised(x.numpy())))
    with torch.no_grad():
        want = model(x).numpy()
    assert np.abs(given - want).max() < 0.02 * np.ptp(want)
    for step, name in zip(integers.network.steps, "03", strict=True):
        numbers = quantized_layers(model)[name].numbers
        ours = integers.matrices[step.target.buffer].values
        assert set(np.abs(ours)) <= set(np.abs(numbers.numpy()))
    if activations:
        with pytest.raises(ValueError, match=r"int8 needs calibration=batches, .* how large what '3' gives becomes"):
            ts.export_c(model, x[:2], tmp_path / "net.h", values="int8")


def test_weights_that_are_other_numbers_are_refused():
    model, x = rounded("perceptron")
    network = read(model, x[:2])
    network.steps[1].matrix.values[3] *= 1.003
    with pytest.raises(ValueError, match="layer '3': its weights are not the whole numbers that ts"):
        quantised(network, ranges(network, [x]))


class Cut(nn.Module):
    """What a sum reads is read by a layer, too, but cut off: the sum must not be."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.head = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.one(nn.functional.hardtanh(x, -0.1, 0.1)))


def test_a_scale_goes_back_through_a_clamp_or_a_pool_where_nobody_else_reads():
    torch.manual_seed(0)
    x = torch.randn(400, 12)
    model = ts.quantize(sparse(Cut(), 0.3), data=[x])
    integers = integers_of(model, x, [x])
    given = integers.output_scale.real(run_integers(integers, integers.input_scale.quantised(x.numpy())))
    with torch.no_grad():
        assert np.abs(given - model(x).numpy()).max() < 0.05 * np.ptp(given)
    model, x = rounded("images")
    integers, said = integers_of(model, x), quantized_layers(model)
    first, pool = integers.network.steps[:2]
    assert not any(isinstance(step, Copy) for step in integers.network.steps)
    assert integers.scales[first.target.buffer] == integers.scales[pool.target.buffer]
    assert integers.scales[first.target.buffer].scale == said["4"].inputs.scale


def test_trained_on_and_a_layer_that_stays_dense(tmp_path):
    torch.manual_seed(0)
    x, labels = torch.randn(400, 20), torch.randint(5, (400,))
    model = sparse(perceptron(), 0.7)
    ts.quantize(model, bits=4, data=[x], exclude=["5"])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(30):
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    path = tmp_path / "net.h"
    with pytest.raises(
        ValueError, match=r"int8 needs calibration=batches, .* how large what '3' gives becomes: .* before it was trained on"
    ):
        ts.export_c(model, x[:2], path, values="int8")
    assert not path.exists()
    exported = ts.export_c(model, x[:2], path, values="int8", calibration=[x])
    with torch.no_grad():
        want = model(x).numpy()
    given = called(exported, x.numpy(), (5,))
    assert np.abs(given - want).max() < 0.03 * np.ptp(want)
    assert (given.argmax(1) == want.argmax(1)).mean() > 0.95


def test_what_cannot_leave_so(tmp_path):
    model, x = rounded("perceptron")
    with pytest.raises(TypeError, match=r"layer '0' rounds its inputs to int8, and C of floats none: use values='int8'"):
        ts.export_c(model, x[:2], tmp_path / "net.h")
    codes = ts.quantize(sparse(perceptron(), 0.5), 3, by="codebook")
    with torch.no_grad():
        want = codes(x).numpy()
    exported = ts.export_c(codes, x[:2], tmp_path / "codes.h")
    assert np.abs(called(exported, x.numpy(), (5,)) - want).max() < 1e-5
    for path in tmp_path.iterdir():
        path.unlink()
    codes = ts.quantize(sparse(perceptron(), 0.5), 3, by="codebook", data=[x])
    with pytest.raises(TypeError, match=r"layer '0' has a codebook, .* quantise by='row', or ts\.dequantize\(model\) first"):
        ts.export_c(codes, x[:2], tmp_path / "net.h", values="int8")
    assert not list(tmp_path.iterdir())


def test_the_model_is_left_quantised(tmp_path):
    model, x = rounded("images")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ts.export_c(model, x[:2], tmp_path / "net.h", values="int8")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert len(quantized_layers(model)) == 3


def test_networks_of_the_other_tests(tmp_path):
    """Strides, dilation, depthwise, 'same', cat, means with zeros around: quantised before, and by calibration, they are alike."""
    for kind in ("residual", "wrist"):
        torch.manual_seed(0)
        model = sparse(settled(NETWORKS[kind](), *NETWORKS[kind]().shape), 0.5)
        x = torch.randn(200, *NETWORKS[kind]().shape)
        ts.quantize(model, data=[x])
        integers = integers_of(model, x, [x])
        given = integers.output_scale.real(run_integers(integers, integers.input_scale.quantised(x.numpy())))
        with torch.no_grad():
            want = model(x).numpy()
        assert np.abs(given - want).mean() < 0.02 * np.ptp(want)
        exported = ts.export_c(model, x[:2], tmp_path / f"{kind}.h", values="int8", calibration=[x])
        assert np.array_equal(called(exported, x.numpy(), want.shape[1:]), given)
