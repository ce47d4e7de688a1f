"""The command line: what it prints, where, and with which exit code."""

import json
import os
import select
import subprocess
import sys

import pytest
import torch
from processes import Command

from truesparse import __version__
from truesparse.cli.main import run
from truesparse.common.processor import cores
from truesparse.runs import make_config, task_names


def test_version(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"truesparse {__version__}\n"


COMMANDS = ("train", "doctor", "algorithms", "inspect", "pack", "export", "report", "tour")


@pytest.mark.parametrize("arguments", [["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help(capsys, arguments):
    assert run(arguments) == 0
    assert "Usage: truesparse" in capsys.readouterr().out


def test_help_names_what_there_is():
    """The help is written without importing what it speaks of."""
    from truesparse.cli.train import train

    shown = str(train.__annotations__["task"])
    assert all(name in shown for name in task_names())


def test_the_command_line_itself_does_not_import_torch():
    """Stands in for the package, whose own import may need torch, and looks at what the command line adds."""
    code = """
import importlib.util, sys, types
package = types.ModuleType("truesparse")
package.__path__ = list(importlib.util.find_spec("truesparse").submodule_search_locations)
sys.modules["truesparse"] = package
import truesparse.cli.main
assert truesparse.cli.main.run(["train", "--help"]) == 0
assert "torch" not in sys.modules
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "minst"], "unknown task 'minst'; known are"),
        (["train", "absent.py"], "cannot read the recipe absent.py: No such file or directory"),
        (["train", "digits-mlp", "--sparsity", "1.5"], "--sparsity must be in [0, 1), got 1.5"),
        (["train", "digits-mlp", "--sparsity", "much"], "Invalid value for '--sparsity': "),
        (["train", "digits-mlp", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["train", "digits-mlp", "--lr", "-1"], "--lr must be greater than 0, got -1.0"),
        (["train", "digits-mlp", "--compare", "dense,spars"], "--compare: unknown 'spars'; known are dense, masked, sparse"),
        (["train", "digits-mlp", "--algorithm", "riggle"], "--algorithm: unknown 'riggle'"),
        (["train", "digits-mlp", "--set", "fraction"], "Invalid value for --set: expected NAME=VALUE, got 'fraction'"),
        (["train", "digits-mlp", "--set", "fraction=0", "--set", "fraction=1"], "Invalid value for --set: fraction is given twice"),
        (["train", "digits-mlp", "--threads", str(cores() + 1)], f"--threads must be from 1 to the {cores()} cores of this machine, got "),
        (["pack", ".", "--threads", str(cores() + 1)], f"--threads must be from 1 to the {cores()} cores of this machine, got "),
        (["train", "digits-mlp", "--set", "fraction=x"], "--set: fraction of rigl must be a number, got 'x'"),
        (["train", "digits-mlp", "--optimizer", "adm"], "--optimizer: unknown 'adm'"),
        (["train", "digits-mlp", "--resume"], "Invalid value for --resume: say which run with --out DIR"),
        (["train", "digits-mlp", "--exclude", "nothing"], "cannot make the model sparse: exclude names 'nothing', which match no module"),
        (["train", "digits-mlp", "--colour"], "No such option: --colour"),
        (["trian"], "No such command 'trian'."),
    ],
)
def test_wrong_requests_give_one_line(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"truesparse: {said}"), captured.err
    assert list(tmp_path.iterdir()) == [], "nothing is begun"


def test_train_alone_says_what_to_try_first(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["--epochs", "3"]):
        assert run(["train", *arguments]) == 2
        said = capsys.readouterr().err
        assert all(task in said for task in task_names())
        first = next(line for line in said.splitlines() if line.startswith("  truesparse train"))
        assert first.split("   ")[0].strip() == "truesparse train digits-mlp --compare dense,sparse"
        assert len(said.splitlines()) <= 10
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_resume_is_told_before_what_it_was_logged_to(capsys, tmp_path):
    (tmp_path / "note").write_text("x")
    assert run(["train", "--resume", "--out", str(tmp_path / "note")]) == 1
    assert capsys.readouterr().err.startswith("truesparse: there is no run to resume in ")


def test_failures_for_a_known_reason(capsys, tmp_path, monkeypatch):
    (tmp_path / "note").write_text("x")
    assert run(["train", "digits-mlp", "--out", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"truesparse: the folder {tmp_path} is not empty; choose another --out\n"
    monkeypatch.setenv("TRUESPARSE_DATA", str(tmp_path / "note"))
    assert run(["train", "mnist-mlp", "--out", str(tmp_path / "run")]) == 1
    captured = capsys.readouterr().err
    assert captured.startswith("truesparse: cannot use the cache folder")
    assert captured.count("\n") == 1


def test_train(capsys, tmp_path):
    arguments = ["train", "digits-mlp", "--compare", "dense,masked,sparse", "--epochs", "2", "--algorithm", "set", "--set", "fraction=0.2"]
    more = [
        "--budget",
        "er",
        "--epsilon",
        "5",
        "--batch-size",
        "100",
        "--optimizer",
        "sgd",
        "--lr",
        "0.02",
        "--seed",
        "3",
        "--threads",
        "1",
    ]
    assert run([*arguments, *more, "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0] == "dense, masked, sparse: 2 epochs of 15 steps"
    assert len(lines) == 1 + 6
    assert lines[1].startswith("dense  epoch 1/2 train loss")
    for expected in ("dense + mask", "truly sparse", "test accuracy", "s / epoch", "inference, 100", "1 thread,", "100.0%", "1.00x"):
        assert expected in captured.out
    assert captured.out.endswith(f"The run is in {tmp_path / 'run'}\nIts page is {tmp_path / 'run' / 'report.html'}\n")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["epsilon"], config["algorithm_settings"]["fraction"], config["batch_size"], config["seed"]) == (5.0, 0.2, 100, 3)
    # Each option reached the config.
    assert make_config("digits-mlp", {}, {}).to_json().keys() <= config.keys()
    assert run(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
    assert "30 of 30" not in capsys.readouterr().out
    assert run(["train", "digits-mlp", "--epochs", "5", "--out", str(tmp_path / "run"), "--resume"]) == 1
    assert "was started with --epochs 2, not 5" in capsys.readouterr().err


def test_a_folder_is_chosen(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run(["train", "digits-mlp", "--epochs", "1"]) == 0
    assert len(list((tmp_path / "runs").glob("digits-mlp-2*"))) == 2
    assert "dense" not in capsys.readouterr().out, "one variant alone has nothing to be compared with"


def test_a_terminal_shows_a_bar(tmp_path):
    """Run in a terminal of its own (Linux and macOS have them)."""
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    arguments = ["train", "digits-mlp", "--epochs", "1", "--out", str(tmp_path / "run")]
    shown = b""
    with Command(arguments, os.ttyname(theirs), TERM="xterm", COLUMNS="120", NO_COLOR="1") as command:
        while command.runs or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.1)[0]:
                shown += os.read(ours, 65536)
        assert command.wait() == 0
    os.close(ours)
    os.close(theirs)
    for expected in ("steps/s", "loss", "100%", "sparse epoch 1/1 train loss", "truly sparse"):
        assert expected in shown.decode()


def test_doctor(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TRUESPARSE_DATA", str(tmp_path))
    assert run(["doctor"]) == 0
    shown = capsys.readouterr().out
    for expected in (
        __version__,
        torch.__version__,
        "in force",
        "TRUESPARSE_ISA",
        "not set",
        "threads",
        "extras",
        str(tmp_path),
        "convolution",
    ):
        assert expected in shown


def test_an_instruction_set_that_is_not_there(tmp_path):
    with Command(["doctor"], TRUESPARSE_ISA="abacus") as command:
        assert command.wait() == 0
        assert "in force NONE:" in command.out
        assert "'abacus'" in command.out
    with Command(["train", "digits-mlp", "--out", tmp_path / "run"], TRUESPARSE_ISA="abacus") as command:
        assert command.wait() == 2
        assert command.err.count("\n") == 1
        assert "TRUESPARSE_ISA" in command.err
    assert not (tmp_path / "run").exists()


def test_algorithms(capsys):
    assert run(["algorithms"]) == 0
    shown = capsys.readouterr().out
    for expected in ("rigl", "fraction=0.3", "arxiv.org/abs/1911.11134", "set", "static"):
        assert expected in shown


def test_a_reader_that_has_seen_enough():
    finished = subprocess.run(
        f"{sys.executable} -m truesparse algorithms | head -1", shell=True, capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in finished.stderr


def test_what_is_too_short_to_rewire_says_so_in_the_words_of_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(["train", "digits-mlp", "--epochs", "1", "--every", "40", "--threads", "1", "--out", "run"]) == 2
    assert "rewires every 40 until step" in capsys.readouterr().err
    assert run(["train", "digits-mlp", "--epochs", "1", "--every", "40", "--algorithm", "static", "--threads", "1", "--out", "run"]) == 0
