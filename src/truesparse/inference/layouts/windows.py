"""For one sample and a few: rows side by side, inputs looked up in registers. kernels/windows.h says how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _core
from ...topology import Topology
from ...topology.geometry import Matrix
from ...topology.merge import threads_for
from ..graph.layers import Weights
from .base import VALUES, Candidate, Conditions, Layout, held_as, nbytes, on_large_pages, reading, row_scales
from .dense import COPY, FEW_SAMPLES, MULTIPLY_ADD

LANES = 16  # of a vector, each of them a row or two
STEPS = 4  # connections of a lane at each stop of the window, at most
COLUMNS = {4: 16, 5: 32, 7: 64, 8: 128, 16: 65536}  # that a window shows, by the bits of a place in it
ROWS = {4: 1, 5: 1, 7: 2, 8: 2, 16: 1}  # of a lane
MOST_DENSITY = 0.9  # beyond, places and padding are more than what is left out, and narrow values gain less than dense ones of torch
LARGEST_BATCH = 64  # beyond, pairs reuse what they load for more samples than windows ever could
SHARING = 4  # samples that share what is read
UNPACKED, CLEARED = 4.5, 0.28  # nanoseconds of a place that is unpacked, of a weight that is zero before
NEVER = 1 << 62  # samples
WORK_OF_A_THREAD = 100_000  # connections times samples, some 20 microseconds: less is not worth another thread

# Kinds for vectors of sixteen lanes, and for shorter ones: bits of a place, windows of a stop. Nanoseconds of a step of each, alone and
# where it shares what it reads with other samples, which only long vectors have registers for.
LONG_VECTORS = "avx512"
LONG = {(5, 1): (1.05, 0.62), (7, 1): (1.5, 1.07), (8, 1): (2.0, 2.3), (16, 1): (2.9, 2.7)}
SHORT = {(4, 2): (2.7, 2.7), (4, 4): (2.7, 2.7), (16, 1): (5.4, 5.4)}


@dataclass(frozen=True)
class WindowsCandidate(Candidate):
    """A kind of `Windows`.

    Args:
        bits: of a place in the window. 4: it shows 16 columns; 5: 32; 7 and 8: 64 and 128, and two rows share a lane; 16: inputs are
            gathered. The more, the fewer lanes have nothing to do at a stop, and the more a step costs.
        shown: windows at each stop, one after the other: 2 or 4 for 4 bits, else 1.

    Raises:
        ValueError: if there is no such kind.
    """

    bits: int
    shown: int = 1

    def __post_init__(self) -> None:
        kinds = sorted({*LONG, *SHORT})
        if (self.bits, self.shown) not in kinds:
            raise ValueError(f"bits of a place and windows of a stop are of {', '.join(map(str, kinds))}, got ({self.bits}, {self.shown})")

    def make(self, weights: Weights, relu: bool, values: str) -> Windows:
        return Windows(weights, relu, self, values)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        positions = conditions.positions(weights.geometry)
        steps = int(_starts(weights.topology, _order(weights.topology, self.bits), self)[-1]) * STEPS
        held = steps * LANES * (VALUES[conditions.values].itemsize + math.ceil(self.bits / 8))
        return max(steps * positions * self.nanoseconds(shared=positions >= SHARING), reading(held))

    def nanoseconds(self, shared: bool) -> float:
        """Of a step, about: of a sample by itself, or of one of several that share what is read."""
        known = {**SHORT, **LONG} if _core.isa() == LONG_VECTORS else {**LONG, **SHORT}
        return known[self.bits, self.shown][shared]

    def __str__(self) -> str:
        return f"{Windows.name}:{self.bits}{f':{self.shown}' if self.shown > 1 else ''}"


class Windows(Layout):
    """Rows side by side, inputs looked up in registers as a window goes over the columns: for one sample and a few.

    kernels/windows.h says how. Values may be held as bfloat16 or as int8 with a scale for each row.
    """

    name = "windows"

    def __init__(self, weights: Weights, relu: bool, kind: WindowsCandidate, values: str = "float32") -> None:
        super().__init__(weights, relu)
        self.kind, self.values_as, self.connections = kind, values, weights.topology.nnz
        topology, held = weights.topology, weights.values.float().contiguous()
        scales = None
        if values == "int8":
            scales = row_scales(topology, held)
            held = held / scales[topology.rows.long()]
        order = _order(topology, kind.bits)
        starts = _starts(topology, order, kind)
        stops = int(starts[-1])
        first = torch.zeros(stops * kind.shown, dtype=torch.int32, device="cpu")
        places = torch.zeros(stops * LANES * (2 if kind.bits == 16 else 1), dtype=torch.int32, device="cpu")
        own = torch.zeros(stops * STEPS * LANES, device="cpu")
        made = (array.data_ptr() for array in (first, places, own))
        where = topology.indptr.data_ptr(), topology.indices.data_ptr(), held.data_ptr(), order.data_ptr()
        _core.fill_windows(self.rows, self.columns, *where, kind.bits, kind.shown, *made)
        self.arrays = tuple(on_large_pages(array) for array in (order, starts, first, places, held_as(own, values)))
        self.scales = None if scales is None else _in_lanes(scales, order)
        self.bias = None if weights.bias is None else _in_lanes(weights.bias, order)
        self.dense_from = _dense_from(topology.size, stops * STEPS, kind)
        self._kernel: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        batch, kernel, bias = x.shape[0], self._kernel or self._made(), self.bias
        if batch >= self.dense_from:
            return self._by_dense(kernel, x)
        y = x.new_empty(batch, self.rows)
        threads = threads_for(batch * self.connections, WORK_OF_A_THREAD)
        kernel.spmv(0 if bias is None else bias.data_ptr(), self.relu, x.data_ptr(), y.data_ptr(), batch, threads)
        return y

    def call(self, shape: Sequence[int]) -> Any:
        kernel, bias, batch = self._kernel or self._made(), self.bias, shape[0]
        if batch >= self.dense_from:
            return None
        threads = threads_for(batch * self.connections, WORK_OF_A_THREAD)
        return kernel.call(0 if bias is None else bias.data_ptr(), self.relu, batch, threads)

    def _by_dense(self, kernel: Any, x: Tensor) -> Tensor:
        """Unpacked for the call: of many samples torch's product takes less time, that of unpacking included."""
        weight = torch.zeros(self.rows, self.columns, device="cpu")
        kernel.unpack(weight.data_ptr(), threads_for(self.connections, WORK_OF_A_THREAD))
        bias = None if self.bias is None else _of_rows(self.bias, self.arrays[0], self.rows)
        y = F.linear(x, weight, bias)
        return y.relu_() if self.relu else y

    def _made(self) -> Any:
        addresses = (array.data_ptr() for array in self.arrays)
        scales = 0 if self.scales is None else self.scales.data_ptr()
        held = {"float32": _core.Windows_float32, "bfloat16": _core.Windows_bfloat16, "int8": _core.Windows_int8}[self.values_as]
        self._kernel = held(self.rows, self.columns, self.kind.bits, self.kind.shown, *addresses, scales)
        return self._kernel

    @property
    def nbytes(self) -> int:
        return nbytes(*self.arrays, self.scales, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernel": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, arrays=tuple(on_large_pages(array) for array in state["arrays"]))

    def __str__(self) -> str:
        bits = self.kind.bits
        seen = "gathered" if bits == 16 else f"{COLUMNS[bits]} columns{', 2 rows a lane' if ROWS[bits] == 2 else ''}"
        unpacked = f", dense from {self.dense_from} samples on" if self.dense_from < NEVER else ""
        return f"{self.name} ({seen}{'' if self.values_as == 'float32' else f', {self.values_as}'}){unpacked}"


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """Those whose windows show a connection or more of a lane at a stop, and the gathered one."""
    density = weights.topology.nnz / max(weights.topology.size, 1)
    if not isinstance(weights.geometry, Matrix) or conditions.batch > LARGEST_BATCH or density > MOST_DENSITY:
        return []
    kinds = LONG if _core.isa() == LONG_VECTORS else SHORT
    return [WindowsCandidate(*kind) for kind in kinds if kind[0] == 16 or density * COLUMNS[kind[0]] * ROWS[kind[0]] * kind[1] >= 1]


def _order(topology: Topology, bits: int) -> Tensor:
    """Rows of the lanes, [blocks, rows of a lane, lanes] int32, -1 where there is none."""
    share = ROWS[bits]
    blocks = math.ceil(topology.shape[0] / (LANES * share))
    order = torch.full((blocks * share * LANES,), -1, dtype=torch.int32, device="cpu")
    # Rows of one length together: all lanes of a block are done at the same time. Of a shared lane, the longest with the shortest.
    order[: topology.shape[0]] = topology.fan_in.argsort(descending=True, stable=True)
    order = order.view(blocks, share, LANES)
    order[:, 1:] = order[:, 1:].flip(2)
    return order


def _starts(topology: Topology, order: Tensor, kind: WindowsCandidate) -> Tensor:
    """Where the stops of each block begin, [blocks + 1] int32."""
    starts = torch.zeros(order.shape[0] + 1, dtype=torch.int32, device="cpu")
    where = topology.indptr.data_ptr(), topology.indices.data_ptr(), order.data_ptr()
    _core.count_stops(*topology.shape, *where, kind.bits, kind.shown, starts.data_ptr())
    return starts


def _of_rows(in_lanes: Tensor, order: Tensor, rows: int) -> Tensor:
    """The other way: [rows]."""
    there = order.flatten() >= 0
    return torch.zeros(rows, device="cpu").index_copy_(0, order.flatten()[there].long(), in_lanes.flatten()[there])


def _dense_from(size: int, steps: int, kind: WindowsCandidate) -> int:
    """Samples from which unpacking the weight and torch's product take less time than windows do."""
    of_a_sample = steps * kind.nanoseconds(shared=True) - size * MULTIPLY_ADD
    if of_a_sample <= 0:
        return NEVER
    return max(math.ceil((size * (COPY + CLEARED) + steps * LANES * UNPACKED) / of_a_sample), FEW_SAMPLES + 1)


def _in_lanes(of_rows: Tensor, order: Tensor) -> Tensor:
    """`of_rows` [rows] in the order of the lanes, 0 where there is no row."""
    if not of_rows.numel():
        return torch.zeros_like(order, dtype=torch.float32)
    return torch.where(order >= 0, of_rows.float()[order.long().clamp(min=0)], 0.0)
