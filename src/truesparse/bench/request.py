"""What is to be measured? Read from the options' text, and refused before any work if it cannot be."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import TypeVar

import torch

from .. import _core
from ..common.devices import CPU
from ..inference.layouts import VALUES
from ..nn import SparseConv2d, SparseLinear
from ..runs import ConfigError
from ..runs.devices import device_here
from ..runs.machine import require_cores
from ..topology.geometry import Convolution, Matrix
from ..topology.patterns import NM, Pattern
from ..topology.patterns import pattern as named_pattern

Number = TypeVar("Number", int, float)

SPARSITIES = (0.8, 0.9, 0.95, 0.99)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DTYPES_OF_GPUS = {**DTYPES, "tf32": torch.float32, "float16": torch.float16}  # TF32: matrix units round float32 to 10 bits

# name: (in, out, kernel, stride, size, batch)
CONVOLUTIONS = {
    "conv64": (64, 64, 3, 1, 32, 16),
    "conv128": (128, 128, 3, 1, 16, 64),
    "conv256": (256, 256, 3, 1, 8, 64),
    "pointwise": (256, 256, 1, 1, 14, 16),
    "stride2": (64, 128, 3, 2, 32, 16),
}
BATCH_OF_OWN_CONVOLUTION = 16
BESIDE = ("dense_tf32", "dense_bfloat16", "sparse_bfloat16", "two_four")  # further ways of a linear layer's forward pass on a GPU


@dataclass(frozen=True)
class Conditions:
    """Under what all lines of one measurement are taken.

    Args:
        threads: of torch and of the kernels, one line for each.
        seconds: of timing for each line.
        dtype: float32, or bfloat16 or float16 for autocast.
        device: that computes.
        tf32: whether a GPU multiplies float32 in TF32.
        beside: further ways of a linear layer's forward pass, of which `BESIDE` has those of a GPU.

    Raises:
        ConfigError: if one is out of its range, there are fewer cores than threads, or no sparse kernels for the dtype.
    """

    threads: tuple[int, ...]
    seconds: float = 1.0
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    tf32: bool = False
    beside: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for threads in self.threads:
            require_cores("--threads", threads)
        if not (isfinite(self.seconds) and self.seconds > 0):
            raise ConfigError(f"--seconds must be greater than 0, got {self.seconds}")
        _refuse_without_kernels(self.dtype, self.device)

    def autocast(self) -> torch.autocast:
        """The context in which modules are called."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    @property
    def dtype_name(self) -> str:
        """As `--dtype` takes it."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")


def make_conditions(threads: str | None, seconds: float, dtype: str, device: str = "cpu", isa: str | None = None) -> Conditions:
    """From options.

    Raises:
        ConfigError: as `Conditions`, if a text cannot be read, or if options of the CPU go with another device.
    """
    here = device_here(device)
    known = DTYPES if here.type == "cpu" else DTYPES_OF_GPUS
    if dtype not in known:
        raise ConfigError(f"--dtype: unknown {dtype!r}; known are {', '.join(known)}")
    if here.type != "cpu":
        for option, given in (("--threads", threads), ("--isa", isa)):
            if given is not None:
                raise ConfigError(f"{option} is of the CPU: leave it out with --device {device}")
        return Conditions((torch.get_num_threads(),), seconds, known[dtype], here, dtype == "tf32", BESIDE if dtype == "float32" else ())
    counts = counts_of("--threads", threads) if threads is not None else tuple(dict.fromkeys((1, torch.get_num_threads())))
    return Conditions(counts, seconds, known[dtype])


@contextmanager
def multiplied_in(tf32: bool) -> Iterator[None]:
    """Within, float32 is multiplied exactly by matrix units and convolutions of a GPU, or in TF32; torch's own default differs for both."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


@contextmanager
def instruction_set(name: str | None) -> Iterator[None]:
    """Within, the kernels of truesparse use this instruction set; None leaves it as it is. Dense PyTorch chooses its own.

    Raises:
        ConfigError: if this machine has not got it.
    """
    if name is None:
        yield
        return
    try:
        before = _core.isa()
        _core.use_isa(name)
    except ValueError as error:
        raise ConfigError(f"--isa: {str(error).removeprefix('use_isa ')}") from error
    try:
        yield
    finally:
        _core.use_isa(before)


def sparsities_of(text: str) -> tuple[float, ...]:
    """
    Raises:
        ConfigError: unless it is a list of numbers in [0, 1).
    """
    found = _numbers("--sparsity", text, float)
    for sparsity in found:
        if not 0 <= sparsity < 1:
            raise ConfigError(f"--sparsity must be in [0, 1), got {sparsity}")
    return tuple(dict.fromkeys(found))


