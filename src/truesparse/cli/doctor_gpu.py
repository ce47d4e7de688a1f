"""What does `truesparse doctor` say to who has a GPU, or wants one? What there is, and the one thing to do next."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..ops import family
from ..ops.table import device_types
from ..ops.triton.loading import state
from ..runs import ConfigError
from ..runs.devices import device_here


def facts() -> Iterator[tuple[str, str]]:
    """(what, how it is here)."""
    yield "torch is built for", f"CUDA {torch.version.cuda}" if torch.backends.cuda.is_built() else "the CPU only"
    yield "GPUs", "; ".join(_gpus()) or "none"
    yield "Triton", state()
    yield "kernels by device", ", ".join(f"{_family(kind)} on {kind}" for kind in device_types())
    yield "to train on a GPU", _next()


def _family(kind: str) -> str:
    try:
        return family(kind)
    except ValueError as error:
        return str(error)


def _gpus() -> Iterator[str]:
    if not torch.cuda.is_available():
        return
    driver = getattr(torch._C, "_cuda_getDriverVersion", None)
    for index in range(torch.cuda.device_count()):
        held = torch.cuda.get_device_properties(index)
        yield f"cuda:{index} {held.name}, compute capability {held.major}.{held.minor}, {held.total_memory / 2**30:.0f} GiB"
    if driver is not None:
        number = driver()  # 12040 is 12.4
        yield f"a driver for CUDA up to {number // 1000}.{number % 1000 // 10}"


def _next() -> str:
    try:
        device_here("cuda")
    except (ConfigError, ValueError) as error:
        return str(error).removeprefix("--device cuda: ")
    return "truesparse train TASK --device cuda"
