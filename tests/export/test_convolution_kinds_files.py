"""Layers of every kind of convolution are saved and loaded, and written as ONNX."""

import pytest
import torch
from oracles.convolutions import NETWORKS
from torch import nn

import truesparse as ts
from truesparse.export import FileError
from truesparse.export.layers import described, weight_shape
from truesparse.nn.kinds import KINDS


def sparse(name, seed=3, sparsity=0.7, **settings):
    torch.manual_seed(seed)
    return ts.sparsify(NETWORKS[name][0](), sparsity, generator=torch.Generator().manual_seed(seed), **settings).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_save_and_load(name, tmp_path):
    model, path, x = sparse(name), tmp_path / "net.safetensors", torch.randn(2, *NETWORKS[name][1])
    ts.save(model, path)
    assert torch.equal(ts.load(path, sparse(name, 4, 0.4))(x), model(x))
    for other in (sparse(name, 4, masked=True), NETWORKS[name][0]().eval()):
        torch.testing.assert_close(ts.load(path, other)(x), model(x))
    for key, saved in ts.load(path).layers.items():
        layer = model.get_submodule(key)
        dense = getattr(nn, saved.module)(**saved.arguments)
        assert type(dense) is layer.stands_for
        assert repr(dense) == repr(layer.dense_module())
        assert dense.weight.shape == layer.geometry.weight_shape


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.dense is not nn.Linear], ids=lambda kind: kind.dense.__name__)
def test_what_is_no_layer_is_refused(kind):
    module, arguments = described(kind.sparse(4, 6, 3, stride=2, groups=2))
    arguments["bias"] = True
    assert weight_shape(module, arguments) == kind.dense(4, 6, 3, stride=2, groups=2).weight.shape
    wrong = {"kernel_size": [3] * (len(arguments["kernel_size"]) + 1), "stride": 2, "padding": [-1] * len(arguments["stride"])}
    wrong |= {"groups": 3, "padding_mode": "mirror", "in_channels": "4"}
    if "output_padding" in arguments:
        wrong |= {"output_padding": [2] * len(arguments["stride"]), "padding": "same", "padding_mode": "circular"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"there is no layer with {name}="):
            weight_shape(module, {**arguments, name: value})
    with pytest.raises(ValueError, match=f"{module} takes .*kernel_size.*; got"):
        weight_shape(module, {name: value for name, value in arguments.items() if name != "stride"})


def test_a_layer_of_another_kind_is_told(tmp_path):
    ts.save(ts.sparsify(nn.Sequential(nn.ConvTranspose1d(2, 4, 3)), 0.5), tmp_path / "one")
    other = ts.sparsify(nn.Sequential(nn.Conv1d(2, 4, 3)), 0.5)
    with pytest.raises(FileError, match=r"layer '0' is ConvTranspose1d\(.* in the file, Conv1d\(.* in the model"):
        ts.load(tmp_path / "one", other)


@pytest.mark.parametrize("name", ["audio", "unet"])
def test_onnx(name, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, x = sparse(name), torch.randn(2, *NETWORKS[name][1])
    ts.export_onnx(model, tmp_path / "net.onnx", x)
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"))
    x = torch.randn(3, *x.shape[1:])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)
