"""docs/guide/loggers.md does what it says: its Python runs, its class logs a run, and its table names what is logged."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.cli.main import run

PAGE = Path(__file__).parent.parent / "docs" / "guide" / "loggers.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_runs(folder, capsys):
    model = ts.sparsify(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), 0.5)
    optimizer = torch.optim.Adam(model.parameters())
    loader = [(torch.randn(6, 8), torch.randint(4, (6,))) for _ in range(5)]
    given = {"model": model, "optimizer": optimizer, "rewirer": ts.Rewirer(model, optimizer, ts.RigL(), every=2), "loader": loader, "F": F}
    for block in blocks("python"):
        exec(compile(block, str(PAGE), "exec"), given)
    assert "close" in capsys.readouterr().out
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator("logs/first")
    found.Reload()
    assert [event.step for event in found.Scalars("itop_rate/0")] == [1, 2]
    assert [event.step for event in found.Images("mask/2")] == [1, 2]


def test_the_command_and_the_class(folder, capsys):
    (folder / "lines.py").write_text(next(block for block in blocks("python") if "class Lines" in block))
    (command,) = re.findall(r"`truesparse (train digits-mlp --logger lines.py)`", PAGE.read_text())
    assert run([*command.split(), "--epochs", "1", "--ema", "0.9", "--out", "run"]) == 0
    (line,) = [json.loads(text) for text in (folder / "run" / "sparse.log.jsonl").read_text().splitlines()]
    table = PAGE.read_text().split("## What is logged")[1].split("## When")[0]
    named = {name.replace("LAYER", "") for name in re.findall(r"`([a-z_]+/[A-Za-z_]+)`", table)}
    logged = {re.sub(r"/\d$", "/", name) for name in line if name != "epoch"}
    assert logged - named == {"bytes/averages"}, "everything logged is on the page"
    assert named - logged == {"fan_in/", "fan_out/", "mask/", "bytes/peak"}, (
        "but for what a GPU counts, and everything on the page is logged"
    )
    shell = blocks("sh")[0].splitlines()[1].split()
    assert run([*shell[1:], "--epochs", "1"]) == 0
    assert list((folder / "runs" / "digits" / "tensorboard").iterdir())
