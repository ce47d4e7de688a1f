"""For batches: connections row by row, multiplied with tiles of many samples."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...geometry import Convolution
from ...ops import Verbs, verbs_for
from ..layers import Weights
from .base import Candidate, Conditions, Layout, nbytes

GATHERED, FEW_SAMPLES = 0.25, 4  # nanoseconds a connection and sample, of so few samples
MULTIPLY_ADD, OF_SAMPLES, COPY = 0.34 / 16, 16, 0.3


class Tiles(Layout):
    """Connections row by row, multiplied with tiles of many samples by the kernels of training: for batches."""

    name = "tiles"

    def __init__(self, weights: Weights, relu: bool = False) -> None:
        super().__init__(weights, relu)
        self.geometry, self.topology, self.values, self.bias = weights.geometry, weights.topology, weights.values, weights.bias
        self._verbs: Verbs | None = None

    def __call__(self, x: Tensor) -> Tensor:
        y = (self._verbs or self._made()).spmm(self.values, x, self.bias)
        return y.relu_() if self.relu else y

    def _made(self) -> Verbs:
        self._verbs = verbs_for(self.topology, self.geometry, torch.float32)
        return self._verbs

    @property
    def nbytes(self) -> int:
        return nbytes(self.values, self.topology.indptr, self.topology.indices, self.bias) + (self._verbs or self._made()).nbytes

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_verbs": None}


@dataclass(frozen=True)
class TilesCandidate(Candidate):
    def make(self, weights: Weights, relu: bool, values: str) -> Tiles:
        return Tiles(weights, relu)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        topology, positions = weights.topology, conditions.positions(weights.geometry)
        few = positions < FEW_SAMPLES
        full = positions if few else math.ceil(positions / OF_SAMPLES) * OF_SAMPLES
        return full * (topology.nnz * (GATHERED if few else MULTIPLY_ADD) + (weights.inputs + topology.shape[0]) * COPY)

    def __str__(self) -> str:
        return Tiles.name


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """One, but for convolutions."""
    return [] if isinstance(weights.geometry, Convolution) else [TilesCandidate()]
