"""Large networks are measured in a process of their own, and every byte counts."""

import json

import pytest

from truesparse import _core
from truesparse.bench import Document, ScaleCase, measure_scale, read_document, scale
from truesparse.bench.page import as_markdown
from truesparse.bench.request import large_counts_of
from truesparse.runs import ConfigError, RunError

MACHINE = {"processor": "P", "instruction_set": "avx2", "torch": "2", "torch_instruction_set": "AVX2", "threads": 1}


def test_a_small_training(tmp_path):
    said = []
    row = measure_scale(ScaleCase(neurons=600, fan_in=4, batch=3), _core.isa(), said.append)
    assert said == ["600 neurons of 4 connections, batch 3, SGD with momentum, GSE"]
    # 256 -> 200 -> 200 -> 200 -> 10; a layer has four connections for each of the more of its rows and columns.
    assert row.connections == 4 * (256 + 200 + 200 + 200)
    assert row.bytes["weights"] == row.bytes["gradients"] == row.bytes["optimizer"] == 4 * (row.connections + 610)
    assert row.bytes_per_connection == sum(row.bytes.values()) / row.connections
    assert row.peak_bytes_per_connection >= 0
    assert row.connections_per_second == row.connections / row.step_seconds
    assert min(row.making_seconds, row.first_step_seconds, row.step_seconds, row.rewiring_seconds) > 0
    document = Document("scale", MACHINE, "float32", (), (row,))
    (tmp_path / "scale.json").write_text(document.to_json())
    assert read_document(tmp_path / "scale.json") == document
    assert json.loads(document.to_json())["rows"][0]["neurons"] == 600
    assert "| 600 | 3,424 |" in as_markdown([document], None)


def _die(case, isa):
    import os

    os._exit(9)


def test_a_process_that_is_killed_is_a_failure_for_a_known_reason(monkeypatch):
    monkeypatch.setattr(scale, "train_and_measure", _die)
    with pytest.raises(RunError, match="was killed; was there enough memory"):
        measure_scale(ScaleCase(30), _core.isa(), lambda name: None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"neurons": 2}, "--neurons must be at least 3, got 2"),
        ({"neurons": 30, "fan_in": 0}, "--fan-in must be at least 1, got 0"),
        ({"neurons": 30, "batch": 0}, "--batch must be"),
    ],
)
def test_refusals(given, said):
    with pytest.raises(ConfigError, match=said):
        ScaleCase(**given)


def test_large_counts():
    assert large_counts_of("--neurons", "1e6,10,2.5e3,10") == (1_000_000, 10, 2500)
    for text in ("", "few", "0", "1.5", "1e6,-1", "inf", "nan"):
        with pytest.raises(ConfigError, match=r"--neurons expects whole numbers from 1, such as 1e6,1e7, got"):
            large_counts_of("--neurons", text)
