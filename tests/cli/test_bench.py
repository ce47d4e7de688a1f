"""`truesparse bench`: every subcommand runs, writes what it promises, and ends as it should."""

import json

import pytest
import torch

from truesparse import _core
from truesparse.bench import NETWORKS, InferenceRow, LayerRow, MemoryRow, RewireRow, StepRow, work
from truesparse.bench.networks import Density, Network
from truesparse.bench.request import make_conditions, multiplied_in
from truesparse.cli.main import run
from truesparse.common.processor import cores
from truesparse.ops.cpu import MatrixKernels

QUICK = ["--threads", "1", "--seconds", "0.01"]


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in (("PEAK_ROUNDS", 100), ("COPIED_FLOATS", 100), ("PEAK_TRIES", 1)):
        monkeypatch.setattr(work, name, value)


def document(path, command, row):
    found = json.loads(path.read_text())
    assert (found["schema"], found["command"]) == (1, command)
    assert {"processor", "instruction_set", "threads", "torch"} <= found["machine"].keys()
    assert all(line.keys() == row.__dataclass_fields__.keys() for line in found["rows"])
    return found


@pytest.mark.parametrize(
    ("command", "options", "lines"),
    [
        ("linear", ["--shape", "16x8", "--shape", "8x8", "--batch", "3,4", "--sparsity", "0.5,0.75"], 16),
        ("conv", ["--layer", "4,4,3,1,6", "--batch", "2", "--sparsity", "0.5"], 2),
    ],
)
def test_layers(command, options, lines, tmp_path, capsys):
    path = tmp_path / "x.json"
    assert run(["bench", command, *options, *QUICK, "--isa", "scalar", "--json", str(path)]) == 0
    found = document(path, command, LayerRow)
    assert found["machine"]["instruction_set"] == "scalar"
    assert _core.isa() != "scalar" or _core.supported_isas() == ["scalar"]
    assert len(found["rows"]) == lines
    assert [peak["threads"] for peak in found["peaks"]] == [1]
    shown = capsys.readouterr()
    for expected in (
        "dense + mask",
        "torch CSR",
        "truesparse",
        "forward + backward",
        found["machine"]["processor"],
        "scalar",
        "peaks measured on 1",
    ):
        assert expected in shown.out
    left_out = "torch CSR left out of 2 lines: torch has no convolution with a CSR weight"
    assert (left_out in shown.out) == (command == "conv")
    assert shown.err.splitlines()[-1].startswith(f"{lines}/{lines} ")


def test_step(tmp_path, capsys, monkeypatch):
    def tiny(batch):
        return torch.randn(batch, 8), torch.randint(4, (batch,))

    monkeypatch.setitem(NETWORKS, "tiny", Network("tiny", lambda: torch.nn.Linear(8, 4), tiny, 2, (Density(0.5), Density(epsilon=1))))
    path = tmp_path / "x.json"
    assert run(["bench", "step", "--network", "tiny", *QUICK, "--json", str(path)]) == 0
    found = document(path, "step", StepRow)
    assert [(row["density"], row["batch"]) for row in found["rows"]] == [("50 %", 2), ("epsilon 1", 2)]
    shown = capsys.readouterr().out
    for expected in ("whole training steps", "where the step's time goes", "one rewiring", "epsilon 1"):
        assert expected in shown
    assert (
        run(["bench", "step", "--network", "tiny", "--sparsity", "0.75", "--batch", "3", "--budget", "uniform", *QUICK, "--json", "-"]) == 0
    )
    only_json = json.loads(capsys.readouterr().out)
    assert [(row["density"], row["batch"], row["budget"]) for row in only_json["rows"]] == [("75 %", 3, "uniform")]


def test_memory(tmp_path, capsys):
    path = tmp_path / "x.json"
    assert run(["bench", "memory", "--size", "64", "--layers", "1", "--sparsity", "0.5", "--threads", "1", "--json", str(path)]) == 0
    (row,) = document(path, "memory", MemoryRow)["rows"]
    assert (row["size"], row["connections"]) == (64, 2048)
    assert "bytes / connection" in " ".join(capsys.readouterr().out.split())


