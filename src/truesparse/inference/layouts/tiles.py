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

LANES, WIDEST_TILE = 16, 8  # samples of a vector, vectors of a tile
FEW_SAMPLES = 4  # these are taken one by one

# Nanoseconds. Of a sample taken alone: of a connection, of a row, whose lanes are summed.
GATHERED, SUMMED = 0.25, 5.0
# Of a tile: of a connection by vector, what is added to it by tile, of a feature by sample that is packed or unpacked.
CONNECTION, OF_A_TILE, COPY = 0.3, 0.4, 0.3


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
        if positions < FEW_SAMPLES:
            return positions * (topology.nnz * GATHERED + topology.shape[0] * SUMMED)
        vectors = math.ceil(positions / LANES)
        multiply = topology.nnz * (CONNECTION * vectors + OF_A_TILE * math.ceil(vectors / WIDEST_TILE))
        return multiply + vectors * LANES * (weights.inputs + topology.shape[0]) * COPY

    def __str__(self) -> str:
        return Tiles.name


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """One, but for convolutions."""
    return [] if isinstance(weights.geometry, Convolution) else [TilesCandidate()]
