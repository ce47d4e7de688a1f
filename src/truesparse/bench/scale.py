"""How large can a network be here? Millions of neurons with a few connections each, in a process of their own: time and bytes a connection.

A step is forward with cross-entropy, backward, SGD with momentum, `zero_grad`. GSE rewires, whose cost does not grow with the absent ones.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import _core
from ..algorithms import GSE  # type: ignore[attr-defined]
from ..metrics import live_bytes
from ..nn import SparseLinear, topology_layers
from ..rewiring import Rewirer
from ..runs import ConfigError
from .document import ScaleRow
from .memory import in_a_new_process, resident_bytes
from .timing import elapsed

INPUTS, CLASSES, HIDDEN_LAYERS = 256, 10, 3
STEPS = 6  # the rewiring comes after the last but one
SEED = 0
LARGE = 1 << 20  # bytes: what glibc gives back to the system at once, so that freed memory is not taken for held
MMAP_THRESHOLD = -3


@dataclass(frozen=True)
class ScaleCase:
    """`neurons` in three hidden layers, with `fan_in` connections each, on `batch` samples.

    Raises:
        ConfigError: if one is out of its range.
    """

    neurons: int
    fan_in: int = 10
    batch: int = 8
    threads: int = 1

    def __post_init__(self) -> None:
        for name, least in (("neurons", HIDDEN_LAYERS), ("fan_in", 1), ("batch", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}, got {getattr(self, name)}")


def measure_scale(case: ScaleCase, isa: str, tell: Callable[[str], None]) -> ScaleRow:
    """Trains in a new process and measures there.

    Args:
        case: what to train.
        isa: instruction set of its kernels.
        tell: hears what is about to be done.

    Raises:
        RunError: if the process was killed, as the system does when memory runs out.
    """
    tell(f"{case.neurons:,} neurons of {case.fan_in} connections, batch {case.batch}, SGD with momentum, GSE")
    return in_a_new_process(train_and_measure, case, isa)


def train_and_measure(case: ScaleCase, isa: str) -> ScaleRow:
    """Trains in this process, through a rewiring; the peak is that of everything the process ever did."""
    torch.set_num_threads(case.threads)
    _core.use_isa(isa)
    _give_back_at_once()
    _warm_up()
    before = resident_bytes("VmRSS")
    generator = torch.Generator().manual_seed(SEED)
    made: list[nn.Sequential] = []
    making = elapsed(lambda: made.append(_network(case, generator)))
    (model,) = made
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    rewirer = Rewirer(model, optimizer, GSE(), STEPS - 1, generator=generator)
    x, target = torch.randn(case.batch, INPUTS, generator=generator), torch.randint(CLASSES, (case.batch,), generator=generator)
    held: dict[str, int] = {}
    rewiring: list[float] = []

    def step() -> None:
        F.cross_entropy(model(x), target).backward()
        if rewirer.step():
            optimizer.step()
        held.update(live_bytes(model, optimizer))
        rewiring.append(rewirer.seconds)
        optimizer.zero_grad()

    times = [elapsed(step) for _ in range(STEPS)]
    usual, connections = median(times[1 : STEPS - 2]), sum(layer.topology.nnz for layer in topology_layers(model).values())
    return ScaleRow(
        neurons=case.neurons,
        connections=connections,
        batch=case.batch,
        threads=case.threads,
        bytes=held,
        bytes_per_connection=sum(held.values()) / connections,
        peak_bytes_per_connection=(resident_bytes("VmHWM") - before) / connections,
        making_seconds=making,
        first_step_seconds=times[0],
        step_seconds=usual,
        rewiring_seconds=rewiring[-1],
        connections_per_second=connections / usual,
    )


def _network(case: ScaleCase, generator: torch.Generator) -> nn.Sequential:
    width = case.neurons // HIDDEN_LAYERS
    parts: list[nn.Module] = []
    for columns, rows in pairwise((INPUTS, *[width] * HIDDEN_LAYERS, CLASSES)):
        density = min(1.0, case.fan_in / min(rows, columns))
        parts += [SparseLinear(columns, rows, sparsity=1 - density, generator=generator), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def _give_back_at_once() -> None:
    with suppress(AttributeError, OSError, TypeError):  # another C library: what it keeps is counted
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, LARGE)


def _warm_up() -> None:
    """What torch imports with the first step of an optimizer is none of the network's."""
    parameter: Tensor = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    torch.optim.SGD([parameter], lr=1.0).step()
