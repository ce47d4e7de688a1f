"""For one sample and a few of which most inputs are zero: the columns of those are never read. kernels/columns.h says how."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import _core
from ...topology.geometry import Matrix
from ...topology.merge import threads_for
from ..graph.layers import Weights
from .base import BYTE, VALUES, Candidate, Conditions, Layout, held_as, nbytes, on_large_pages, row_scales
from .dense import COPY, FEW_SAMPLES, MULTIPLY_ADD

KINDS = "whole", "lists"
LANES = 16  # rows, to which a column is filled up
WIDEST_PART = 1 << 16  # rows, whose places have 16 bits
LEAST_ZEROS = 0.3  # of the inputs: with fewer, torch's product reads hardly more
LARGEST_BATCH = 16  # beyond, samples that share what they read gain more
LIST_DENSITY, WHOLE_DENSITY = 0.5, 0.1  # most for lists, which read a place and a value; least for a whole weight, which reads zeros, too
# Connections times samples, of which one in ten is read in some 60 microseconds: less is not worth another thread.
WORK_OF_A_THREAD = 1_000_000

# Nanoseconds: of an input looked at, of a list, of one of its connections, of one that is unpacked, of a weight that is zero before.
LOOK, LIST, CONNECTION, UNPACKED, CLEARED = 0.9, 15, 0.65, 2, 0.28


@dataclass(frozen=True)
class ColumnsCandidate(Candidate):
    """A kind of `Columns`.

    Args:
        kind: "whole": columns of a dense weight; "lists": of each column the connections that there are.
        parts: of the rows, of lists, which threads share; at least 1.

    Raises:
        ValueError: if there is no such kind, or no part.
    """

    kind: str
    parts: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.parts < 1:
            raise ValueError(f"columns are of kind {' or '.join(KINDS)}, in at least one part, got {self.kind!r} in {self.parts}")

    def make(self, weights: Weights, relu: bool, values: str) -> Columns:
        return Columns(weights, relu, self, values)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        inputs = conditions.positions(weights.geometry) * weights.inputs
        read = inputs * (1 - conditions.zeros)
        return inputs * LOOK + read * self.of_a_column(
            weights.topology.shape[0], weights.topology.nnz / max(weights.inputs, 1), conditions.values
        )

    def of_a_column(self, rows: int, connections: float, values: str) -> float:
        """Nanoseconds of one that is read, about."""
        return LIST + connections * CONNECTION if self.kind == "lists" else rows * VALUES[values].itemsize * BYTE

    def __str__(self) -> str:
        return f"{Columns.name}:{self.kind}{f':{self.parts}' if self.kind == 'lists' else ''}"


class Columns(Layout):
    """The weights that one input feeds lie side by side, and those of inputs that are zero are never read: for few samples.

    kernels/columns.h says how. Values may be held as bfloat16, or as int8 with a scale for each row. How many inputs are zero is seen
    in each call: with fewer zeros a call takes longer, and of several samples torch's product takes over when it takes less time.

    An input that is zero, of either sign, takes no part: a weight that is not finite would give NaN there in a dense product.
    """

    name = "columns"

    def __init__(self, weights: Weights, relu: bool, kind: ColumnsCandidate, values: str = "float32") -> None:
        super().__init__(weights, relu)
        self.kind, self.values_as, self.connections = kind, values, weights.topology.nnz
        topology, held = weights.topology, weights.values.float().contiguous()
        self.scales = None
        if values == "int8":
            self.scales = row_scales(topology, held)
            held = held / self.scales[topology.rows.long()]
        self.bias = None if weights.bias is None else weights.bias.float().contiguous()
        if kind.kind == "whole":
            self.arrays: tuple[Tensor, ...] = (F.pad(held_as(topology.scatter(held).T, values), (0, -self.rows % LANES)).contiguous(),)
        else:
            # Those of a column together, part after part of the rows.
            keys = topology.rows.long() // self._width * self.columns + topology.indices
            order = keys.argsort(stable=True)
            starts = F.pad(keys.bincount(minlength=math.ceil(self.rows / self._width) * self.columns).cumsum(0), (1, 0)).int()
            places = (topology.rows[order] % self._width).to(torch.int32).to(torch.int16)  # of numbers of 16 bits only the bits are kept
            self.arrays = starts, places, held_as(held[order], values)
        self.arrays = tuple(on_large_pages(array) for array in self.arrays)
        self._kernel: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        batch, kernel, bias = x.shape[0], self._kernel or self._made(), self.bias
        if batch > 1 and self._dense_is_faster(x):
            return self._by_dense(kernel, x)
        y = x.new_empty(batch, self.rows)
        threads = threads_for(batch * (self.connections if self.kind.kind == "lists" else self.rows * self.columns), WORK_OF_A_THREAD)
        kernel.spmv(0 if bias is None else bias.data_ptr(), self.relu, x.data_ptr(), y.data_ptr(), batch, threads)
        return y

    @property
    def _width(self) -> int:
        """Rows of a part."""
        return max(1, min(math.ceil(self.rows / self.kind.parts), WIDEST_PART))

    def _dense_is_faster(self, x: Tensor) -> bool:
        batch, size = x.shape[0], self.rows * self.columns
        of_a_column = self.kind.of_a_column(self.rows, self.connections / max(self.columns, 1), self.values_as)
        dense = 4 * size * BYTE if batch <= FEW_SAMPLES else size * (COPY + batch * MULTIPLY_ADD)
        if self.kind.kind == "lists":
            dense += size * CLEARED + self.connections * UNPACKED
        return int(torch.count_nonzero(x)) * of_a_column + x.numel() * LOOK > dense

    def _by_dense(self, kernel: Any, x: Tensor) -> Tensor:
        if self.kind.kind == "lists":
            weight = torch.zeros(self.columns, self.rows, device="cpu")
            kernel.unpack(weight.data_ptr(), threads_for(self.connections, WORK_OF_A_THREAD))
        else:
            weight = self.arrays[0][:, : self.rows].float()
            if self.scales is not None:
                weight = weight * self.scales
        y = x @ weight if self.bias is None else torch.addmm(self.bias, x, weight)
        return y.relu_() if self.relu else y

    def _made(self) -> Any:
        scales = 0 if self.scales is None else self.scales.data_ptr()
        addresses = [array.data_ptr() for array in self.arrays]
        if self.kind.kind == "whole":
            held: Any = {"float32": _core.Columns_float32, "bfloat16": _core.Columns_bfloat16, "int8": _core.Columns_int8}[self.values_as]
            self._kernel = held(self.rows, self.columns, *addresses, scales)
        else:
            lists = {"float32": _core.ColumnLists_float32, "bfloat16": _core.ColumnLists_bfloat16, "int8": _core.ColumnLists_int8}
            self._kernel = lists[self.values_as](self.rows, self.columns, self._width, *addresses, scales)
        return self._kernel

    @property
    def nbytes(self) -> int:
        return nbytes(*self.arrays, self.scales, self.bias)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kernel": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, arrays=tuple(on_large_pages(array) for array in state["arrays"]))

    def __str__(self) -> str:
        return f"{self.name} ({self.kind.kind}{'' if self.values_as == 'float32' else f', {self.values_as}'})"


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """Those that suit the density, where enough inputs are zero; and whole columns of int8, which are a quarter of what torch reads.

    None where a weight is not finite: its product with zero is NaN.
    """
    if not isinstance(weights.geometry, Matrix) or conditions.batch > LARGEST_BATCH or not bool(weights.values.isfinite().all()):
        return []
    density = weights.topology.nnz / max(weights.topology.size, 1)
    if conditions.zeros < LEAST_ZEROS:
        return [ColumnsCandidate("whole")] if conditions.values == "int8" and density > LIST_DENSITY else []
    whole = [ColumnsCandidate("whole")] if density >= WHOLE_DENSITY else []
    return [*whole, *([ColumnsCandidate("lists", conditions.threads)] if density <= LIST_DENSITY else [])]
