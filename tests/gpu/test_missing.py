"""What Triton's kernels say where they cannot run: one line each, and nothing else of truesparse needs Triton."""

import subprocess
import sys
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch import nn

from truesparse import SparseLinear, ops
from truesparse.common.optional import MissingLibrary
from truesparse.inference import pack, pack_layers
from truesparse.ops.triton import loading

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _asked_anew():
    for cached in (loading._kernels, loading._check_capability):
        cached.cache_clear()
    yield
    for cached in (loading._kernels, loading._check_capability):
        cached.cache_clear()


def test_without_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    with (
        ops.use("triton"),
        pytest.raises(MissingLibrary, match=r"'triton' needs triton, which is not installed: pip install 'truesparse\[gpu\]'"),
    ):
        SparseLinear(4, 3).kernel  # noqa: B018
    with ops.use("triton"):
        assert SparseLinear(4, 3).kernel_or_none is None


def test_another_version(monkeypatch):
    pytest.importorskip("triton", reason="the extra gpu is not installed")
    for version in ("3.5.1", "4.0", "2.1.0+git"):
        monkeypatch.setattr(loading, "version", lambda name, version=version: version)
        with pytest.raises(NotImplementedError, match=f"need Triton from 3.6 and before 4, found {version.replace('+', '.')}: pip install"):
            loading.kernels_for(CPU)
        assert loading.state().startswith("the kernels need Triton from 3.6")
        assert loading.usable_devices() == ()
        loading._kernels.cache_clear()


def test_what_the_doctor_says(monkeypatch):
    def absent(name):
        raise PackageNotFoundError

    monkeypatch.setattr(loading, "_asked_to_interpret", lambda: False)
    monkeypatch.setattr(loading, "version", lambda name: "3.7.1")
    assert loading.state() == "3.7.1, tested is 3.6, no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: ((9, 0), (7, 5))[index])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: ("Hopper", "Turing")[index])
    monkeypatch.setattr(loading, "version", lambda name: "3.6.0")
    assert loading.state() == "3.6.0, Hopper of compute capability 9.0, Turing of compute capability 7.5 (too old)"
    assert loading.usable_devices() == ("cuda",)
    monkeypatch.setattr(loading, "version", absent)
    assert loading.state() == "not installed (the extra gpu)"
    assert loading.usable_devices() == ()


def test_a_gpu_that_is_too_old(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Turing")
    with pytest.raises(NotImplementedError, match=r"compute capability 8.0 or more \(Ampere\), Turing has 7.5; train on the CPU"):
        loading._check_capability(torch.device("cuda", 0))


def test_the_cpu_outside_of_the_interpreter(monkeypatch):
    pytest.importorskip("triton", reason="the extra gpu is not installed")
    if loading._asked_to_interpret():
        pytest.skip("in a process without TRITON_INTERPRET")
    with ops.use("triton"):
        layer = SparseLinear(4, 3)
        with pytest.raises(
            NotImplementedError, match=r"run on a GPU, got tensors on cpu; set TRITON_INTERPRET=1 before the process starts"
        ):
            layer.kernel  # noqa: B018
    assert layer.kernel.startswith("cpu.matrix[")


def test_truesparse_needs_no_triton():
    used = "truesparse.SparseLinear(4, 3)(torch.ones(2, 4)).sum().backward()"
    code = f"import sys; sys.modules['triton'] = None; import torch, truesparse; {used}"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packing_needs_the_kernels_before_any_work(monkeypatch):
    """Also of a network whose layers would all be dense: what is chosen is known later."""
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(2, 4)
    monkeypatch.setattr("truesparse.inference.packing.simplify", lambda *given: pytest.fail("worked"))
    monkeypatch.setitem(sys.modules, "triton", None)
    for packed in (lambda: pack(model, x), lambda: pack_layers(model)):
        with ops.use("triton"), pytest.raises(MissingLibrary, match="'triton' needs triton, which is not installed: pip install"):
            packed()


def test_packing_for_what_kernels_do_not_run_on(monkeypatch):
    pytest.importorskip("triton", reason="the extra gpu is not installed")
    model, x = nn.Sequential(nn.Linear(4, 3)).eval(), torch.randn(2, 4)
    if not loading._asked_to_interpret():
        with (
            ops.use("triton"),
            pytest.raises(NotImplementedError, match=r"run on a GPU, got tensors on cpu; set TRITON_INTERPRET=1 before"),
        ):
            pack(model, x)
    with pytest.raises(TypeError, match=r"pack has layouts for the CPU and for CUDA, and the network is on meta with the kernels 'native'"):
        pack(model.to("meta"), x.to("meta"))
