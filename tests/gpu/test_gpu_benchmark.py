"""benchmarks/gpu.py runs to its end in Triton's interpreter, stops when its time is up, and measures nothing where a kernel is wrong."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from truesparse import ops
from truesparse.bench import LayerRow, MemoryRow, RewireRow, StepRow, WrongResult, read_document
from truesparse.cli.main import run as truesparse

pytest.importorskip("triton", reason="the extra gpu is not installed")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="in a process with TRITON_INTERPRET=1")


@pytest.fixture
def program(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_benchmark", Path(__file__).parents[2] / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setenv("TRUESPARSE_KERNELS", "")  # which it sets for processes of its own
    monkeypatch.delenv("TRUESPARSE_KERNELS")
    return module


@interpreted
def test_all_of_it(program, tmp_path, capsys):
    assert program.main(["--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert re.search(r"\d+ results of \d+ kernels compared with dense float64", said)
    assert "left out: packed: `truesparse bench inference` measures the CPU only" in said
    assert "left out: bitmap: the interpreter rounds bfloat16 wrongly" in said
    assert ("left out: shared" in said) == ("shared-fan-in" not in program.PATTERNS)
    documents = {path.stem: read_document(path) for path in (tmp_path / "out").iterdir()}
    kinds = {"srigl": LayerRow, "rewire": RewireRow, "blocks": LayerRow, "rows": LayerRow, "memory": MemoryRow, "step": StepRow}
    assert {**kinds, "conv": LayerRow}.items() <= {name: type(document.rows[0]) for name, document in documents.items()}.items()
    assert all(document.machine["kernels"] == "triton" for document in documents.values())
    assert {row.kernel for row in documents["srigl"].rows} == {"triton.matrix[rows, interpreted]"}
    assert {row.kernel for row in documents["blocks"].rows} == {"triton.matrix[blocks, interpreted]"}
    forward = documents["srigl"].rows[0]
    assert {"dense", "masked", "csr", "sparse", "dense_bfloat16", "sparse_float16"} == forward.seconds.keys()
    assert forward.left_out.keys() == {"two_four"}
    assert documents["rewire"].rows[0].algorithms.keys() == {"rigl", "set"}
    assert truesparse(["bench", "page", str(tmp_path / "out" / "srigl.json")]) == 2
    assert "ran in Triton's interpreter, no time of which means anything" in capsys.readouterr().err


@interpreted
def test_what_there_is_no_time_for_is_named(program, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError("there was no time")

    monkeypatch.setattr(program, "taken", never)
    plan = program.on_a_gpu(torch.device("cpu"))
    with ops.use("triton"):
        parts = {part.name: part for part in plan.parts if part.dtype == "float32"}
        late = program.Budget(1.0, began=program.time.monotonic() - 60)
        short = program.Plan(tuple(parts.values()), {"packed": "no"}, 0.1)
        left_out = program.measure(short, torch.device("cpu"), tmp_path, program.Budget(late.seconds, late.began))
    assert left_out["packed"] == "no"
    assert left_out.keys() == {"packed", *parts}
    assert left_out["srigl"] == "no time for 16 of 16 lines, 0 s each"
    assert not list(tmp_path.iterdir())


@interpreted
def test_a_line_that_fails_leaves_the_others(program, tmp_path, monkeypatch):
    seen = []

    def taken(command, case, *_):
        seen.append(case)
        if len(seen) == 1:
            raise WrongResult("y of sparse\nis wrong")
        yield LayerRow("a", "b", 0.5, 1, 1, 1, "forward", {}, {}, {}, 1, 1, 1.0, 1.0)

    monkeypatch.setattr(program, "taken", taken)
    plan = program.Plan((program.Part("two", "linear", ("first", "second")),), {}, 0.1)
    with ops.use("triton"):
        left_out = program.measure(plan, torch.device("cpu"), tmp_path, program.Budget(60.0))
    assert left_out == {"two, line 1": "WrongResult: y of sparse is wrong"}
    assert len(read_document(tmp_path / "two.json").rows) == 1


@interpreted
def test_a_wrong_result_ends_with_1_after_the_others(program, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "checks_of_triton", lambda _: [])
    for found, code in (({"rows, line 1": "WrongResult: y of sparse is wrong"}, 1), ({"rows, line 1": "OutOfMemoryError: too large"}, 0)):
        monkeypatch.setattr(program, "measure", lambda *_, found=found: found)
        assert program.main(["--out", str(tmp_path)]) == code
        assert f"left out: rows, line 1: {found['rows, line 1']}" in capsys.readouterr().out


def test_its_plan_for_a_gpu_is_whole(program):
    """What it would measure there, as cases whose pattern fits their layer."""
    plan = program.on_a_gpu(torch.device("cuda", 0))
    assert [part.name for part in plan.parts][:2] == ["srigl", "rewire"]
    assert len({part.name for part in plan.parts}) == len(plan.parts)
    srigl = plan.parts[0].cases
    assert {case.input_shape[0] for case in srigl} == {1, 64, 256, 2048}
    assert {case.sparsity for case in srigl} == {0.8, 0.9, 0.95, 0.99}
    names = {case.network.name for part in plan.parts if part.command == "step" for case in part.cases}
    assert len(names) == 4
    sizes = [
        round((1 - case.sparsity) * case.geometry.rows * case.geometry.columns)
        for part in plan.parts
        if part.command == "rewire"
        for case in part.cases
    ]
    assert [round(size / 1e6) for size in sizes] == [1, 10]
    assert ("shared" in plan.missing) == ("shared-fan-in" not in program.PATTERNS)


def test_a_wrong_kernel_is_not_measured(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "usable_devices", lambda: ("cpu",))
    monkeypatch.setattr(program, "device_here", torch.device)
    monkeypatch.setattr(program, "checks_of_triton", lambda _: [program.Check("triton.matrix[rows]", "float32", 4, ("spmm", "sddmm"))])
    assert program.main(["--out", str(tmp_path / "gpu")]) == 1
    assert "triton.matrix[rows] in float32 is wrong: spmm, sddmm\na kernel is wrong: nothing is measured" in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()


def test_without_a_gpu_it_says_so(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "usable_devices", lambda: ())
    assert program.main(["--out", str(tmp_path / "gpu")]) == 1
    assert "no GPU that the kernels run on, and TRITON_INTERPRET is not set" in capsys.readouterr().err
