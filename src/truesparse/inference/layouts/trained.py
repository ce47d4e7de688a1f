"""For transposed convolutions: the kernels that trained them. No layout is made for these."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...ops import verbs_for
from ...topology.geometry import Transposed
from ..graph.layers import Weights
from .base import Candidate, Conditions, Layout, nbytes

# Nanoseconds: of a call, and of a connection at a position.
CALL, MULTIPLY_ADD = 20_000, 0.1


class Trained(Layout):
    """The kernels of training."""

    name = "kernels"

    def __init__(self, weights: Weights, relu: bool = False) -> None:
        super().__init__(weights, relu)
        self.geometry, self.topology, self.values, self.bias = weights.geometry, weights.topology, weights.values, weights.bias

    def __call__(self, x: Tensor) -> Tensor:
        y = verbs_for(self.topology, self.geometry, x.dtype).spmm(self.values, x, self.bias)
        return y.relu_() if self.relu else y

    @property
    def nbytes(self) -> int:
        return nbytes(self.values, self.topology.indptr, self.topology.indices, self.bias)


@dataclass(frozen=True)
class TrainedCandidate(Candidate):
    def make(self, weights: Weights, relu: bool, values: str) -> Trained:
        return Trained(weights, relu)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        return CALL + conditions.positions(weights.geometry) * weights.topology.nnz * MULTIPLY_ADD

    def __str__(self) -> str:
        return Trained.name


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """One for each transposed convolution."""
    return [TrainedCandidate()] if isinstance(weights.geometry, Transposed) else []
