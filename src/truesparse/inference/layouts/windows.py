"""For one sample and a few: sixteen rows side by side, inputs looked up in registers. kernels/windows.h says how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ... import _core
from ...geometry import Convolution
from ...merge import threads_for
from ...topology import Topology
from ..layers import Weights
from .base import VALUES, Candidate, Conditions, Layout, nbytes

ROWS = 16  # of a block of windows, in the lanes of one vector
COLUMNS = 16  # by which a window slides
MOST_STEPS = 12
LARGEST_BATCH = 64  # beyond, tiles reuse what they load for more samples than windows ever could
WORK_OF_A_THREAD = 100_000  # connections times samples, some 20 microseconds: less is not worth another thread

# Nanoseconds: of a step by width, of a gathered connection, of a byte from memory beyond the second cache.
STEP = {2: 0.7, 4: 1.0}
GATHERED = 0.25
BYTE = 1 / 30
SECOND_CACHE = 2 << 20


@dataclass(frozen=True)
class WindowShape(Candidate):
    """How a `Windows` layout meets its connections.

    Args:
        steps: connections of a row at each place of the window; 0: none, all are gathered.
        width: of the window in units of 16 columns, 2 or 4: the wider, the fewer connections are left to be gathered, and the
            more a step costs.

    Raises:
        ValueError: if one is out of its range.
    """

    steps: int
    width: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.steps <= MOST_STEPS or self.width not in (2, 4):
            raise ValueError(f"a window takes 0 to {MOST_STEPS} steps and is 2 or 4 wide, got {self}")

    def make(self, weights: Weights, relu: bool, values: str) -> Windows:
        return Windows(weights, relu, self, values)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        topology, positions = weights.topology, conditions.positions(weights.geometry)
        rows, columns = topology.shape
        blocks, places = math.ceil(rows / ROWS), math.ceil(columns / COLUMNS)
        own = blocks * places * self.steps
        # Connections of a row come to a window at random, as to a queue that serves `steps` at a time and holds those in sight.
        load = topology.nnz / max(rows * places * self.steps, 1)
        left = max(1 - 1 / load, math.exp(-self.steps * self.width / 2) * load**2) if self.steps and load else 1.0
        gathered = left * topology.nnz / ROWS
        held = own * 80 + gathered * 128
        memory = held * BYTE if held > SECOND_CACHE else 0.0
        return max(positions * (own * STEP[self.width] + gathered * ROWS * GATHERED), memory)

    def __str__(self) -> str:
        return f"{Windows.name}:{self.steps}:{self.width}"


class Windows(Layout):
    """Sixteen rows side by side, inputs looked up in registers as a window slides over the columns: for one sample and a few.

    kernels/windows.h says how. Values may be held as bfloat16 or as int8 with a scale for each row.
    """

    name = "windows"

    def __init__(self, weights: Weights, relu: bool, shape: WindowShape, values: str = "float32") -> None:
        super().__init__(weights, relu)
        self.shape, self.values_as, self.connections = shape, values, weights.topology.nnz
        topology, held = weights.topology, weights.values.float().contiguous()
        scales = None
        if values == "int8":
            scales = _scales(topology, held)
            held = held / scales[topology.rows.long()]
        blocks = math.ceil(self.rows / ROWS)
        # Rows of one length together: all lanes of a block are done at the same time.
        order = torch.full((blocks * ROWS,), -1, dtype=torch.int32)
        order[: self.rows] = topology.fan_in.argsort(descending=True, stable=True)
        tails = torch.zeros(blocks + 1, dtype=torch.int32)
        where = topology.indptr.data_ptr(), topology.indices.data_ptr()
        _core.count_tails(self.rows, *where, order.data_ptr(), shape.steps, shape.width, tails.data_ptr())
        steps, gathered = blocks * _core.steps_of_block(self.columns, shape.steps), int(tails[-1])
        places = torch.zeros(steps // 4 * ROWS, dtype=torch.int32)
        in_windows, in_tails = torch.zeros(steps * ROWS), torch.zeros(gathered * ROWS)
        columns = torch.zeros(gathered * ROWS, dtype=torch.int32)
        made = (array.data_ptr() for array in (tails, places, in_windows, columns, in_tails))
        _core.fill_windows(self.rows, self.columns, *where, held.data_ptr(), order.data_ptr(), shape.steps, shape.width, *made)
        in_windows, in_tails = (_held_as(array, values) for array in (in_windows, in_tails))
        self.arrays = order, places, in_windows, tails, columns, in_tails
        self.scales = None if scales is None else _in_lanes(scales, order)
        self.bias = None if weights.bias is None else _in_lanes(weights.bias, order)
        self._kernel: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        batch, y = x.shape[0], x.new_empty(x.shape[0], self.rows)
        kernel, bias = self._kernel or self._made(), self.bias
        threads = threads_for(batch * self.connections, WORK_OF_A_THREAD)
        kernel.spmv(0 if bias is None else bias.data_ptr(), self.relu, x.data_ptr(), y.data_ptr(), batch, threads)
        return y

    def _made(self) -> Any:
        addresses = (array.data_ptr() for array in self.arrays)
        scales = 0 if self.scales is None else self.scales.data_ptr()
        kind = {"float32": _core.Windows_float32, "bfloat16": _core.Windows_bfloat16, "int8": _core.Windows_int8}[self.values_as]
        self._kernel = kind(self.rows, self.columns, self.shape.steps, self.shape.width, *addresses, scales)
        return self._kernel

    @property
    def nbytes(self) -> int:
        return nbytes(*self.arrays, self.scales, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernel": None}

    def __str__(self) -> str:
        how = f"{self.shape.steps} steps, {self.shape.width * COLUMNS} columns" if self.shape.steps else "gathered"
        return f"{self.name} ({how}{'' if self.values_as == 'float32' else f', {self.values_as}'})"


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """Steps near the connections that a row has in 16 columns."""
    if isinstance(weights.geometry, Convolution) or conditions.batch > LARGEST_BATCH:
        return []
    topology = weights.topology
    average = topology.nnz / max(topology.size, 1) * COLUMNS
    steps = {max(1, math.floor(average)), math.ceil(average), math.ceil(average * 1.1)} & set(range(1, MOST_STEPS + 1))
    return [WindowShape(0), *(WindowShape(count, width) for count in sorted(steps) for width in (2, 4))]


def _scales(topology: Topology, values: Tensor) -> Tensor:
    """[rows] so that the largest value of each row becomes 127."""
    largest = torch.zeros(topology.shape[0]).scatter_reduce(0, topology.rows.long(), values.abs(), "amax")
    return torch.where(largest > 0, largest / 127, 1.0)


def _held_as(values: Tensor, kind: str) -> Tensor:
    return values.round().to(torch.int8) if kind == "int8" else values.to(VALUES[kind])


def _in_lanes(of_rows: Tensor, order: Tensor) -> Tensor:
    """`of_rows` [rows] in the order of the lanes, 0 where there is no row."""
    return torch.where(order >= 0, of_rows.float()[order.long().clamp(min=0)], 0.0) if of_rows.numel() else torch.zeros(order.numel())
