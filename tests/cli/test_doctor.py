"""`truesparse doctor --check` computes with every kernel, and sees one that is wrong."""

from types import SimpleNamespace

import pytest
import torch

from truesparse import _core
from truesparse.cli import doctor_check, doctor_gpu
from truesparse.cli.doctor_check import checks
from truesparse.cli.main import run
from truesparse.common.devices import tf32_allowed
from truesparse.inference.layouts import Dense, DenseCandidate
from truesparse.ops.reference import MatrixReference
from truesparse.ops.table import KERNELS, Kernel
from truesparse.ops.triton import loading
from truesparse.topology.geometry import Matrix


@pytest.fixture(scope="module")
def found():
    return list(checks())


def test_every_kernel_of_this_machine_is_right(found):
    assert not [one for one in found if one.wrong]
    for instruction_set in _core.supported_isas():
        tried = {(one.kernel, one.dtype) for one in found}
        for kernel in ("matrix", "convolution"):
            assert {(f"cpu.{kernel}[{instruction_set}]", dtype) for dtype in ("float32", "float64", "bfloat16")} <= tried
        kinds = ("windows:5", "windows:7", "windows:8") if instruction_set == "avx512" else ("windows:4:2", "windows:4:4")
        for layout in ("dense", "planes", *kinds, "windows:16"):
            assert {(f"{layout}[{instruction_set}]", values) for values in ("float32", "bfloat16", "int8")} <= tried
        assert any(name.startswith("pairs:") and name.endswith(f"[{instruction_set}]") for name, _ in tried)
    assert {"dense", "reference", "topologies"} <= {one.kernel for one in found}


def test_kernels_of_triton_are_held_against_what_is_exact(monkeypatch):
    """Convolutions of torch are in TF32 on a GPU unless told otherwise, and one verb is of torch."""
    monkeypatch.setattr(doctor_check, "usable_devices", lambda: ("cuda",))
    monkeypatch.setattr(doctor_check, "_verbs", lambda *given: iter([tf32_allowed() or tf32_allowed(convolved=True)]))
    assert torch.backends.cudnn.allow_tf32
    allowed = list(doctor_check.checks_of_triton())
    assert allowed
    assert not any(allowed)
    assert torch.backends.cudnn.allow_tf32


def test_every_operation_has_an_example():
    assert {kernel.operation for kernel in KERNELS} <= {*doctor_check.EXAMPLES}


def test_the_instruction_set_is_as_before():
    _core.use_isa("scalar")
    try:
        assert list(checks())
        assert _core.isa() == "scalar"
    finally:
        _core.use_isa("")


class Forgetful(MatrixReference):
    """Loses one number in a thousand, and takes the bias for granted."""

    name = "forgetful"

    def spmm(self, values, x, bias=None):
        return super().spmm(values, x, bias) * 0.999

    def backward(self, values, x, dy, need):
        dvalues, dx, _ = super().backward(values, x, dy, need)
        return dvalues, dx, None


def test_a_kernel_that_is_wrong_fails_the_command(monkeypatch, capsys):
    wrong = Kernel("forgetful", Matrix, lambda topology, geometry: Forgetful(topology, geometry), ("cpu",), (torch.float32,))
    monkeypatch.setattr(doctor_check, "KERNELS", (wrong,))
    assert run(["doctor", "--check"]) == 1
    shown = capsys.readouterr().out
    assert "WRONG: float32 spmm, float32 backward" in shown
    assert "please report this table" in shown


class Shifted(Dense):
    def __call__(self, x):
        return super().__call__(x) + 0.01


class ShiftedCandidate(DenseCandidate):
    def make(self, weights, relu, values):
        return Shifted(weights, relu)


def test_a_layout_that_is_wrong_is_seen(monkeypatch):
    monkeypatch.setattr(doctor_check, "candidates", lambda weights, conditions: [ShiftedCandidate()])
    wrong = [one for one in checks() if one.wrong]
    assert {one.dtype for one in wrong} >= {"float32"}
    assert all("batch" in said for one in wrong for said in one.wrong)


def told(capsys):
    assert run(["doctor"]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("built", "gpus", "capability", "triton", "said"),
    [
        (
            False,
            0,
            (9, 0),
            "3.6.0",
            ["built for the CPU only GPUs none", "is built without CUDA: install one for CUDA, https://pytorch.org/get"],
        ),
        (True, 0, (9, 0), "3.6.0", ["built for CUDA 12.8 GPUs none", "torch finds no GPU here: does nvidia-smi list one?"]),
        (
            True,
            2,
            (9, 0),
            "3.6.0",
            [
                "GPUs cuda:0 Hopper, compute capability 9.0, 139 GiB; cuda:1 Hopper, compute capability 9.0, 139 GiB",
                "kernels by device native on cpu, triton on cuda",
                "to train on a GPU truesparse train TASK --device cuda",
            ],
        ),
        (
            True,
            1,
            (7, 5),
            "3.6.0",
            ["compute capability 7.5", "the kernels need a GPU of compute capability 8.0 or more (Ampere), Hopper has 7.5"],
        ),
        (True, 1, (9, 0), "3.5.1", ["the kernels need Triton from 3.6 and before 4, found 3.5.1: pip install 'truesparse[gpu]'"]),
    ],
)
def test_what_it_says_of_gpus(monkeypatch, capsys, built, gpus, capability, triton, said):
    pytest.importorskip("triton", reason="the extra gpu is not installed")
    held = SimpleNamespace(name="Hopper", major=capability[0], minor=capability[1], total_memory=139 * 2**30)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: held)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Hopper")
    monkeypatch.setattr(loading, "version", lambda name: triton)
    for cached in (loading._kernels, loading._check_capability):
        cached.cache_clear()
    try:
        shown = told(capsys)
    finally:
        for cached in (loading._kernels, loading._check_capability):
            cached.cache_clear()
    for words in said:
        assert words in shown


def test_a_driver_is_told_where_torch_knows_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: 12040, raising=False)
    assert dict(doctor_gpu.facts())["GPUs"] == "a driver for CUDA up to 12.4"
