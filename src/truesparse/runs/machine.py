"""What did a run run on? Enough to judge its times by, nothing that tells whose machine it is."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Any

import torch

from .. import __version__, _core
from ..common.devices import CPU
from ..common.processor import cores, processor
from ..ops import family
from .devices import device_facts
from .errors import ConfigError


def machine(device: torch.device = CPU) -> dict[str, Any]:
    """Processor, kernels and their instruction set, that of torch's own, threads, versions, and the device that computes.

    Raises:
        ConfigError: if the environment asks for kernels that are not there.
    """
    try:
        kernels, instruction_set = family(device.type), _core.isa()
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return {
        "device": device.type,
        **device_facts(device),
        "processor": processor(),
        "kernels": kernels,
        "instruction_set": instruction_set,
        "torch_instruction_set": torch.backends.cpu.get_cpu_capability().lower(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "truesparse": __version__,
    }


def hardware(machine: Mapping[str, Any], threads: int | None = None) -> str:
    """What computed, for people: "AMD EPYC, avx512, 2 threads", or the GPU; nothing of a run that has not said.

    Args:
        machine: of `machine()`, or what an older version has written.
        threads: of the run, if not those of the machine.
    """
    if machine.get("device", "cpu") != "cpu":
        return ", ".join([machine.get("gpu", machine["device"]), *([f"CUDA {machine['cuda']}"] if "cuda" in machine else [])])
    count = machine.get("threads") if threads is None else threads
    parts = [machine.get("processor"), machine.get("instruction_set"), None if count is None else threads_said(count)]
    return ", ".join(part for part in parts if part)


def require_cores(option: str, count: int) -> None:
    """
    Raises:
        ConfigError: unless the machine has so many cores for threads, or processes, to run on.
    """
    if not 1 <= count <= cores():
        here = f"the {cores()} cores of this machine" if cores() > 1 else "the one core of this machine"
        raise ConfigError(f"{option} must be from 1 to {here}, got {count}")


def check_processes(count: int, batch_size: int, threads: int | None) -> None:
    """
    Raises:
        ConfigError: unless the machine has cores for so many processes, with their threads, and a batch a sample for each.
    """
    require_cores("--nproc", count)
    if threads is not None and count > 1 and count * threads > cores():
        raise ConfigError(
            f"--nproc {count} with --threads {threads} asks for {count * threads} of the {cores()} cores of this machine: pass fewer "
            "threads, or leave --threads out, and each process has its share"
        )
    if count > batch_size:
        raise ConfigError(
            f"--nproc {count}: a batch of {batch_size} samples is shared out to the processes, at least one each: pass a larger "
            "--batch-size, or fewer processes"
        )


def threads_said(count: int) -> str:
    """For people: "1 thread", "2 threads"."""
    return f"{count} thread{'s' if count != 1 else ''}"
