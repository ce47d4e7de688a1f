"""An exported network gives in ONNX Runtime what it gives in PyTorch, with dense weights and with sparse ones."""

import errno
import os
import sys
from itertools import pairwise

import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

import truesparse as ts
from truesparse.export import FileError


class Residual(nn.Module):
    """Norms, a sum, a concatenation; groups, stride, dilation and every padding mode; two inputs and two outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, (5, 3), padding="same", groups=2)
        modes = ("zeros", "reflect", "replicate", "circular")
        self.padded = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=(1, 2), dilation=(1, 2), padding_mode=mode) for mode in modes)
        self.smaller = nn.Conv2d(16, 6, 3, stride=(2, 1), padding=1)
        self.pooled, self.last = nn.AdaptiveAvgPool2d(2), nn.Linear(24, 5)

    def forward(self, image: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.norm(self.first(image)))
        x = torch.relu(x + self.second(x))
        for layer in self.padded:
            x = x + torch.tanh(layer(x))
        x = self.smaller(torch.cat([x, code[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1))
        features = self.pooled(x).flatten(1)
        return self.last(features[:, None, :])[:, 0], features


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    model = ts.sparsify(Residual(), 0.8, ts.Uniform(), exclude=("padded.2",), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(16, 3, 7, 9), torch.randn(16, 8))  # statistics of their own for the norms
    return model


def perceptron(masked=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 40), nn.GELU(), nn.Linear(40, 5))
    ts.sparsify(model, 0.9, masked=masked, generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.onnx"


def run(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return [torch.from_numpy(array) for array in session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})]


def hold(path, model, *inputs):
    """Within 1e-5 of the largest output of the network in eval mode."""
    model.eval()
    with torch.no_grad():
        outputs = model(*inputs)
    for y, expected in zip(run(path, *inputs), [outputs] if isinstance(outputs, Tensor) else outputs, strict=True):
        assert y.shape == expected.shape
        assert float((y - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def test_convolutions_residuals_and_norms(residual, path):
    residual.train()
    state = {name: array.clone() for name, array in residual.state_dict().items()}
    ts.export_onnx(residual, path, (torch.randn(1, 3, 7, 9), torch.randn(1, 8)), sparse_initialisers=True)
    assert onnx.load(path).graph.sparse_initializer
    assert residual.training
    assert all(torch.equal(residual.state_dict()[name], array) for name, array in state.items())
    for batch in (1, 2, 5):
        hold(path, residual, torch.randn(batch, 3, 7, 9), torch.randn(batch, 8))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["image", "code"]
    assert [one.name for one in session.get_outputs()] == ["output_0", "output_1"]


def weights_as_written(proto):
    """{name: dense tensor} from the sparse initialisers, entry by entry."""
    found = {}
    for one in proto.graph.sparse_initializer:
        dense = torch.zeros(tuple(one.dims)).flatten()
        keys, values = numpy_helper.to_array(one.indices).tolist(), numpy_helper.to_array(one.values).tolist()
        assert all(low < high for low, high in pairwise(keys))
        for key, value in zip(keys, values, strict=True):
            dense[key] = value
        found[one.values.name] = dense.view(tuple(one.dims))
    return found


@pytest.mark.parametrize("masked", [False, True])
def test_sparse_weights_are_those_of_the_connections_in_fewer_bytes(path, masked):
    model = perceptron(masked)
    with torch.no_grad():
        model[4].parameter.zero_()
    ts.export_onnx(model, path, torch.randn(3, 60), sparse_initialisers=True)
    proto = onnx.load(path)
    onnx.checker.check_model(proto)
    onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    written = weights_as_written(proto)
    assert written.keys() == {"0.weight", "2.weight", "4.weight"}
    small = ts.shrink(model, torch.randn(3, 60))
    assert small[2].in_features < 50, "some neurons are read by nothing"
    assert all(torch.equal(written[f"{name}.weight"], small[int(name)].to_dense()) for name in "024")
    assert not written["4.weight"].any()
    connections = sum(small[layer].topology.nnz for layer in (0, 2))
    of_weights = sum(one.ByteSize() for one in proto.graph.sparse_initializer)
    assert 12 * connections < of_weights < 12 * connections + 3 * 64
    assert path.stat().st_size < of_weights + 4 * (50 + 40 + 5) + 3000  # biases, and the graph
    hold(path, model, torch.randn(4, 60))


def test_dense_weights(path):
    model = perceptron()
    ts.export_onnx(model, str(path), torch.randn(1, 60))
    assert not onnx.load(path).graph.sparse_initializer
    onnx.checker.check_model(path, full_check=True)
    assert b".py" not in path.read_bytes(), "the file tells the folders and the source of who made it"
    for batch in (1, 3):
        hold(path, model, torch.randn(batch, 60))


def test_weights_stay_dense_where_that_is_smaller(path):
    torch.manual_seed(0)
    model = nn.Sequential(ts.SparseLinear(50, 40, sparsity=0.5), ts.SparseLinear(40, 30, sparsity=0.75), nn.Linear(30, 2))
    ts.export_onnx(model, path, torch.randn(2, 50), sparse_initialisers=True)
    assert weights_as_written(onnx.load(path)).keys() == {"1.weight"}
    hold(path, model, torch.randn(7, 50))


def test_neurons_that_are_gone_are_not_in_the_file(path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 40), nn.GELU(), nn.Linear(40, 5)).train()
    ts.sparsify(model, 0.8, pattern="neurons", exclude=("5",), generator=torch.Generator().manual_seed(0))
    left = [layer.topology.shape[0] - layer.topology.empty_rows for layer in (model[0], model[3])]
    ts.export_onnx(torch.compile(model, backend="eager"), path, torch.randn(2, 60))
    extents = {one.name: tuple(one.dims) for one in onnx.load(path).graph.initializer if one.name.endswith("weight") and len(one.dims) > 1}
    assert sorted(extents.values()) == sorted([(left[0], 60), (left[1], left[0]), (5, left[1])])
    hold(path, model, torch.randn(7, 60))


def test_hooks_of_users_are_not_lost(path):
    model = perceptron()
    model[1].register_forward_hook(lambda module, given, output: output + 1.0)
    ts.export_onnx(model, path, torch.randn(2, 60))
    hold(path, model, torch.randn(7, 60))
    model[2].register_forward_pre_hook(lambda module, given: None)
    with pytest.raises(TypeError, match="hooks of yours are on the sparse layers 2, and no ONNX file can hold them: remove them first"):
        ts.export_onnx(model, path, torch.randn(2, 60))


def test_one_batch_size_and_a_newer_opset(path):
    layer = ts.SparseLinear(60, 50, sparsity=0.9)
    ts.export_onnx(layer, path, torch.randn(60), dynamic_batch=False, opset=21)
    hold(path, layer, torch.randn(60))
    assert [one.version for one in onnx.load(path).opset_import] == [21]


class Fixed(nn.Module):
    def forward(self, x):
        return x.view(2, 4) + 1


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Counting(nn.Module):
    def forward(self, x):
        return x, 3


def test_what_cannot_be_exported_is_refused_and_leaves_no_file(path, capfd):
    model, x = perceptron(), torch.randn(1, 60)
    for network, example, kind, says in (
        (ts.pack(model, x, tune=False), x, TypeError, "a packed network holds its weights .*: export the network that it was packed from"),
        (nn.Sequential(ts.pack(model, x, tune=False)), x, TypeError, "a packed network"),
        (model, [x], TypeError, "an example is a tensor or a tuple of tensors, got list"),
        (model, torch.randn(2, 3), ValueError, r"does not run on inputs of shape \(2, 3\) like those of the example: mat1 and mat2"),
        (model, (x, x), ValueError, "does not run on inputs of shape"),
        (model, torch.randn(0, 60), ValueError, "one batch of at least 1 sample, got 0; for inputs that are no batches pass"),
        (Fixed(), torch.randn(2, 4), TypeError, "Fixed works at one batch size only: pass dynamic_batch=False"),
        (Undecided(), torch.randn(2, 4), TypeError, "torch cannot export Undecided to ONNX: Could not guard on data-dependent"),
        (Counting(), torch.randn(2, 4), TypeError, "an ONNX file gives tensors only, Counting gives int too"),
    ):
        with pytest.raises(kind, match=says):
            ts.export_onnx(network, path, example)
    for opset in (17, 999):
        with pytest.raises(ValueError, match=rf"opset must be in \[18, \d+\], got {opset}"):
            ts.export_onnx(model, path, x, opset=opset)
    assert not list(path.parent.iterdir())
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_a_missing_extra_is_named(path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)  # what Python takes for a module that is not there
    with pytest.raises(ImportError, match=rf"export_onnx needs {missing}, which is not installed: pip install 'truesparse\[onnx\]'"):
        ts.export_onnx(perceptron(), path, torch.randn(1, 60))


def test_files_that_cannot_be_written(path, monkeypatch):
    layer, x = ts.SparseLinear(20, 10), torch.randn(2, 20)
    with pytest.raises(FileError, match=r"cannot write .*: there is no folder .*; choose a folder that exists and can be written"):
        ts.export_onnx(layer, path / "deeper.onnx", x)
    with pytest.raises(FileError, match=r"cannot write .*: it is a folder; name a file in it"):
        ts.export_onnx(layer, path.parent, x)
    path.write_bytes(b"as it was")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match=r"the disk is full; free space\. Nothing was changed"):
        ts.export_onnx(layer, path, x)
    assert path.read_bytes() == b"as it was"
    assert [one.name for one in path.parent.iterdir()] == [path.name]
