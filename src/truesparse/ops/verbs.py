"""What must a kernel be able to do? The protocol that every implementation of the verbs follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ..topology import Topology, patterns

WIDE = (torch.float32, torch.float64)  # nearly always; to ask for the size takes longer
Sample = tuple[Tensor, Tensor]  # (dy, x) of one backward pass
Need = tuple[bool, bool, bool]  # of dvalues, dx, dbias
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]  # None for each that is not needed


def values_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of values, biases, their gradients and all sums beside x, y, dy and dx of `dtype`: float32 for 16-bit floats."""
    return torch.float32 if dtype.itemsize < 4 else dtype


def widened(tensor: Tensor) -> Tensor:
    """`tensor` as its sums are held. Differentiable: a gradient is rounded back."""
    return tensor if tensor.dtype in WIDE or tensor.dtype.itemsize >= 4 else tensor.float()


class Verbs(Protocol):
    """The arithmetic of one (topology, geometry). `reference.py` says what each method means.

    x, y, dy and dx have one dtype; values, bias, dvalues and dbias have `values_dtype` of it.
    """

    @property
    def name(self) -> str:
        """Which kernel this is, for people: "cpu.matrix[avx512]"."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held beside the topology: its transpose, block pointers, offsets."""
        ...

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor: ...

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor: ...

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor: ...

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor: ...

    def top_gradients(self, samples: list[Sample], kept: Topology, k: int) -> Tensor: ...

    def backward(self, values: Tensor, x: Tensor, dy: Tensor, need: Need) -> Gradients: ...


def slabs(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """(first, after the last) row of parts of a matrix of that shape, each small enough for its dense gradient to be held."""
    rows, columns = shape
    height = max(1, patterns.SLAB_ENTRIES // max(columns, 1))
    return ((start, min(start + height, rows)) for start in range(0, rows, height))


def summed_rows(gradient_rows: Callable[[Tensor, Tensor, int, int], Tensor], samples: Sequence[Sample], start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the dense dW summed over the samples, such as those of several micro-batches, [stop - start, columns].

    Args:
        gradient_rows: the verb of that name. What it returns is its caller's to write to.
        samples: at least one.
        start, stop: which rows.
    """
    first, *others = samples
    total = gradient_rows(*first, start, stop)
    for dy, x in others:
        total += gradient_rows(dy, x, start, stop)
    return total
