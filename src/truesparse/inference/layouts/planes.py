"""For convolutions: connections that read shifted planes of the input, which kernels/planned_convolution.h lays out beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ... import _core
from ...ops.plans import core_convolution
from ...topology.geometry import Convolution
from ...topology.merge import threads_for
from ..graph.layers import Weights
from .base import NOTHING, Candidate, Conditions, Finish, Layout, nbytes

WORK_OF_A_THREAD = 200_000  # multiply-adds, some 20 microseconds: less is not worth another thread

# Nanoseconds: of a call, of a connection and sixteen results whose inputs are aligned in memory or not, of a number read and one written.
CALL, ALIGNED, SHIFTED, READ, WRITTEN = 6000, 0.35, 0.5, 0.1, 0.15
STRIDED = 4  # times as long is a number read that does not lie beside the next one
LANES = 16

Planned = tuple[tuple[torch.Size, int], tuple[int, ...], Any]  # for which shape and threads, the shape of the result, the kernels' plan


class Planes(Layout):
    """Connections in the order in which they are used, for one size of input at a time: each reads a plane of the input, shifted.

    A call with another size, batch or number of threads than the one before orders the connections again.
    """

    name = "planes"

    def __init__(self, weights: Weights, relu: bool = False, finish: Finish = NOTHING) -> None:
        super().__init__(weights, relu)
        assert isinstance(weights.geometry, Convolution)
        self.geometry, self.topology, self.finish = weights.geometry, weights.topology, finish
        self.values, self.bias = weights.values.contiguous(), None if weights.bias is None else weights.bias.contiguous()
        self._planned: Planned | None = None

    def __call__(self, x: Tensor) -> Tensor:
        planned = self._planned_for(x.shape, torch.get_num_threads())
        y = x.new_empty(planned[1])
        planned[2].run(x.data_ptr(), y.data_ptr())
        return y

    def call(self, shape: Sequence[int]) -> Any:
        return self._planned_for(torch.Size(shape), torch.get_num_threads())[2].call()

    def _planned_for(self, shape: torch.Size, threads: int) -> Planned:
        planned = self._planned
        if planned is None or planned[0] != (shape, threads):
            planned = self._planned = self._plan(shape, threads)
        return planned

    def _plan(self, shape: torch.Size, threads: int) -> Planned:
        g, batch, (height, width) = self.geometry, shape[0], shape[2:]
        size = g.output_size((height, width))
        threads = threads_for(batch * prod(size) * self.topology.nnz, WORK_OF_A_THREAD) if threads > 1 else 1
        plan = _core.PlannedConvolution(
            core_convolution(g),
            self.topology.indptr.data_ptr(),
            self.topology.indices.data_ptr(),
            self.values.data_ptr(),
            0 if self.bias is None else self.bias.data_ptr(),
            0.0 if self.relu else -math.inf,
            self.finish.most,
            self.finish.pool,
            batch,
            height,
            width,
            threads,
        )
        factor = 2 if self.finish.pool else 1
        return (shape, threads), (batch, g.out_channels, size[0] // factor, size[1] // factor), plan

    @property
    def nbytes(self) -> int:
        planned = self._planned[2].nbytes if self._planned else 0
        return nbytes(self.values, self.topology.indptr, self.topology.indices, self.bias) + planned

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_planned": None}


@dataclass(frozen=True)
class PlanesCandidate(Candidate):
    finish: Finish = NOTHING

    def make(self, weights: Weights, relu: bool, values: str) -> Planes:
        return Planes(weights, relu, self.finish)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        g, batch, positions = weights.geometry, conditions.batch, conditions.positions(weights.geometry)
        assert isinstance(g, Convolution)
        side_by_side = batch % LANES == 0 or batch > 2 * LANES
        aligned = side_by_side or g.kernel == (1, 1)
        step = ALIGNED if aligned else SHIFTED
        read = prod(conditions.input_shape) * READ * (STRIDED if g.stride[1] > 1 and not side_by_side else 1)
        return CALL + weights.topology.nnz * math.ceil(positions / LANES) * step + read + positions * g.out_channels * WRITTEN

    def __str__(self) -> str:
        return Planes.name


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """One for convolutions."""
    return [PlanesCandidate(conditions.finish)] if isinstance(weights.geometry, Convolution) and weights.geometry.sample_ndim == 3 else []