def test_rewire(tmp_path, capsys):
    path = tmp_path / "x.json"
    given = ["--shape", "16x8", "--sparsity", "0.5", "--batch", "3", *QUICK, "--json", str(path)]
    assert run(["bench", "rewire", *given]) == 0
    (row,) = document(path, "rewire", RewireRow)["rows"]
    assert (row["layer"], row["connections"], row["batch"]) == ("16 -> 8", 64, 3)
    assert "top gradients" in " ".join(capsys.readouterr().out.split())
    assert run(["bench", "page", str(path)]) == 0
    assert "| 16 -> 8 at 50%, batch 3 | 64 | 1 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--shape", "16x8", "--sparsity", "0.5,0.75", "--batch", "1,3"],
            [("16 -> 8", 0.5, 1), ("16 -> 8", 0.5, 3), ("16 -> 8", 0.75, 1), ("16 -> 8", 0.75, 3)],
        ),
        (["--shape", "16x8", "--pattern", "1:4"], [("16 -> 8", 0.75, 1)]),
        (["--shape", "16x8", "--pattern", "fan-in", "--ablated", "0.5", "--sparsity", "0.75", "--no-tune"], [("16 -> 8", 0.75, 1)]),
        (["--network", "tiny", "--batch", "2"], [("tiny, 50 %", 0.5, 2)]),
        (["--network", "tiny", "--sparsity", "0.75"], [("tiny, 75 %", 0.75, 1)]),
    ],
)
def test_inference(options, expected, tmp_path, capsys, monkeypatch):
    def tiny(batch):
        return torch.randn(batch, 8), torch.randint(4, (batch,))

    monkeypatch.setitem(NETWORKS, "tiny", Network("tiny", lambda: torch.nn.Linear(8, 4), tiny, 2, (Density(0.5),)))
    path = tmp_path / "x.json"
    assert run(["bench", "inference", *options, *QUICK, "--json", str(path)]) == 0
    found = document(path, "inference", InferenceRow)
    assert [(row["model"], row["sparsity"], row["batch"]) for row in found["rows"]] == expected
    assert found["peaks"] == []
    shown = " ".join(capsys.readouterr().out.split())
    assert "packed" in shown
    assert ("ablated dense" in shown) == ("--ablated" in options)
    assert run(["bench", "page", str(path)]) == 0
    assert f"| {expected[0][0]} | {expected[0][2]} | 1 |" in capsys.readouterr().out.replace(", constant fan-in", "").replace(", N:4", "")


def test_inference_of_a_run(tmp_path, capsys):
    folder, path = tmp_path / "run", tmp_path / "x.json"
    assert run(["train", "digits-mlp", "--epochs", "1", "--compare", "sparse", "--out", str(folder)]) == 0
    capsys.readouterr()
    given = ["--run", str(folder), "--values", "float32,bfloat16", "--no-tune", *QUICK, "--json", str(path)]
    assert run(["bench", "inference", *given]) == 0
    rows = document(path, "inference", InferenceRow)["rows"]
    trained = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert [row["model"] for row in rows] == ["digits-mlp"] * 2
    assert [row["accuracy"]["before"] for row in rows] == [trained["test_accuracy"]] * 2
    assert rows[0]["accuracy"]["packed"] == trained["test_accuracy"]
    assert rows[1]["accuracy"]["packed"] == pytest.approx(trained["test_accuracy"], abs=0.02)
    assert rows[0]["largest_error"] < 1e-5 < rows[1]["largest_error"]
    assert f"{trained['test_accuracy']:.2%} >" in " ".join(capsys.readouterr().out.split())


def test_page_between_other_markers(tmp_path, capsys):
    result, guide = tmp_path / "x.json", tmp_path / "deploy.md"
    assert run(["bench", "inference", "--shape", "16x8", "--sparsity", "0.5", *QUICK, "--json", str(result)]) == 0
    guide.write_text("<!-- bench -->\nkept\n<!-- /bench -->\n<!-- one -->\n<!-- /one -->\n")
    assert run(["bench", "page", str(result), "--into", str(guide), "--marker", "one"]) == 0
    kept, written = guide.read_text().split("<!-- one -->")
    assert "kept" in kept
    assert "| 16 -> 8 | 1 | 1 |" in written


