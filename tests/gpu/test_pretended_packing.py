"""Packing makes no tensor on the wrong device, and a packed network never has the host wait: on a pretended device, as strict as CUDA."""

import contextlib
import copy
import os

import pytest
import torch
from torch import nn

import truesparse as ts

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

from pretended import PretendedDevice, table_of
from test_interpreted_packing import F16, F32, NETWORKS, TOLERANCE, Residual, only, trained

from truesparse.cli import pack as pack_module
from truesparse.cli.main import run
from truesparse.inference import choice
from truesparse.inference.choice import Memory


@contextlib.contextmanager
def there(model, x, exact):
    """(the device, the network and the input on it, what is expected)"""
    expected = exact(x.double()).detach()
    with PretendedDevice() as device:
        yield device, model.to("gpu"), x.to("gpu"), expected


def hold(device, packed, x, expected, tolerance):
    with torch.no_grad():  # in inference mode its tensors cannot be
        packed(x)
        with device.waited() as waits:
            y = packed(x)
    assert not waits, table_of(waits)  # what waits cannot be captured as a CUDA graph
    assert (y.device, y.dtype) == (x.device, x.dtype)
    assert float((y.cpu() - expected).abs().max()) <= tolerance * max(float(expected.abs().max()), 1)


@pytest.mark.parametrize("dtype", [F32, F16], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_no_tensor_is_elsewhere_and_no_call_waits(network, dtype, monkeypatch):
    only(monkeypatch, "rows" if dtype == F32 else "bitmap")
    with there(*trained(network, dtype)) as (device, model, x, expected):
        packed = ts.pack(model, x, tune=False)
        assert any(row.layout.startswith("triton") for row in packed.explain().rows)
        hold(device, packed, x, expected, TOLERANCE[dtype])
        hold(device, copy.deepcopy(packed), x, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("values", ["float32", "float16"])
def test_measured(values, monkeypatch, tmp_path):
    monkeypatch.setattr(choice, "SECONDS", 0.0)
    monkeypatch.setattr(choice, "LEAST_ROUNDS", 1)
    with there(*trained("one sample")) as (device, model, x, expected):
        packed = ts.pack(model, x, values=values, memory=Memory(tmp_path / "layouts.json"))
        hold(device, packed, x, expected, TOLERANCE[torch.float32 if values == "float32" else F16])
        assert all(row.seconds for row in packed.explain().rows)


def test_in_place_with_methods_of_its_own(monkeypatch):
    only(monkeypatch, "rows")
    with there(*trained("attention")) as (device, model, x, expected):
        ts.pack_layers(model, 6, tune=False)
        hold(device, model, x, expected, TOLERANCE[F32])


def test_neurons_that_go_and_dense_pruned_layers(monkeypatch):
    only(monkeypatch, "rows")
    model = Residual().eval()
    with torch.no_grad():
        for layer in (model.first, model.second, model.third, model.last):
            layer.weight.mul_(torch.rand_like(layer.weight) < 0.3)
            layer.weight[3], layer.weight[:, 5] = 0, 0
    with there(model, torch.randn(4, 16), copy.deepcopy(model).double()) as (device, model, x, expected):
        packed = ts.pack(model, x, tune=False)
        assert any(row.change.neurons[0] > row.change.neurons[1] for row in packed.explain().rows)
        hold(device, packed, x, expected, TOLERANCE[F32])


def test_what_is_on_two_devices_is_refused():
    model, x, _ = trained("perceptron")
    on_device = copy.deepcopy(model)
    with PretendedDevice():
        on_device = on_device.to("gpu")
        with pytest.raises(
            TypeError, match=r"the network is on gpu:0, and input 0 of the example on cpu: move both to one device, as with ex"
        ):
            ts.pack(on_device, x, tune=False)
        packed = ts.pack(on_device, x.to("gpu"), tune=False)
        with pytest.raises(
            TypeError, match=r"a packed network takes dense tensors on gpu:0, got a torch.strided one on cpu; convert it with"
        ):
            packed(x)
        with pytest.raises(RuntimeError, match=r"a packed network computes in float32 on gpu:0, not in torch.float32 on cpu"):
            packed.cpu()
        model[2].to("gpu")
        with pytest.raises(
            TypeError, match=r"pack takes a network on one device, and '0.values' is on cpu, '2.values' on gpu:0: move it with"
        ):
            ts.pack(model, x, tune=False)


def test_norms_and_their_statistics():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).train()
    for _ in range(3):
        model(torch.randn(9, 6))
    model.eval()
    with there(model, torch.randn(3, 6), copy.deepcopy(model).double()) as (device, model, x, expected):
        hold(device, ts.pack(model, x, tune=False), x, expected, TOLERANCE[F32])


RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"epochs": 1, "batch_size": 4, "sparsity": 0.5}


def model():
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def data():
    made = TensorDataset(torch.randn(8, 6), torch.randint(3, (8,)))
    return made, made
"""


def test_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(pack_module, "SECONDS", 0.0)
    monkeypatch.setattr(pack_module, "LEAST_ROUNDS", 1)
    (tmp_path / "mine.py").write_text(RECIPE)
    model = ts.sparsify(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), 0.5)
    ts.save(model, tmp_path / "net.safetensors")
    given = ["pack", str(tmp_path / "net.safetensors"), "--recipe", str(tmp_path / "mine.py"), "--batch", "2"]
    with PretendedDevice():
        assert run([*given, "--device", "gpu", "--no-tune"]) == 0
        out = capsys.readouterr().out
        assert "batch 2, Triton's interpreter on gpu" in out
        assert "times as fast" in out
        assert run([*given, "--device", "gpu", "--threads", "1"]) != 0
        assert "--threads: with --device gpu, the GPU computes; leave the option out" in capsys.readouterr().err
        assert run([*given, "--device", "gpu", "--values", "int8"]) != 0
        assert "expected one of float32, bfloat16, float16, got 'int8'" in capsys.readouterr().err
