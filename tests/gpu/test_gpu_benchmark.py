"""benchmarks/gpu.py runs to its end in Triton's interpreter, and measures nothing where a kernel is wrong."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the extra gpu is not installed")


@pytest.fixture
def program(monkeypatch):
    spec = importlib.util.spec_from_file_location("gpu_benchmark", Path(__file__).parents[2] / "benchmarks" / "gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def run(program, monkeypatch, path):
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--json", str(path)])
    return program.main()


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="in a process with TRITON_INTERPRET=1")
def test_all_of_it(program, monkeypatch, tmp_path):
    assert run(program, monkeypatch, tmp_path / "out" / "gpu.json") == 0
    document = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert document["machine"]["device"] == "interpreter"
    assert {row["table"] for row in document["rows"]} == {"SRigL", "training", "large"}
    kernels = {name.split("[")[1].split(",")[0] for row in document["rows"] for name in row["kernel"].split("], ")}
    assert kernels == {"rows", "bitmap", "shared", "blocks"}
    for row in document["rows"]:
        assert row["milliseconds"].keys() == row["times_as_fast"].keys()
        assert all(own > 0 for own in row["milliseconds"].values())


def test_a_wrong_kernel_is_not_measured(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "usable_devices", lambda: ("cpu",))
    monkeypatch.setattr(program, "checks", lambda: [program.Check("triton.matrix[rows]", "float32", 4, ("spmm", "sddmm"))])
    assert run(program, monkeypatch, tmp_path / "gpu.json") == 1
    assert "triton.matrix[rows] in float32 is wrong: spmm, sddmm\na kernel is wrong: nothing is measured" in capsys.readouterr().err
    assert not (tmp_path / "gpu.json").exists()


def test_without_a_gpu_it_says_so(program, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program, "usable_devices", lambda: ())
    assert run(program, monkeypatch, tmp_path / "gpu.json") == 1
    assert "no GPU that the kernels run on, and TRITON_INTERPRET is not set" in capsys.readouterr().err
