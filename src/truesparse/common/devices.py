"""When has a device done what it was asked to, how long did that take, and how much memory? A CPU has at once; a GPU is waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_map

CPU = torch.device("cpu")


def module_of(device: torch.device) -> Any:
    """The module of torch for that type of device: `torch.cuda`, `torch.cpu`."""
    return torch.get_device_module(device.type)


def current(device: torch.device) -> AbstractContextManager[object]:
    """Within, what of torch names no device of this type is of this one."""
    return nullcontext() if device.type == "cpu" or not hasattr(module_of(device), "device") else module_of(device).device(device)


def synchronize(device: torch.device) -> None:
    """Wait until `device` has done all it was asked to."""
    if device.type != "cpu":
        module_of(device).synchronize(device)


def elapsed(call: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds from a call to when its results are there, with nothing of the device still to do at its beginning."""
    synchronize(device)
    start = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - start


def tf32_allowed(convolved: bool = False) -> bool:
    """Whether torch may multiply float32 on a GPU in TF32: matrices, or in convolutions, where it does so unless told otherwise.

    Asked in a way that never raises: `torch.get_float32_matmul_precision` does once `torch.backends.fp32_precision` or its like was set.
    """
    own = getattr(torch.backends.cudnn, "conv", None) if convolved else torch.backends.cuda.matmul
    said = getattr(own, "fp32_precision", None)  # not before torch 2.9
    if said is not None:
        return said == "tf32"
    return torch.backends.cudnn.allow_tf32 if convolved else torch.get_float32_matmul_precision() != "highest"


def on_device(nested: Any, device: torch.device) -> Any:
    """The same with each tensor in it on `device`; those that are there already are not copied."""
    return tree_map(lambda one: one.to(device) if isinstance(one, torch.Tensor) else one, nested)


class Clock(Protocol):
    """Tells how long a device took from one mark to another, without waiting for it at either."""

    def mark(self) -> Any: ...

    def seconds(self, first: Any, last: Any) -> float:
        """Between two marks. Waits until the device has come to the last."""
        ...


class HostClock:
    """Of what is done as soon as it is called: a mark is the time."""

    def mark(self) -> float:
        return time.perf_counter()

    def seconds(self, first: float, last: float) -> float:
        return last - first


class EventClock:
    """Of a device that works through a queue: a mark is an event in it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._module = device, module_of(device)

    def mark(self) -> Any:
        event = self._module.Event(enable_timing=True)
        event.record(self._module.current_stream(self.device))
        return event

    def seconds(self, first: Any, last: Any) -> float:
        last.synchronize()
        return first.elapsed_time(last) / 1e3


def clock_of(device: torch.device) -> Clock:
    """The clock of a device."""
    return EventClock(device) if hasattr(module_of(device), "Event") and device.type != "cpu" else HostClock()


CYCLES = 2e9  # of a GPU in a second, about


def can_be_kept_busy(device: torch.device) -> bool:
    """Whether `keep_busy` can."""
    return hasattr(module_of(device), "_sleep")


def keep_busy(device: torch.device, seconds: float) -> None:
    """Have a GPU do nothing, for about so long, before what it is asked to do next."""
    with current(device):
        module_of(device)._sleep(int(seconds * CYCLES))


def held_bytes(device: torch.device) -> int | None:
    """Bytes of the tensors that lie on `device` now; None where torch does not count them, as on a CPU."""
    counted = getattr(module_of(device), "memory_allocated", None)
    return None if counted is None else int(counted(device))


def peak_bytes(device: torch.device) -> int | None:
    """The most there were since `forget_peak`; None where torch does not count them."""
    counted = getattr(module_of(device), "max_memory_allocated", None)
    return None if counted is None else int(counted(device))


def forget_peak(device: torch.device) -> None:
    """From now on, `peak_bytes` is of what comes."""
    module = module_of(device)
    if hasattr(module, "reset_peak_memory_stats"):
        module.init()  # there is nothing to forget before
        module.reset_peak_memory_stats(device)


def seed_generator(device: torch.device, seed: int) -> None:
    """Begin torch's own generator of `device` anew."""
    with current(device):
        module_of(device).manual_seed(seed)


def generator_state(device: torch.device) -> torch.Tensor | None:
    """Of torch's own generator of `device`, as a tensor on the CPU; None of the CPU's, and where a device draws from that."""
    held = getattr(module_of(device), "get_rng_state", None) if device.type != "cpu" else None
    return None if held is None else held(device)


def set_generator_state(device: torch.device, state: torch.Tensor) -> None:
    """What `generator_state` has given."""
    module_of(device).set_rng_state(state, device)
