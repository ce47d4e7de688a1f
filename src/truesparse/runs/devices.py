"""On which device does a run compute? Read from `--device`, and refused in one line, before any work, if nothing can run there."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from ..common.devices import module_of
from ..common.optional import MissingLibrary
from ..ops import family
from ..ops.table import device_types, family_runs_on
from ..ops.triton.loading import kernels_for, usable_devices
from .errors import ConfigError

AMP: Mapping[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def device_named(text: str) -> torch.device:
    """The device that `--device` names, whether it is here or not.

    Raises:
        ConfigError: if it is none, or of a type for which there are no kernels.
    """
    known = ", ".join(device_types())
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ConfigError(f"--device: unknown {text!r}; known are {known}, with a number where there are several: cuda:1") from error
    if device.type not in device_types():
        raise ConfigError(f"--device {text}: truesparse has no kernels for {device.type}; known are {known}")
    return device


def device_here(text: str, amp: str | None = None) -> torch.device:
    """The device that `--device` names, with its number. Of several processes each has one of its own, by its LOCAL_RANK.

    Args:
        amp: the dtype of `--amp`.

    Raises:
        ConfigError: if there is no such device here, or the kernels cannot run on it.
    """
    device = device_named(text)
    if device.type == "cpu":
        if device.index:
            raise ConfigError(f"--device {text}: the CPU is one device: --device cpu")
        device = torch.device("cpu")
    else:
        device = _numbered(text, device)
    if not family_runs_on(family(device.type), device.type):
        raise ConfigError(f"--device {text}: no kernels of the family {family(device.type)} run there: unset TRUESPARSE_KERNELS")
    if family(device.type) == "triton":
        try:
            kernels_for(device)
        except (MissingLibrary, NotImplementedError) as error:
            raise ConfigError(f"--device {text}: {error}") from error
    if amp == "float16" and device.type == "cpu":
        raise ConfigError("--amp float16: a CPU has no kernels for it, and would compute in float32: use --amp bfloat16, or a GPU")
    return device


def check_own_devices(text: str, count: int) -> None:
    """
    Raises:
        ConfigError: unless each of `count` processes can have a device of its own.
    """
    device = device_named(text)
    if device.type == "cpu" or count == 1:
        return
    if device.index is not None:
        raise ConfigError(f"--device {text} with --nproc {count}: each process takes a device of its own: --device {device.type}")
    found = module_of(device).device_count()
    if count > found:
        raise ConfigError(f"--nproc {count}: each process takes a device of its own, and there are {found} of {device.type}")


def unused_gpu() -> str | None:
    """The device on which the kernels could run as well, for who has chosen none; None if there is none."""
    found = [kind for kind in usable_devices() if kind != "cpu"]
    return found[0] if found else None


def device_facts(device: torch.device) -> dict[str, str]:
    """What to know of a device that is not the CPU, to judge times by: its name, and what it was programmed by."""
    if device.type == "cpu":
        return {}
    module = module_of(device)
    facts = {"gpu": module.get_device_name(device)} if hasattr(module, "get_device_name") else {}
    return facts | ({"cuda": str(torch.version.cuda)} if device.type == "cuda" else {})


def _numbered(text: str, device: torch.device) -> torch.device:
    """The device with its number, which is here."""
    module = module_of(device)
    if device.type == "cuda" and not torch.backends.cuda.is_built():
        raise ConfigError(
            f"--device {text}: this torch ({torch.__version__}) is built without CUDA: install one for CUDA, https://pytorch.org/get-started"
        )
    count = module.device_count()
    if not module.is_available() or not count:
        raise ConfigError(f"--device {text}: torch finds no GPU here: does nvidia-smi list one? Without one, use --device cpu")
    index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", 0))
    if index >= count:
        numbers = "0" if count == 1 else f"0 to {count - 1}"
        raise ConfigError(f"--device {text}: there {'is' if count == 1 else 'are'} {count} of {device.type}, numbered {numbers}")
    return torch.device(device.type, index)
