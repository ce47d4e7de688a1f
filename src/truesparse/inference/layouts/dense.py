"""When few connections are missing: a dense weight, multiplied by torch; of the network's dtype, or narrower where that is welcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ... import _core
from ...topology.geometry import Matrix
from ..graph.layers import Weights
from .base import NOTHING, Candidate, Conditions, Finish, Layout, finished, nbytes

# Nanoseconds: of a byte of the weight, a multiply-add, a number that a convolution reads or writes, a pooled result, a convolution.
BYTE, MULTIPLY_ADD, NUMBER, POOLED, CALL = 1 / 28, 1 / 90, 0.3, 15, 15_000
NUMBER_IN_GROUPS = 0.55
SMALL = 16_000  # multiply-adds of a matrix that a program does by itself, some 2 microseconds: leaving it would cost more
FEW_SAMPLES, COPY = 2, 0.3  # of a matrix, for more samples, torch lays the weight out anew in each call: nanoseconds of an entry


class Dense(Layout):
    """A dense weight, multiplied by torch: where few connections are missing."""

    name = "dense"

    def __init__(self, weights: Weights, relu: bool = False, finish: Finish = NOTHING) -> None:
        super().__init__(weights, relu)
        self.geometry, self.finish = weights.geometry, finish
        self.bias = None if weights.bias is None else weights.bias.contiguous()
        self.weight = weights.topology.scatter(weights.values).view(weights.geometry.weight_shape)

    def __call__(self, x: Tensor) -> Tensor:
        return finished(self.geometry.dense(x, self.weight, self.bias), self.relu, self.finish)

    def call(self, shape: Sequence[int]) -> Any:
        if not isinstance(self.geometry, Matrix) or shape[0] * self.weight.numel() > SMALL:
            return None
        bias = 0 if self.bias is None else self.bias.data_ptr()
        return _core.small_product_call(self.weight.data_ptr(), bias, self.relu, self.rows, self.columns, shape[0])

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + nbytes(self.bias)


class NarrowDense(Layout):
    """A dense weight of 16-bit floats, multiplied by torch: inputs are rounded to them as well, sums are float32 before they are.

    Args:
        values: "bfloat16" or "float16".
    """

    name = "dense"

    def __init__(self, weights: Weights, relu: bool = False, finish: Finish = NOTHING, values: str = "bfloat16") -> None:
        super().__init__(weights, relu)
        self.geometry, self.finish, self.values_as = weights.geometry, finish, values
        self.weight = weights.topology.scatter(weights.values).view(weights.geometry.weight_shape).to(getattr(torch, values))
        self.bias = None if weights.bias is None else weights.bias.view(-1, *[1] * (weights.geometry.sample_ndim - 1))

    def __call__(self, x: Tensor) -> Tensor:
        y = self.geometry.dense(x.to(self.weight.dtype), self.weight, None).to(self.dtype)
        if self.bias is not None:
            y += self.bias
        return finished(y, self.relu, self.finish)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + nbytes(self.bias)

    def __str__(self) -> str:
        return f"{self.name}, {self.values_as}"


@dataclass(frozen=True)
class NarrowDenseCandidate(Candidate):
    values: str = "bfloat16"  # also where int8 is welcome
    finish: Finish = NOTHING

    def make(self, weights: Weights, relu: bool, values: str) -> NarrowDense:
        return NarrowDense(weights, relu, self.finish, self.values)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        size, positions = weights.topology.size, conditions.positions(weights.geometry)
        return max(2 * size * BYTE, positions * size * MULTIPLY_ADD)

    def __str__(self) -> str:
        return f"{NarrowDense.name}, {self.values}"


@dataclass(frozen=True)
class DenseCandidate(Candidate):
    finish: Finish = NOTHING

    def make(self, weights: Weights, relu: bool, values: str) -> Dense:
        return Dense(weights, relu, self.finish)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        geometry, size = weights.geometry, weights.topology.size
        positions = conditions.positions(geometry)
        if isinstance(geometry, Matrix):
            return 4 * size * BYTE if positions <= FEW_SAMPLES else size * (COPY + positions * MULTIPLY_ADD)
        results = prod(geometry.output_shape(conditions.input_shape))
        numbers = prod(conditions.input_shape) + results
        read_and_written = numbers * (NUMBER if geometry.groups == 1 else NUMBER_IN_GROUPS)
        pooled = self.finish.pool * results / 4 * POOLED
        return CALL + 4 * size * BYTE + positions * size * MULTIPLY_ADD + read_and_written + pooled

    def __str__(self) -> str:
        return Dense.name


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """The one of float32, and where values may be narrow the one of bfloat16."""
    narrow = conditions.values != "float32" and isinstance(weights.geometry, Matrix)
    return [DenseCandidate(conditions.finish), *([NarrowDenseCandidate()] if narrow else [])]
