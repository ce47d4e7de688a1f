"""Which device a run asks for is told in one line before any work; autocast and its scaler are a part of the run."""

import json

import pytest
import torch

from truesparse import ops
from truesparse.cli import train as command
from truesparse.cli.main import run
from truesparse.common.devices import CPU, HostClock, elapsed, on_device, peak_bytes, synchronize
from truesparse.ops.table import device_types, family_runs_on
from truesparse.ops.triton import loading
from truesparse.report import read_run
from truesparse.report.content import ran_on
from truesparse.runs import ConfigError, Observers, load_recipe, make_config, resume, start
from truesparse.runs import devices as devices_of_runs
from truesparse.runs.devices import check_own_devices, device_facts, device_here
from truesparse.runs.machine import hardware, machine
from truesparse.runs.phases import PHASES, Phases


def gpus(monkeypatch, count, built=True, capability=(9, 0)):
    """As if torch were built for CUDA, and there were so many GPUs."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Hopper")
    for cached in (loading._kernels, loading._check_capability):
        cached.cache_clear()


@pytest.fixture(autouse=True)
def _asked_anew():
    yield
    for cached in (loading._kernels, loading._check_capability):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu", "--device: unknown 'gpu'; known are cpu, cuda, with a number where there are several: cuda:1"),
        ("cuda:x", "--device: unknown 'cuda:x'"),
        ("cuda:-1", "--device: unknown 'cuda:-1'"),
        ("mps", "--device mps: truesparse has no kernels for mps; known are cpu, cuda"),
        ("xpu:1", "--device xpu:1: truesparse has no kernels for xpu; known are cpu, cuda"),
        ("cpu:1", "--device cpu:1: the CPU is one device: --device cpu"),
    ],
)
def test_what_is_no_device(text, said, capsys, tmp_path):
    assert run(["train", "digits-mlp", "--device", text, "--out", str(tmp_path / "run")]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith(f"truesparse: {said}")
    assert not (tmp_path / "run").exists()


def test_torch_without_cuda(monkeypatch):
    gpus(monkeypatch, 0, built=False)
    with pytest.raises(ConfigError, match=r"^--device cuda: this torch \(2\S+\) is built without CUDA: install one for CUDA, https://py"):
        device_here("cuda")


def test_no_gpu(monkeypatch):
    gpus(monkeypatch, 0)
    with pytest.raises(ConfigError, match=r"^--device cuda:0: torch finds no GPU here: does nvidia-smi list one\? Without one, use"):
        device_here("cuda:0")


@pytest.mark.parametrize(("count", "said"), [(1, "there is 1 of cuda, numbered 0"), (4, "there are 4 of cuda, numbered 0 to 3")])
def test_a_number_that_there_is_not(monkeypatch, count, said):
    gpus(monkeypatch, count)
    with pytest.raises(ConfigError, match=f"^--device cuda:7: {said}$"):
        device_here("cuda:7")


def test_no_triton_another_triton_an_old_gpu(monkeypatch):
    pytest.importorskip("triton", reason="the extra gpu is not installed")
    gpus(monkeypatch, 1, capability=(7, 5))
    with pytest.raises(ConfigError, match=r"^--device cuda: the kernels need a GPU of compute capability 8.0 or more \(Ampere\), Hopper"):
        device_here("cuda")
    gpus(monkeypatch, 1)
    assert device_here("cuda") == torch.device("cuda", 0)
    monkeypatch.setattr(loading, "version", lambda name: "3.5.1")
    loading._kernels.cache_clear()
    with pytest.raises(ConfigError, match=r"^--device cuda: the kernels need Triton from 3.6 and before 4, found 3.5.1: pip install"):
        device_here("cuda")
    monkeypatch.setitem(__import__("sys").modules, "triton", None)
    loading._kernels.cache_clear()
    with pytest.raises(ConfigError, match=r"^--device cuda: the family of kernels 'triton' needs triton, which is not installed: pip"):
        device_here("cuda")


def test_kernels_that_the_device_has_not(monkeypatch):
    gpus(monkeypatch, 1)
    with (
        ops.use("native"),
        pytest.raises(ConfigError, match=r"^--device cuda: no kernels of the family native run there: unset TRUE"),
    ):
        device_here("cuda")
    with ops.use("reference"):
        assert device_here("cuda:0").index == 0
    assert device_types() == ("cpu", "cuda")
    assert [family_runs_on(family, "cuda") for family in ("native", "triton", "reference")] == [False, True, True]


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    gpus(monkeypatch, 2)
    monkeypatch.setattr(devices_of_runs, "kernels_for", lambda device: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_here("cuda") == torch.device("cuda", 1)
    assert device_here("cuda:0") == torch.device("cuda", 0)
    check_own_devices("cuda", 2)
    check_own_devices("cpu", 9)
    with pytest.raises(ConfigError, match=r"^--nproc 3: each process takes a device of its own, and there are 2 of cuda$"):
        check_own_devices("cuda", 3)
    with pytest.raises(ConfigError, match=r"^--device cuda:1 with --nproc 2: each process takes a device of its own: --device cuda$"):
        check_own_devices("cuda:1", 2)


def test_a_gpu_that_nobody_asked_for_is_told_of(monkeypatch, tmp_path, capsys, recipe):
    monkeypatch.setattr(devices_of_runs, "usable_devices", lambda: ("cuda", "cpu"))
    given = ["train", recipe.task, "--epochs", "1", "--out"]
    assert run([*given, str(tmp_path / "one")]) == 0
    assert "trains on the CPU; --device cuda trains on the GPU that is here\n" in capsys.readouterr().err
    assert run([*given, str(tmp_path / "two"), "--device", "cpu"]) == 0
    assert "GPU" not in capsys.readouterr().err
    assert command.train.__annotations__["device"]


def test_machines_are_said_by_what_computes(monkeypatch):
    assert machine()["device"] == "cpu"
    assert "gpu" not in machine()
    assert device_facts(CPU) == {}
    assert hardware({"processor": "AMD EPYC", "instruction_set": "avx2", "threads": 2}) == "AMD EPYC, avx2, 2 threads"
    assert hardware({"processor": "AMD EPYC", "instruction_set": "avx2", "threads": 2, "device": "cpu"}, 1) == "AMD EPYC, avx2, 1 thread"
    gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    found = machine(torch.device("cuda", 0))
    assert (found["device"], found["gpu"], found["cuda"], found["kernels"]) == ("cuda", "Hopper", "12.8", "triton")
    assert hardware(found) == "Hopper, CUDA 12.8"


def test_what_a_cpu_needs_no_module_for():
    synchronize(CPU)
    assert elapsed(lambda: None) < 1
    assert peak_bytes(CPU) is None
    moved = on_device({"a": [torch.ones(2), 3], "b": ("x", None)}, CPU)
    assert moved["b"] == ("x", None)


def test_phases_ask_the_device_when_they_are_read():
    class Clock(HostClock):
        asked = 0

        def mark(self):
            return super().mark()

        def seconds(self, first, last):
            self.asked += 1
            return 2.0

    phases = Phases(Clock())
    phases.begin()
    phases.lap("forward")
    phases.lap("optimizer", {"rewiring": 0.5})
    assert phases.clock.asked == 0
    assert phases.elapsed < 1
    assert phases.seconds == dict.fromkeys(PHASES, 0.0) | {"forward": 2.0, "optimizer": 1.5, "rewiring": 0.5}
    assert (phases.total, phases.clock.asked) == (4.0, 2)
    again = Phases()
    again.go_on(phases.seconds)
    assert (again.total, again.elapsed) == (4.0, 4.0)


def test_bfloat16_is_a_choice_of_the_run(begin, tmp_path, capsys):
    begin(tmp_path / "run", epochs=1, amp="bfloat16", variants=("dense", "masked", "sparse"))
    begin(tmp_path / "exact", epochs=1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["amp"], config["device"]) == ("bfloat16", "cpu")
    losses = {path: json.loads((tmp_path / path / "metrics.jsonl").read_text().splitlines()[-1])["train_loss"] for path in ("run", "exact")}
    assert losses["run"] != losses["exact"]
    assert losses["run"] == pytest.approx(losses["exact"], rel=0.05)
    assert run(["train", "--out", str(tmp_path / "exact"), "--resume", "--amp", "bfloat16"]) == 1
    assert "was started with --amp None, not bfloat16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--amp", "float16"], "--amp float16: a CPU has no kernels for it, and would compute in float32: use --amp bfloat16, or a GPU"),
        (["--amp", "float8"], "--amp: unknown 'float8'; known are bfloat16, float16"),
    ],
)
def test_wrong_amp(given, said, capsys):
    assert run(["train", "digits-mlp", *given]) == 2
    assert capsys.readouterr().err == f"truesparse: {said}\n"


LINEAR = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"batch_size": 16, "every": 3, "sparsity": 0.6, "threads": 1}


def model():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def data():
    x = torch.randn(200, 8)
    return TensorDataset(x, x[:, :3].argmax(1)), TensorDataset(x, x[:, :3].argmax(1))
"""


