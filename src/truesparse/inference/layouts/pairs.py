"""For batches: pairs of rows that have many columns in common, in the order in which they are used. kernels/pairs.h says how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import _core
from ...topology.geometry import Matrix
from ...topology.merge import threads_for
from ..graph.layers import Weights
from .base import Candidate, Conditions, Layout, nbytes

SMALLEST_BATCH = 2
HALF_VECTOR, LANES, WIDEST_TILE = 8, 16, 64  # samples
NEAREST_CACHE = 40 << 10  # bytes, for the inputs of a block
LEAST_RUN = 8  # connections of a row in a block, on average: shorter runs are mostly beginning and end
WIDEST_BLOCK = 4096
WORK_OF_A_THREAD = 200_000  # connections times samples, some 10 microseconds: less is not worth another thread

# Nanoseconds: of a connection by vector of samples, what is added to it by tile, of a feature by sample that is packed or unpacked.
CONNECTION, OF_A_TILE, COPY = 0.25, 0.1, 0.3


@dataclass(frozen=True)
class PairShape(Candidate):
    """How `Pairs` are made.

    Args:
        abreast: pairs that are computed at once, 1 or 2.
        width: columns of a block, 1 to 4096.
        parts: of the rows, among which threads share a tile; at least 1.

    Raises:
        ValueError: if one is out of its range.
    """

    abreast: int
    width: int
    parts: int = 1

    def __post_init__(self) -> None:
        if self.abreast not in (1, 2) or not 1 <= self.width <= WIDEST_BLOCK or self.parts < 1:
            raise ValueError(f"pairs are 1 or 2 abreast, in blocks of 1 to {WIDEST_BLOCK} columns and at least one part, got {self}")

    def make(self, weights: Weights, relu: bool, values: str) -> Pairs:
        return Pairs(weights, relu, self)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        tiles, vectors = _tiling(conditions.batch)
        multiply = weights.topology.nnz * (CONNECTION * vectors + OF_A_TILE)
        return tiles * (multiply + sum(weights.topology.shape) * LANES * vectors * COPY)

    def __str__(self) -> str:
        return f"{Pairs.name}:{self.abreast}:{self.width}:{self.parts}"


class Pairs(Layout):
    """Pairs of rows that have many columns in common, in blocks of columns that fill the nearest cache: for batches.

    kernels/pairs.h says how. Values are float32.
    """

    name = "pairs"

    def __init__(self, weights: Weights, relu: bool, shape: PairShape) -> None:
        super().__init__(weights, relu)
        self.shape, self.connections = shape, weights.topology.nnz
        topology, values = weights.topology, weights.values.float().contiguous()
        where = topology.indptr.data_ptr(), topology.indices.data_ptr(), values.data_ptr()
        made = _core.lay_out_pairs(*self._extents, *where)
        # Of numbers of 16 bits only the bits are kept.
        kinds = torch.int64, torch.int16, torch.int32, torch.int16, torch.float32
        self.arrays = tuple(torch.empty(size, dtype=kind, device="cpu") for size, kind in zip(made.sizes, kinds, strict=True))
        made.copy_to(*(array.data_ptr() for array in self.arrays))
        self.bias = None if weights.bias is None else weights.bias.float().contiguous()
        self._kernel: Any = None

    @property
    def _extents(self) -> tuple[int, int, int, int, int]:
        return self.rows, self.columns, self.shape.abreast, self.shape.width, self.shape.parts

    def __call__(self, x: Tensor) -> Tensor:
        batch, y = x.shape[0], x.new_empty(x.shape[0], self.rows)
        kernel, bias = self._kernel or self._made(), self.bias
        threads = threads_for(batch * self.connections, WORK_OF_A_THREAD)
        kernel.spmm(0 if bias is None else bias.data_ptr(), self.relu, x.data_ptr(), y.data_ptr(), batch, threads)
        return y

    def call(self, shape: Sequence[int]) -> Any:
        kernel, bias, batch = self._kernel or self._made(), self.bias, shape[0]
        threads = threads_for(batch * self.connections, WORK_OF_A_THREAD)
        return kernel.call(0 if bias is None else bias.data_ptr(), self.relu, batch, threads)

    def _made(self) -> Any:
        self._kernel = _core.Pairs(*self._extents, *(array.data_ptr() for array in self.arrays))
        return self._kernel

    @property
    def nbytes(self) -> int:
        return nbytes(*self.arrays, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernel": None}

    def __str__(self) -> str:
        return f"{self.name} ({self.shape.abreast} abreast, {self.shape.width} columns)"


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """One, for matrices and more than a few samples."""
    topology = weights.topology
    if not isinstance(weights.geometry, Matrix) or conditions.batch < SMALLEST_BATCH or not topology.nnz:
        return []
    tiles, vectors = _tiling(conditions.batch)
    samples = HALF_VECTOR if conditions.batch <= HALF_VECTOR else LANES * vectors
    fitting = max(NEAREST_CACHE // (4 * samples), LEAST_RUN * topology.size / topology.nnz)
    blocks = math.ceil(topology.shape[1] / min(fitting, WIDEST_BLOCK))
    width = math.ceil(topology.shape[1] / blocks / LANES) * LANES
    parts = 1 if tiles >= conditions.threads else math.ceil(conditions.threads / tiles)
    # Tiles of few vectors need two pairs abreast, so that enough multiply-adds wait for none before.
    return [PairShape(1 if vectors > 2 else 2, width, parts)]


def _tiling(batch: int) -> tuple[int, int]:
    """Tiles of a batch, and vectors of samples of each, with AVX-512; about right elsewhere."""
    tiles = max(1, math.ceil(batch / WIDEST_TILE))
    return tiles, max(1, math.ceil(batch / (tiles * LANES)))
