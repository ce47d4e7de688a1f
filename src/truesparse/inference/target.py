"""Where does a packed network run, and in what? On the device and in the dtype of the model, on the family of kernels in force there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import __version__, _core
from ..common.devices import tf32_allowed
from ..common.processor import processor
from ..ops import family
from ..ops.table import FAMILY_OF_DEVICE
from ..ops.triton.loading import kernels_for, state
from .layouts import FAMILIES, gpu

HOST = torch.device("cpu")


@dataclass(frozen=True)
class Target:
    """
    Args:
        device: of the network and its inputs.
        dtype: of its weights.
        family: of kernels, one of `FAMILIES`.
        values: how connections may be held.
        threads: of the CPU; 1 on a GPU.
    """

    device: torch.device
    dtype: torch.dtype
    family: str
    values: str
    threads: int

    @property
    def on_gpu(self) -> bool:
        """Whether the kernels are those for GPUs, which Triton's interpreter runs, too."""
        return self.family == gpu.FAMILY

    @property
    def gpu(self) -> str:
        """The name of the GPU, or of what stands for one; "" on the CPU."""
        if not self.on_gpu:
            return ""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else f"Triton's interpreter on {self.device.type}"

    @property
    def machine(self) -> tuple[str, ...]:
        """What tells measurements on other machines, or by other versions, apart."""
        if not self.on_gpu:
            return processor(), torch.__version__, __version__, _core.isa()
        products = "/".join("tf32" if tf32_allowed(convolved) else "ieee" for convolved in (False, True))
        return self.gpu, str(state()), torch.__version__, __version__, str(self.dtype), products


def target_of(model: nn.Module, inputs: Sequence[Tensor], values: str | None, threads: int | None) -> Target:
    """For a model and an example of its inputs.

    Args:
        values: None: as the network holds them.
        threads: None: as many as torch has now.

    Raises:
        TypeError: if they are not on one device, or the network is in no dtype that there are layouts for there.
        ValueError: if `values` or `threads` is out of its range.
        MissingLibrary, NotImplementedError: if the kernels of a GPU cannot run here.
    """
    held = [*model.named_parameters(), *model.named_buffers()]
    device = held[0][1].device if held else inputs[0].device if inputs else HOST
    _refuse_several_devices(held, inputs, device)
    chosen = _family(device)
    if chosen == gpu.FAMILY:
        kernels_for(device)
    elif device.type != "cpu":
        raise TypeError(
            f"pack has layouts for the CPU and for CUDA, and the network is on {device} with the kernels {chosen!r} in force: move it "
            "with .cpu(), or to a GPU with .cuda()"
        )
    dtype = _dtype(model, chosen)
    return Target(device, dtype, chosen, _values(values, dtype, chosen), _threads(threads, chosen))


def known_values(device: torch.device) -> tuple[str, ...]:
    """How connections may be held in a network of float32 there."""
    return tuple(FAMILIES[_family(device)].values)


def _family(device: torch.device) -> str:
    chosen = family(device.type)
    if chosen not in FAMILIES:  # the reference has no layouts: those of the device compute the same
        return FAMILY_OF_DEVICE.get(device.type, "native")
    return chosen


def _refuse_several_devices(held: Sequence[tuple[str, Tensor]], inputs: Sequence[Tensor], device: torch.device) -> None:
    for name, one in held:
        if one.device != device:
            raise TypeError(
                f"pack takes a network on one device, and {held[0][0]!r} is on {device}, {name!r} on {one.device}: move it with "
                f".to({str(device)!r})"
            )
    for place, one in enumerate(inputs):
        if one.device != device:
            raise TypeError(
                f"the network is on {device}, and input {place} of the example on {one.device}: move both to one device, "
                f"as with example.to({str(device)!r})"
            )


def _dtype(model: nn.Module, chosen: str) -> torch.dtype:
    known = FAMILIES[chosen].networks
    first: tuple[str, torch.dtype] | None = None
    for name, parameter in model.named_parameters():
        first = first or (name, parameter.dtype)
        if parameter.dtype not in known:
            where, remedy = ("a GPU", "half(), .bfloat16() or .float()") if chosen == gpu.FAMILY else ("the CPU", "float().cpu()")
            named = " or ".join(str(one).removeprefix("torch.") for one in known)
            raise TypeError(f"pack takes networks of {named} on {where}, and {name!r} is {parameter.dtype}: convert with .{remedy} first")
        if parameter.dtype != first[1]:
            raise TypeError(
                f"pack takes networks of one dtype, and {first[0]!r} is {first[1]}, {name!r} {parameter.dtype}: convert all with .half(), "
                ".bfloat16() or .float()"
            )
    return first[1] if first else torch.float32


def _values(values: str | None, dtype: torch.dtype, chosen: str) -> str:
    known, own = FAMILIES[chosen].values, str(dtype).removeprefix("torch.")
    if values is None or values == own:
        return own
    if values not in known:
        raise ValueError(f"values is one of {', '.join(known)}{' on a GPU' if chosen == gpu.FAMILY else ''}, got {values!r}")
    if dtype != torch.float32:
        raise ValueError(f"a network of {own} holds its values so, got values={values!r}; leave it out, or convert the network first")
    return values


def _threads(threads: int | None, chosen: str) -> int:
    if chosen == gpu.FAMILY:
        if threads is not None:
            raise ValueError(f"threads are of the CPU, and the network is on a GPU: leave threads={threads} out")
        return 1
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    return threads
