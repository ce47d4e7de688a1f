"""Memory is that of a process of its own, and every byte counts."""

import pytest
import torch

from truesparse import _core
from truesparse.bench import MemoryCase, measure_memory, memory
from truesparse.bench.memory import dense_bytes, resident_bytes
from truesparse.runs import ConfigError, RunError


def test_a_small_training():
    said = []
    held = torch.ones(64 << 20)  # 256 MB here are no part of what is measured there
    row = measure_memory(MemoryCase(layers=2, size=64, sparsity=0.5, batch=4), _core.isa(), said.append)
    assert said == ["2 layers of 64 x 64 at 50.0%, batch 4, AdamW, RigL"]
    assert row.connections == 2 * 64 * 64 // 2
    # Each connection: a value, a gradient, two moments, at least the column index and something for the transpose.
    assert row.bytes["weights"] == row.bytes["gradients"] == 4 * row.connections
    assert row.bytes["optimizer"] >= 8 * row.connections
    assert row.bytes["topology"] >= 8 * row.connections
    assert row.bytes_per_connection == sum(row.bytes.values()) / row.connections
    assert row.resident_before <= row.resident_peak < row.resident_before + held.nbytes
    assert row.dense_bytes == 2 * 64 * 64 * 16


def test_dense_bytes():
    assert dense_bytes(3, 16384) == 12_884_901_888


def test_resident_bytes_grow_with_what_is_held():
    before = resident_bytes("VmRSS")
    held = torch.ones(32 << 20)
    assert resident_bytes("VmRSS") >= before + 0.9 * held.nbytes
    assert resident_bytes("VmHWM") >= before + 0.9 * held.nbytes


def _die(case, isa):
    import os

    os._exit(9)


def test_a_process_that_is_killed_is_a_failure_for_a_known_reason(monkeypatch):
    monkeypatch.setattr(memory, "train_and_measure", _die)
    with pytest.raises(RunError, match="was killed; was there enough memory"):
        measure_memory(MemoryCase(1, 8, 0.5, 1), _core.isa(), lambda name: None)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"size": 0}, "--size must be at least 1, got 0"), ({"layers": -1}, "--layers must be"), ({"sparsity": 1.0}, "--sparsity must be in")],
)
def test_refusals(given, said):
    with pytest.raises(ConfigError, match=said):
        MemoryCase(**given)
