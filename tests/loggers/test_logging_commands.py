"""The options of `truesparse train` that log, and what is said when they cannot."""

import json
import re
import sys

import pytest

from truesparse.cli.main import run, with_optional_values

FILE = """
from truesparse.loggers import Logger


class Mine(Logger):
    def __init__(self, subject):
        self.file = open(subject.folder / f"{subject.variant}.txt", "a")

    def scalars(self, values, step):
        print(step, values["loss/test"], file=self.file)

    def close(self):
        self.file.close()
"""
TRAIN = ["train", "digits-mlp", "--epochs", "2", "--batch-size", "300", "--every", "3", "--threads", "1"]


@pytest.mark.parametrize(
    ("given", "made"),
    [
        (["train", "x", "--tensorboard"], ["train", "x", "--tensorboard="]),
        (["--tensorboard", "--mlflow", "sqlite:///x", "--wandb", "-h"], ["--tensorboard=", "--mlflow", "sqlite:///x", "--wandb=", "-h"]),
        (["--tensorboard=x", "--out", "y"], ["--tensorboard=x", "--out", "y"]),
        ([], []),
    ],
)
def test_values_that_may_be_left_out(given, made):
    assert with_optional_values(given) == made


def test_a_run_and_its_resumption(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    assert run([*TRAIN, "--out", "run", "--logger", "mine.py", "--tensorboard"]) == 0
    expected = [json.loads(line)["test_loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [line.split() for line in (tmp_path / "run" / "sparse.txt").read_text().splitlines()]
    assert [(int(step), float(loss)) for step, loss in told] == list(enumerate(expected, 1))
    assert list((tmp_path / "run" / "tensorboard" / "sparse").iterdir())
    assert run(["train", "--resume", "--out", "run"]) == 0, "where it is logged is remembered"
    assert len((tmp_path / "run" / "sparse.txt").read_text().splitlines()) == 2
    capsys.readouterr()


@pytest.mark.parametrize(("option", "module"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow.tracking"), ("wandb", "wandb")])
def test_an_absent_library(option, module, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in {module, module.split(".")[0]}:
        monkeypatch.setitem(sys.modules, name, None)
    assert run([*TRAIN, f"--{option}"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"truesparse: .*needs {option}.*, which is not installed: pip install 'truesparse\[{option}\]'\n", said)
    assert list(tmp_path.iterdir()) == [], "nothing is begun"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read the logger mine.py: No such file or directory"),
        ("x = (", "the logger mine.py is not Python: line 1"),
        ("x = 1", "the logger mine.py must define one class with scalars(values, step), found none"),
        ("class A:\n def scalars(self): pass\nclass B(A): pass", "must define one class with scalars(values, step), found A, B"),
        ("class A:\n def scalars(self): pass", "A in mine.py lacks settings, histogram, image, results, flush, close: derive it from"),
        (FILE.replace("self, subject", "self"), "Mine in mine.py must take a Subject as its only argument: too many positional"),
    ],
)
def test_a_logger_that_is_none(tmp_path, monkeypatch, capsys, text, said):
    monkeypatch.chdir(tmp_path)
    if text is not None:
        (tmp_path / "mine.py").write_text(text)
    assert run([*TRAIN, "--out", "run", "--logger", "mine.py"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_none(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run([*TRAIN, "--out", str(tmp_path / "run"), "--tensorboard", str(tmp_path / "file")]) == 2
    assert "--tensorboard: " in capsys.readouterr().err
