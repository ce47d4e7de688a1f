"""How much memory does training take? Square layers with AdamW and RigL, in a process of their own, so that its peak is theirs.

Every byte of the layers counts: values, gradients, two moments, the topology, its transpose and all plans of the kernels.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import nn

from .. import _core
from ..algorithms import RigL  # type: ignore[attr-defined]
from ..common.devices import forget_peak, held_bytes, peak_bytes
from ..metrics import live_bytes
from ..nn import SparseLinear, topology_layers
from ..rewiring import Rewirer
from ..runs import ConfigError, RunError
from .document import MemoryRow
from .timing import elapsed

EVERY = 5  # steps between two rewirings
REWIRINGS = 2
ARRAYS_OF_DENSE = 4  # weight, gradient, two moments
BYTES_OF_FLOAT = 4
SEED = 0

Case = TypeVar("Case")
Row = TypeVar("Row")


@dataclass(frozen=True)
class MemoryCase:
    """`layers` layers of `size` x `size` at `sparsity`, on `batch` samples.

    Raises:
        ConfigError: if one is out of its range.
    """

    layers: int = 3
    size: int = 16384
    sparsity: float = 0.99
    batch: int = 32
    threads: int = 1
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("layers", "size", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not (isfinite(self.sparsity) and 0 <= self.sparsity < 1):
            raise ConfigError(f"--sparsity must be in [0, 1), got {self.sparsity}")


def measure_memory(case: MemoryCase, isa: str, tell: Callable[[str], None]) -> MemoryRow:
    """Trains in a new process and measures there.

    Args:
        case: what to train.
        isa: instruction set of its kernels.
        tell: hears what is about to be done.

    Raises:
        RunError: if the process was killed, as the system does when memory runs out.
    """
    tell(f"{case.layers} layers of {case.size} x {case.size} at {case.sparsity:.1%}, batch {case.batch}, AdamW, RigL")
    return in_a_new_process(train_and_measure, case, isa)


def in_a_new_process(train: Callable[[Case, str], Row], case: Case, isa: str) -> Row:
    """`train(case, isa)` in a process that has done nothing before, so that its peak is its own.

    Raises:
        RunError: if the process was killed, as the system does when memory runs out.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(train, case, isa).result()
        except BrokenProcessPool as error:
            raise RunError(f"the process that trained {case} was killed; was there enough memory?") from error


def train_and_measure(case: MemoryCase, isa: str) -> MemoryRow:
    """Trains in this process, through two rewirings; the peak is that of everything the process ever did."""
    torch.set_num_threads(case.threads)
    _core.use_isa(isa)
    device = torch.device(case.device)
    forget_peak(device)
    before = resident_bytes("VmRSS") if device.type == "cpu" else held_bytes(device)
    generator = torch.Generator().manual_seed(SEED)
    layers = [SparseLinear(case.size, case.size, bias=False, sparsity=case.sparsity, generator=generator) for _ in range(case.layers)]
    model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU()))).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rewirer = Rewirer(model, optimizer, RigL(), EVERY, generator=generator)
    x = torch.randn(case.batch, case.size, generator=generator).to(device)
    held: dict[str, int] = {}

    def step() -> None:
        model(x).square().mean().backward()
        if rewirer.step():
            optimizer.step()
        held.update(live_bytes(model, optimizer))
        optimizer.zero_grad()

    times = [elapsed(step, device) for _ in range(EVERY * REWIRINGS + 1)]
    rewiring = times[EVERY - 1 :: EVERY]
    connections = sum(layer.topology.nnz for layer in topology_layers(model).values())
    return MemoryRow(
        layers=case.layers,
        size=case.size,
        sparsity=case.sparsity,
        connections=connections,
        batch=case.batch,
        threads=case.threads,
        bytes=held,
        bytes_per_connection=sum(held.values()) / max(connections, 1),
        resident_before=before or 0,
        resident_peak=(resident_bytes("VmHWM") if device.type == "cpu" else peak_bytes(device)) or 0,
        dense_bytes=dense_bytes(case.layers, case.size),
        step_seconds=median(time for time in times if time not in rewiring),
        rewiring_seconds=median(rewiring),
    )


def dense_bytes(layers: int, size: int) -> int:
    """What `layers` dense float32 layers of `size` x `size` take with AdamW: weights, gradients, two moments."""
    return layers * size * size * ARRAYS_OF_DENSE * BYTES_OF_FLOAT


def resident_bytes(kind: str) -> int:
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at most so far. Elsewhere than on Linux, always the most so far."""
    # getrusage would do, but on Linux a new process starts with the peak of the one that started it.
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(kind):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
