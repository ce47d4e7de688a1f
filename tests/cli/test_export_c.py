"""`truesparse export --c`: from a run to a header; wrong requests end in one line, and write nothing."""

import shutil

import pytest

from truesparse.cli.main import run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("c")
    assert run(["train", "digits-mlp", "--epochs", "1", "--sparsity", "0.9", "--out", str(path / "run")]) == 0
    return path


@pytest.fixture(autouse=True)
def _in_it(folder, monkeypatch):
    monkeypatch.chdir(folder)


def test_a_run_becomes_a_header(folder, capsys):
    assert run(["export", "run", "--c", "digits.h", "--values", "int8", "--calibration", "100", "--flash", "16K", "--ram", "1k"]) == 0
    printed = capsys.readouterr().out
    assert f"digits.h: {(folder / 'digits.h').stat().st_size:,} bytes" in printed
    assert "linear + ReLU" in printed
    assert "int digits_predict_int8(const int8_t *x, int8_t *y)" in (folder / "digits.h").read_text()
    assert run(["export", "run", "--c", "floats.h"]) == 0
    assert "int floats_predict(const float *x, float *y)" in (folder / "floats.h").read_text()


def test_what_a_compiler_makes_of_it(capsys):
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    assert run(["export", "run", "--c", "digits.h", "--size", "gcc -O2"]) == 0
    printed = capsys.readouterr().out
    assert ".rodata" in printed
    assert "digits_linear" in printed


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--onnx", "x", "--values", "int8"], 2, "Invalid value for --values: it is about the C header: say which with --c FILE"),
        (["--onnx", "x", "--ram", "1K"], 2, "Invalid value for --ram: it is about the C header: say which with --c FILE"),
        (["--c", "x.h", "--calibration", "9"], 2, "Invalid value for --calibration: it is for --values int8"),
        (
            ["--c", "x.h", "--flash", "much"],
            2,
            "Invalid value for --flash: expected a number of bytes such as 65536, 64K or 1M, got 'much'",
        ),
        (["--c", "x.h", "--values", "int4"], 1, "cannot export run: values is one of float32, int8, got 'int4'"),
        (["--c", "x.h", "--flash", "2K"], 1, "more than 2,048; the largest layer, '1' (linear + ReLU 64 -> "),
        (["--c", "x.h", "--ram", "100"], 1, "more than 100; the most is in use during '3' (linear + ReLU"),
        (["--c", "2.h"], 1, "cannot export run: '2' cannot begin names in C"),
        (["--c", "no/x.h"], 1, "cannot write no/x.h: there is no folder no"),
        (["--c", "y.h", "--size", "no-such-gcc"], 1, "cannot run no-such-gcc: No such file or directory; install it"),
    ],
)
def test_wrong_requests(arguments, code, said, folder, capsys):
    assert run(["export", "run", *arguments]) == code
    error = capsys.readouterr().err
    assert said in " ".join(error.split())
    assert len(error.strip().splitlines()) == 1
    assert not (folder / "x.h").exists()
