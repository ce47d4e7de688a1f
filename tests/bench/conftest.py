"""What tests of measurements share: small documents, a small network, the machine's settings put back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from truesparse.bench import Document, LayerRow, MemoryRow, StepRow
from truesparse.bench.networks import Density, Network
from truesparse.bench.work import Peaks


@pytest.fixture
def peaks() -> Peaks:
    return Peaks(threads=1, multiply_adds=1e11, bytes=1e10)


@pytest.fixture
def tiny_network() -> Network:
    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 10))

    return Network("tiny", make, lambda batch: (torch.randn(batch, 2, 5, 5), torch.randint(10, (batch,))), 6, (Density(0.5),))


@pytest.fixture
def layer_row() -> Callable[..., LayerRow]:
    """A row with made-up times: `ratio` times as fast as dense."""

    def make(sparsity: float, ratio: float, direction: str = "forward", threads: int = 1, layer: str = "8 -> 4") -> LayerRow:
        seconds, ratios = {"dense": 1.0, "sparse": 1.0 / ratio}, {"sparse": ratio}
        return LayerRow(layer, "Unstructured()", sparsity, 10, 16, threads, direction, seconds, ratios, {}, 100, 200, 0.5, 0.25)

    return make


@pytest.fixture
def document(peaks: Peaks) -> Callable[..., Document]:
    def make(*rows: LayerRow | StepRow | MemoryRow) -> Document:
        command = {LayerRow: "linear", StepRow: "step", MemoryRow: "memory"}[type(rows[0])]
        machine = {"processor": "Abacus 9", "instruction_set": "avx2", "torch": "2.13.0", "threads": 1}
        return Document(command, machine, "float32", (peaks,), rows)

    return make
