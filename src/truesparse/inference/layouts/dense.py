"""When few connections are missing: a dense weight, multiplied by torch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..layers import Weights
from .base import Candidate, Conditions, Layout, nbytes

BYTE, MULTIPLY_ADD = 1 / 28, 1 / 90  # nanoseconds


class Dense(Layout):
    """A dense weight, multiplied by torch: where few connections are missing."""

    name = "dense"

    def __init__(self, weights: Weights, relu: bool = False) -> None:
        super().__init__(weights, relu)
        self.geometry, self.bias = weights.geometry, weights.bias
        self.weight = weights.topology.scatter(weights.values).view(weights.geometry.weight_shape)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.geometry.dense(x, self.weight, self.bias)
        return y.relu_() if self.relu else y

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + nbytes(self.bias)


@dataclass(frozen=True)
class DenseCandidate(Candidate):
    def make(self, weights: Weights, relu: bool, values: str) -> Dense:
        return Dense(weights, relu)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        size = weights.topology.size
        return max(4 * size * BYTE, conditions.positions(weights.geometry) * size * MULTIPLY_ADD)

    def __str__(self) -> str:
        return Dense.name


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """Always one."""
    return [DenseCandidate()]