def counts_of(option: str, text: str) -> tuple[int, ...]:
    """
    Raises:
        ConfigError: unless it is a list of whole numbers from 1.
    """
    return tuple(dict.fromkeys(_counts(option, text)))


def large_counts_of(option: str, text: str) -> tuple[int, ...]:
    """The same, where 1e6 is a million.

    Raises:
        ConfigError: unless it is a list of whole numbers from 1.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = [0.0]
    if not all(number >= 1 and number.is_integer() for number in numbers):
        raise ConfigError(f"{option} expects whole numbers from 1, such as 1e6,1e7, got {text!r}")
    return tuple(dict.fromkeys(map(int, numbers)))


def pattern_of(text: str) -> Pattern:
    """
    Raises:
        ConfigError: if the text names no pattern.
    """
    try:
        return named_pattern(text)
    except ValueError as error:
        raise ConfigError(f"--pattern {text}: {error}") from error


def sparsities_for(pattern: Pattern, text: str | None, usual: tuple[float, ...] = SPARSITIES) -> tuple[float, ...]:
    """What was asked for, else the usual ones; N:M fixes its own.

    Raises:
        ConfigError: if the text cannot be read, or the pattern has another sparsity.
    """
    if not isinstance(pattern, NM):
        return usual if text is None else sparsities_of(text)
    own = 1 - pattern.n / pattern.m
    if text is not None and sparsities_of(text) != (own,):
        raise ConfigError(f"--pattern {pattern.n}:{pattern.m} fixes the sparsity at {own:g}: leave --sparsity out")
    return (own,)


def values_of(text: str) -> tuple[str, ...]:
    """
    Raises:
        ConfigError: unless it is a list of kinds of values that `pack` knows.
    """
    found = tuple(dict.fromkeys(text.split(",")))
    for kind in found:
        if kind not in VALUES:
            raise ConfigError(f"--values: unknown {kind!r}; known are {', '.join(VALUES)}")
    return found


def matrix_of(text: str) -> Matrix:
    """IN x OUT, as 3072x768.

    Raises:
        ConfigError: unless it is two whole numbers from 1.
    """
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise ConfigError(f"--shape must be INxOUT, such as 3072x768, got {text!r}")
    return Matrix(rows=int(found[2]), columns=int(found[1]))


def convolution_of(text: str) -> tuple[Convolution, int, int]:
    """(geometry, height and width of the input, samples) of a named layer or of IN,OUT,KERNEL,STRIDE,SIZE.

    The padding is half of the kernel.

    Raises:
        ConfigError: unless it is a name or five whole numbers from 1.
    """
    if text in CONVOLUTIONS:
        inputs, outputs, kernel, stride, size, batch = CONVOLUTIONS[text]
    elif "," in text:
        numbers = _counts("--layer", text)
        if len(numbers) != 5:
            raise ConfigError(f"--layer must be a name or IN,OUT,KERNEL,STRIDE,SIZE, such as 64,64,3,1,32, got {text!r}")
        inputs, outputs, kernel, stride, size, batch = *numbers, BATCH_OF_OWN_CONVOLUTION
    else:
        raise ConfigError(f"--layer: unknown {text!r}; known are {', '.join(CONVOLUTIONS)}, or IN,OUT,KERNEL,STRIDE,SIZE")
    half = kernel // 2
    geometry = Convolution(inputs, outputs, (kernel, kernel), (stride, stride), (half, half))
    if min(geometry.output_size((size, size))) < 1:
        raise ConfigError(f"--layer {text}: a kernel of {kernel} does not fit an input of {size} x {size}")
    return geometry, size, batch


def _numbers(option: str, text: str, kind: Callable[[str], Number]) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(f"{option} must be {what} with commas between them, got {text!r}") from None


def _counts(option: str, text: str) -> tuple[int, ...]:
    found = _numbers(option, text, int)
    for count in found:
        if count < 1:
            raise ConfigError(f"{option} must be at least 1, got {count}")
    return found


def _refuse_without_kernels(dtype: torch.dtype, device: torch.device) -> None:
    """A sparse layer whose output is wider than autocast asks for has no kernels for it: that would be another comparison."""
    if dtype == torch.float32:
        return
    named = str(dtype).removeprefix("torch.")
    examples = ((SparseLinear(4, 4), torch.ones(1, 4)), (SparseConv2d(1, 1, 1), torch.ones(1, 1, 1, 1)))
    with torch.no_grad(), torch.autocast(device.type, dtype):
        for layer, x in examples:
            if layer.to(device)(x.to(device, dtype)).dtype != dtype:
                raise ConfigError(
                    f"--dtype {named}: {type(layer).__name__} computes in float32 under autocast, it has no {named} kernels; use float32"
                )
