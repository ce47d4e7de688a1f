"""Can Triton run here, and how is a kernel of it launched? Triton is imported when the first kernel is: nothing else here needs it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import torch

from ...common.optional import library
from .configurations import Configuration, configuration

TESTED = "3.6"  # the version that tests run
VERSIONS = (3, 6), (4, 0)  # from, and before
LEAST_CAPABILITY = (8, 0)  # of a GPU: Ampere


def launch(
    kernel: str, pixels: int, programs: Callable[[dict[str, int]], int], *arguments: Any, device: torch.device, **fixed: Any
) -> None:
    """Runs a kernel of `kernels.py` in the configuration for images of that many pixels.

    Args:
        programs: how many, for the sizes of a tile.
        arguments: all of the kernel that are no sizes: tensors on `device`, numbers, or None.
        fixed: its other compile-time arguments.

    Raises:
        MissingLibrary, NotImplementedError: if Triton cannot run here, as `kernels_for` says.
    """
    found: Configuration = configuration(kernel, pixels)
    sizes = found.sizes | fixed
    count = programs(sizes)
    if count:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            getattr(kernels_for(device), kernel)[(count,)](*arguments, **sizes, num_warps=found.warps, num_stages=found.stages)


def kernels_for(device: torch.device) -> ModuleType:
    """The module of kernels, where they can run on tensors of `device`.

    Raises:
        MissingLibrary: without Triton.
        NotImplementedError: with a version of it or a GPU that the kernels do not know, or on the CPU outside of its interpreter.
    """
    module = _kernels()
    if device.type == "cuda":
        _check_capability(device)
    elif not interpreted():
        raise NotImplementedError(
            f"the kernels of Triton run on a GPU, got tensors on {device}; set TRITON_INTERPRET=1 before the process starts to have its "
            "slow interpreter run them, or choose the native kernels with truesparse.ops.use('native')"
        )
    return module


def interpreted() -> bool:
    """Whether Triton's interpreter is what runs the kernels of this process."""
    return type(_kernels().rows_product).__name__ == "InterpretedFunction"


def usable_devices() -> tuple[str, ...]:
    """The types of devices on whose tensors the kernels run here: none without Triton, "cpu" in its interpreter only."""
    if not _installed() or _wrong_version(version("triton")) is not None:
        return ()
    gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() >= LEAST_CAPABILITY
    return ("cuda",) * gpu + ("cpu",) * _asked_to_interpret()


def state() -> str:
    """What `truesparse doctor` says of Triton and of GPUs."""
    if not _installed():
        return "not installed (the extra gpu)"
    held = version("triton")
    fault = _wrong_version(held)
    tested = "" if held.startswith(TESTED) else f", tested is {TESTED}"
    return f"{held}{tested}, {_gpus()}{', interpreted (TRITON_INTERPRET)' if _asked_to_interpret() else ''}" if fault is None else fault


def _installed() -> bool:
    try:
        return bool(version("triton"))
    except PackageNotFoundError:
        return False


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "no GPU"
    found = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        old = " (too old)" if capability < LEAST_CAPABILITY else ""
        found.append(f"{torch.cuda.get_device_name(index)} of compute capability {capability[0]}.{capability[1]}{old}")
    return ", ".join(found)


@cache
def _kernels() -> ModuleType:
    library("triton", "gpu", "the family of kernels 'triton'")
    fault = _wrong_version(version("triton"))
    if fault is not None:
        raise NotImplementedError(fault)
    if _asked_to_interpret():
        _mend_interpreter()
    return library("truesparse.ops.triton.kernels", "gpu", "the family of kernels 'triton'")


def _wrong_version(held: str) -> str | None:
    numbers = tuple(int(part) for part in held.split("+")[0].split(".")[:2])
    if VERSIONS[0] <= numbers < VERSIONS[1]:
        return None
    return f"the kernels need Triton from 3.6 and before 4, found {held}: pip install 'truesparse[gpu]'"


@cache
def _check_capability(device: torch.device) -> None:
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        raise NotImplementedError(
            f"the kernels need a GPU of compute capability {'.'.join(map(str, LEAST_CAPABILITY))} or more (Ampere), "
            f"{torch.cuda.get_device_name(device)} has {'.'.join(map(str, capability))}; train on the CPU"
        )


def _asked_to_interpret() -> bool:
    return bool(library("triton", "gpu", "the family of kernels 'triton'").knobs.runtime.interpret)


def _mend_interpreter() -> None:
    """With NumPy from 2.4 on, the interpreter of Triton 3.6 cannot take the end of a loop from an array of one number. Now it can."""
    interpreter = library("triton.runtime.interpreter", "gpu", "the interpreter of Triton")
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patch_lang_tensor
