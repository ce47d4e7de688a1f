"""What is a layout, and when is one worth a try? A trained matrix laid out so that a call is fast: y = x W^T + bias.

A layout is made once from the connections and their values and then only called. What holds for the kernels of training does not hold here:
values may be reordered, padded and rounded.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _core
from ...topology import Topology
from ...topology.geometry import Geometry, Matrix
from ...topology.merge import threads_for
from ..graph.layers import Weights

NUMBERS_OF_A_THREAD = 100_000  # that an epilogue goes over, some 20 microseconds: less is not worth another thread
EXACT = 1e-4  # of the largest result: more than rounding of float32 adds up to
VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}  # on the CPU


class Layout(ABC):
    """One way to hold and multiply the weights of a layer. Picklable; what the kernels need is made again after loading.

    Args:
        weights: of the dtype in which inputs come and results go, on the device of both; on the CPU float32.
        relu: whether negative results become 0.
    """

    name: ClassVar[str]

    def __init__(self, weights: Weights, relu: bool = False) -> None:
        self.rows, self.columns = weights.topology.shape
        self.dtype, self.device = weights.values.dtype, weights.values.device
        self.relu = relu

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """y of x, of the same dtype and contiguous with one dimension of samples: [batch, columns], or images for a convolution."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of what is held."""

    def call(self, shape: Sequence[int]) -> Any:
        """The same for inputs of one shape and as many threads as torch has now, as a step of a `_core.Program`; None where only torch can.

        It reads memory of this layout, which has to live as long.
        """
        return None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Epilogue:
    """What follows a layer: something may be added to its results, then comes an activation; in one pass, in their place.

    Args:
        gelu: each number times the share of a normal distribution that is below it, as `nn.GELU()`.
        least, most: then what is less or more becomes these, as ReLU and ReLU6 do.
    """

    gelu: bool = False
    least: float = -math.inf
    most: float = math.inf

    def __call__(self, y: Tensor, added: Tensor | None = None) -> Tensor:
        """y, contiguous and float32, with `added` of the same size."""
        address = 0 if added is None else added.data_ptr()
        threads = threads_for(y.numel(), NUMBERS_OF_A_THREAD)
        _core.finish(self.gelu, self.least, self.most, address, y.data_ptr(), y.numel(), threads)
        return y

    def by_torch(self, y: Tensor, added: Tensor | None = None) -> Tensor:
        """The same for any y and what can be added to it."""
        y = y if added is None else y + added
        y = F.gelu(y) if self.gelu else y
        return y if (self.least, self.most) == (-math.inf, math.inf) else y.clamp(self.least, self.most)

    def __str__(self) -> str:
        limits = "" if self.least == -math.inf else "relu" if self.most == math.inf else f"{self.least:g} to {self.most:g}"
        return ", ".join(part for part in ("gelu" if self.gelu else "", limits) if part)

    def call(self, count: int) -> Any:
        """The same for results of `count` numbers and as many threads as torch has now, as a step of a `_core.Program`."""
        return _core.finish_call(self.gelu, self.least, self.most, count, threads_for(count, NUMBERS_OF_A_THREAD))


class TorchEpilogue(Epilogue):
    """The same by operations of torch: on any device, in any dtype."""

    def __call__(self, y: Tensor, added: Tensor | None = None) -> Tensor:
        return self.by_torch(y, added)


@dataclass(frozen=True)
class Finish:
    """What a convolution does to its results after its bias and its ReLU, in the same go.

    Args:
        most: what is larger becomes this, as ReLU6 does.
        pool: then the largest of each two by two positions, as `nn.MaxPool2d(2)`.
    """

    most: float = math.inf
    pool: bool = False


NOTHING = Finish()


def finished(y: Tensor, relu: bool, finish: Finish = NOTHING) -> Tensor:
    """What follows a product, by torch; y may be written over."""
    if finish.most < math.inf:
        y.clamp_(0.0 if relu else -math.inf, finish.most)
    elif relu:
        y.relu_()
    return F.max_pool2d(y, 2) if finish.pool else y


@dataclass(frozen=True)
class Conditions:
    """Under what a layer will be called.

    Args:
        input_shape: of a call, the samples first: (batch, columns), or images.
        threads: of torch and of the kernels.
        values: how connections may be held: "float32", "bfloat16", "float16", "int8".
        finish: of a convolution.
        zeros: the share of the inputs that is zero, 0 to 1, as far as it is known and could matter.
        family: of kernels, as `truesparse.ops.use` names them.
    """

    input_shape: tuple[int, ...]
    threads: int
    values: str = "float32"
    finish: Finish = NOTHING
    zeros: float = 0.0
    family: str = "native"

    @property
    def batch(self) -> int:
        return self.input_shape[0]

    def positions(self, geometry: Geometry) -> int:
        """How many products of the matrix with a vector one call is."""
        if isinstance(geometry, Matrix):
            return self.batch
        at = geometry.sides(geometry.output_shape(self.input_shape), self.input_shape)[0]
        return self.batch * prod(at[2:])


class Candidate(ABC):
    """A layout that could be made, with all that is to be chosen: a frozen dataclass whose text names it."""

    @abstractmethod
    def make(self, weights: Weights, relu: bool, values: str) -> Layout: ...

    @abstractmethod
    def guess(self, weights: Weights, conditions: Conditions) -> float:
        """Nanoseconds that a call takes on one thread of the machine of docs/performance-log.md, about."""

    @abstractmethod
    def __str__(self) -> str: ...


def tolerance(conditions: Conditions) -> float | None:
    """By how much of the largest result a layout may differ from dense; None: it is not compared."""
    return EXACT if conditions.values == "float32" else None


def nbytes(*arrays: Tensor | None) -> int:
    """Bytes of all that is there."""
    return sum(array.nbytes for array in arrays if array is not None)


def row_scales(topology: Topology, values: Tensor) -> Tensor:
    """[rows] so that the largest value of each row becomes 127."""
    largest = torch.zeros(topology.shape[0], device="cpu").scatter_reduce(0, topology.rows.long(), values.abs(), "amax")
    return torch.where(largest > 0, largest / 127, 1.0)


def held_as(values: Tensor, kind: str) -> Tensor:
    """One of `VALUES`; for "int8" in units of the scales."""
    return values.round().to(torch.int8) if kind == "int8" else values.to(VALUES[kind])


BYTE = 1 / 29  # nanoseconds, from beyond the second cache
SECOND_CACHE = 2 << 20  # bytes
LARGE_PAGES = 4 << 20  # bytes of an array: the pages of less are found soon enough


def reading(count: int) -> float:
    """Nanoseconds that reading as many bytes takes at least: what fits the second cache is there from the last call."""
    return count * BYTE if count > SECOND_CACHE else 0.0


def on_large_pages(array: Tensor) -> Tensor:
    """The same in memory whose addresses are found sooner, which reading it from end to end gains 5 to 10 % from."""
    if array.nbytes < LARGE_PAGES:
        return array
    moved = torch.empty_like(array)
    _core.use_large_pages(moved.data_ptr(), moved.nbytes)
    return moved.copy_(array)