def test_a_gradient_scaler_is_a_part_of_the_checkpoint(write_recipe, listener, tmp_path, monkeypatch, files_of):
    """On a CPU, which computes what autocast in float16 asks sparse layers for in float32, but with the scaler."""
    recipe = load_recipe(write_recipe(LINEAR))

    def begin(path, heard=None, **chosen):
        return start(make_config(recipe.task, recipe.settings, chosen), recipe, path, heard or Observers(()))

    for module in ("config", "trainer"):
        monkeypatch.setattr(f"truesparse.runs.{module}.device_here", lambda text, amp=None: CPU)
    begin(tmp_path / "whole", amp="float16", epochs=2)
    begin(tmp_path / "parts", listener(("sparse", 1, 6)), amp="float16", epochs=2)
    held = torch.load(tmp_path / "parts" / "sparse" / "checkpoint.pt", weights_only=True)["scaler"]
    assert held["scale"] > 1
    assert held["_growth_tracker"] > 0
    assert resume(tmp_path / "parts", {}, Observers(())).results is not None
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_the_page_says_where_a_run_went_on(begin, tmp_path):
    begin(tmp_path / "run", epochs=2)
    path = tmp_path / "run" / "metrics.jsonl"
    assert not ran_on(read_run(tmp_path / "run")).startswith("c")
    first, last = path.read_text().splitlines()
    path.write_text(first.replace('"device": "cpu"', '"device": "cuda"') + "\n" + last + "\n")
    assert ran_on(read_run(tmp_path / "run")).startswith("cuda then cpu, ")