def test_page(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    result, readme, plot = tmp_path / "x.json", tmp_path / "README.md", tmp_path / "docs" / "speedup.png"
    assert run(["bench", "linear", "--shape", "16x8", "--sparsity", "0.5,0.8,0.9", *QUICK, "--json", str(result)]) == 0
    readme.write_text("# title\n<!-- bench -->\n<!-- /bench -->\n")
    capsys.readouterr()
    assert run(["bench", "page", str(result), "--into", str(readme), "--plot", str(plot)]) == 0
    assert "16 -> 8, batch 256, forward, 1 thread: as fast as dense" in capsys.readouterr().out
    assert "](docs/speedup.png)" in readme.read_text()
    assert plot.exists()
    assert run(["bench", "page", str(result)]) == 0
    assert "| 16 -> 8 | 256 | 1 |" in capsys.readouterr().out


def test_the_short_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("truesparse.runs.machine.torch.backends.cpu.get_cpu_capability", lambda: "SCALAR")
    result, page = tmp_path / "x.json", tmp_path / "page.md"
    assert run(["bench", "linear", "--shape", "16x8", "--sparsity", "0.5,0.75", *QUICK, "--isa", "scalar", "--json", str(result)]) == 0
    page.write_text("<!-- glance -->\n<!-- /glance -->\n")
    assert run(["bench", "page", "--glance", str(result), "--into", str(page), "--marker", "glance"]) == 0
    assert "| layer 16 -> 8, batch 256, forward + backward | 50 / 75 % | " in page.read_text()
    capsys.readouterr()
    assert run(["bench", "page", "--glance", str(result), "--plot", str(tmp_path / "x.png")]) == 2
    assert "--glance does not go with --plot" in capsys.readouterr().err


def test_a_wrong_kernel_ends_with_1_and_one_line(capsys, tmp_path, monkeypatch):
    spmm = MatrixKernels.spmm
    monkeypatch.setattr(MatrixKernels, "spmm", lambda *given: spmm(*given) + 1)
    assert run(["bench", "linear", "--shape", "16x8", "--sparsity", "0.5", *QUICK, "--json", str(tmp_path / "x.json")]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("truesparse: 16 -> 8, 50.0% sparse: y of sparse is wrong: off by 1.00e+00")
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["linear", "--sparsity", "1"], "--sparsity must be in [0, 1), got 1.0"),
        (["linear", "--batch", "-1"], "--batch must be at least 1, got -1"),
        (["linear", "--isa", "mmx"], "--isa: asks for an unknown instruction set 'mmx'"),
        (["linear", "--threads", str(cores() + 1)], f"--threads must be from 1 to the {cores()} cores"),
        (["linear", "--seconds", "0"], "--seconds must be greater than 0"),
        (["linear", "--dtype", "float16"], "--dtype: unknown 'float16'"),
        (["linear", "--pattern", "2:5"], "3072 -> 768: NM(n=2, m=5) needs columns divisible by 5"),
        (["linear", "--json", "absent/x.json"], "Invalid value for --json: cannot write absent/x.json: there is no folder absent"),
        (["conv", "--layer", "conv63"], "--layer: unknown 'conv63'"),
        (["step", "--network", "gtp"], "--network: unknown 'gtp'; known are cifar-mlp, mnist-cnn, resnet20, gpt"),
        (["step", "--budget", "erq"], "--budget: unknown 'erq'; known are uniform, er, erk"),
        (["inference", "--table", "rigl"], "--table: unknown 'rigl'; known are one-sample, srigl, break-even, values"),
        (["inference", "--table", "srigl", "--shape", "8x8"], "--table does not go with --shape: leave one of them out"),
        (["inference", "--network", "mnist-cnn", "--pattern", "2:4"], "--network does not go with --pattern"),
        (["inference", "--run", "runs/x", "--sparsity", "0.5"], "--run does not go with --sparsity"),
        (["inference", "--network", "gtp"], "--network: unknown 'gtp'; known are cifar-mlp"),
        (["inference", "--values", "float16"], "--values: unknown 'float16'; known are float32, bfloat16, int8"),
        (["inference", "--ablated", "0.5"], "--ablated needs --pattern fan-in"),
        (["inference", "--pattern", "fan-in", "--ablated", "0.9"], "--ablated 0.9: 77 neurons of 3072 inputs cannot hold"),
        (["inference", "--pattern", "2:4", "--sparsity", "0.9"], "--pattern 2:4 fixes the sparsity at 0.5"),
        (["inference", "--batch", "0"], "--batch must be at least 1, got 0"),
        (["memory", "--size", "0"], "--size must be at least 1, got 0"),
        (["linear", "--device", "gpu"], "--device: unknown 'gpu'; known are cpu, cuda, with a number"),
        (["conv", "--device", "mps"], "--device mps: truesparse has no kernels for mps; known are cpu, cuda"),
        (["linear", "--dtype", "tf32"], "--dtype: unknown 'tf32'; known are float32, bfloat16"),
        (["rewire", "--algorithm", "rigel"], "--algorithm: unknown 'rigel'; known are "),
        (["scale", "--device", "cuda"], "Invalid value for --device: bench scale measures the CPU only, got cuda: leave it out"),
        (["inference", "--device", "cuda"], "Invalid value for --device: bench inference measures the CPU only, got cuda"),
        (["page", "absent.json"], "cannot read absent.json: No such file or directory"),
    ],
)
def test_wrong_requests_end_with_2_and_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("truesparse.bench.work.measure_peaks", None)  # nothing is begun
    assert run(["bench", *arguments]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith(f"truesparse: {said}"), shown.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["linear", "--threads", "2"], "--threads is of the CPU: leave it out with --device cuda"),
        (["memory", "--threads", "2"], "--threads is of the CPU: leave it out with --device cuda"),
        (["rewire", "--isa", "avx2"], "--isa is of the CPU: leave it out with --device cuda"),
        (["step", "--compile"], "--compile is of the CPU: torch.compile of sparse layers is not tried on cuda; leave it out"),
        (["conv", "--dtype", "int8"], "--dtype: unknown 'int8'; known are float32, bfloat16, tf32, float16"),
    ],
)
def test_wrong_requests_for_a_gpu(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr("truesparse.bench.request.device_here", torch.device)
    monkeypatch.setattr("truesparse.bench.work.measure_peaks", None)  # nothing is begun
    assert run(["bench", *arguments, "--device", "cuda"]) == 2
    assert capsys.readouterr().err == f"truesparse: {said}\n"


def test_conditions_of_a_gpu(monkeypatch):
    monkeypatch.setattr("truesparse.bench.request.device_here", torch.device)
    exact, rounded = (make_conditions(None, 1.0, dtype, "cuda") for dtype in ("float32", "tf32"))
    assert (exact.dtype_name, rounded.dtype_name) == ("float32", "tf32")
    assert (exact.tf32, rounded.tf32) == (False, True)
    assert "two_four" in exact.beside
    assert rounded.beside == ()
    assert exact.threads == (torch.get_num_threads(),)
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with multiplied_in(tf32=True):
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("high", True)
        with multiplied_in(tf32=False):
            assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_whole_rewirings(tmp_path, capsys):
    path = tmp_path / "x.json"
    given = ["--shape", "16x8", "--sparsity", "0.5", "--batch", "3", "--algorithm", "rigl", "--algorithm", "set"]
    assert run(["bench", "rewire", *given, *QUICK, "--json", str(path)]) == 0
    (row,) = document(path, "rewire", RewireRow)["rows"]
    assert row["algorithms"].keys() == {"rigl", "set"}
    assert all(seconds > 0 for seconds in row["algorithms"].values())
    shown = capsys.readouterr().out
    assert "rigl" in shown
    assert "set" in shown


def test_the_help_names_what_there_is():
    from truesparse.bench.inference_tables import TABLES
    from truesparse.bench.request import CONVOLUTIONS
    from truesparse.cli.bench import conv, inference, step

    assert all(name in str(step.__annotations__["network"]) for name in NETWORKS)
    assert all(name in str(inference.__annotations__["network"]) for name in NETWORKS)
    assert all(name in str(inference.__annotations__["table"]) for name in TABLES)
    assert all(name in str(conv.__annotations__["layer"]) for name in CONVOLUTIONS)
