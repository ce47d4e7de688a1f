"""On GPUs: a dense weight and torch, or one of the forms in which the kernels of Triton read connections.

A form that `ops/table.py` lists for a layer is tried here; nothing else needs to be said of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...common.devices import tf32_allowed
from ...ops import values_dtype
from ...ops.table import forms_of
from ...topology import Topology
from ..graph.layers import Weights
from .base import EXACT, NOTHING, Candidate, Conditions, Finish, Layout, finished, nbytes
from .dense import DenseCandidate, NarrowDenseCandidate

FAMILY = "triton"
VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Reckoned from what is published of an H200, not measured. Nanoseconds: of a launch, of a byte that is read, of a multiply-add of torch
# by what is multiplied, of one of a form that reads its inputs one by one. Tiles of these kernels take so many times as long as torch's.
LAUNCH, BYTE, GATHERED = 2000, 1 / 4000, 1 / 4000
MULTIPLY_ADD = {"float32": 1 / 25_000, "tf32": 1 / 150_000, "bfloat16": 1 / 300_000, "float16": 1 / 300_000}
TILES = 2
ROUNDED = 2e-2  # of the largest result: more than products of numbers of 16 bits, or of TF32, add up to
ONE_BY_ONE, EVERY_PLACE = ("rows",), ("bitmap",)  # forms whose work is not their connections in tiles
# Bytes beside the values. Forms that are not here have next to none.
PLACES = {"rows": lambda topology: 4 * topology.nnz, "bitmap": lambda topology: topology.size * 1.125 / 8}


class TritonForm(Layout):
    """Connections in a form of the Triton kernels, their values in the dtype of the products, sums in float32.

    Args:
        form: one of `forms_of`.
        values: "float32", or that of the 16-bit floats to which inputs are rounded, too.
    """

    name = "triton"

    def __init__(self, weights: Weights, relu: bool, finish: Finish, form: str, values: str) -> None:
        super().__init__(weights, relu)
        self.finish, self.form, self.values = finish, form, weights.values.to(VALUES[values]).contiguous()
        self.bias = None if weights.bias is None else weights.bias.to(values_dtype(self.values.dtype)).contiguous()
        topology = weights.topology
        alone = Topology(topology.shape, topology.indptr, topology.indices)  # what is derived from it goes with it
        self.verbs = forms_of(topology, weights.geometry, self.values.dtype, FAMILY)[form](alone)

    def __call__(self, x: Tensor) -> Tensor:
        y = self.verbs.spmm(self.values, x.to(self.values.dtype), self.bias).to(self.dtype)
        return finished(y, self.relu, self.finish)

    @property
    def nbytes(self) -> int:
        held = {id(one): one for one in _tensors((self.values, self.bias, self.verbs))}
        return nbytes(*held.values())

    def __str__(self) -> str:
        narrow = "" if self.values.dtype == self.dtype else f", {str(self.values.dtype).removeprefix('torch.')}"
        return f"{self.name} ({self.form}{narrow})"


def _tensors(held: object) -> Iterator[Tensor]:
    """All that there are in verbs and what they hold."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, tuple):
        for one in held:
            yield from _tensors(one)
    elif isinstance(held, dict):
        yield from _tensors(tuple(held.values()))
    elif hasattr(held, "__dict__"):
        yield from _tensors(tuple(vars(held).values()))


@dataclass(frozen=True)
class TritonCandidate(Candidate):
    form: str
    finish: Finish = NOTHING

    def make(self, weights: Weights, relu: bool, values: str) -> TritonForm:
        return TritonForm(weights, relu, self.finish, self.form, values)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        topology, positions = weights.topology, conditions.positions(weights.geometry)
        held = topology.nnz * VALUES[conditions.values].itemsize + PLACES.get(self.form, _none)(topology)
        work = topology.size if self.form in EVERY_PLACE else topology.nnz
        of_one = GATHERED if self.form in ONE_BY_ONE else TILES * _multiply_add(conditions.values)
        return max(LAUNCH, held * BYTE, work * positions * of_one)

    def __str__(self) -> str:
        return f"{TritonForm.name}:{self.form}"


class TorchCandidate(DenseCandidate):
    """Dense, where torch runs on a GPU."""

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        return _by_torch(weights, conditions, str(weights.values.dtype).removeprefix("torch."))


class NarrowTorchCandidate(NarrowDenseCandidate):
    def guess(self, weights: Weights, conditions: Conditions) -> float:
        return _by_torch(weights, conditions, self.values)


def _by_torch(weights: Weights, conditions: Conditions, values: str) -> float:
    size, positions = weights.topology.size, conditions.positions(weights.geometry)
    return max(LAUNCH, size * VALUES[values].itemsize * BYTE, size * positions * _multiply_add(values, _convolved(conditions)))


def _multiply_add(values: str, convolved: bool = False) -> float:
    return MULTIPLY_ADD["tf32" if values == "float32" and tf32_allowed(convolved) else values]


def _convolved(conditions: Conditions) -> bool:
    return len(conditions.input_shape) > 2


def tolerance(conditions: Conditions) -> float:
    """As in `base.py`; of narrow values, too. Torch's convolutions are in TF32 by default, though those of a form are exact."""
    exact = conditions.values == "float32" and not tf32_allowed() and not (_convolved(conditions) and tf32_allowed(convolved=True))
    return EXACT if exact else ROUNDED


def _none(topology: Topology) -> float:
    return 0.0


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """Dense, with narrow values also dense ones of these, and all forms that there are for the layer if some of its weights are absent."""
    finish, values, topology = conditions.finish, conditions.values, weights.topology
    narrow = VALUES[values] != weights.values.dtype
    absent = topology.nnz < topology.size
    forms = forms_of(topology, weights.geometry, VALUES[values], FAMILY) if absent else {}
    return [
        TorchCandidate(finish),
        *([NarrowTorchCandidate(values, finish)] if narrow else []),
        *(TritonCandidate(form, finish) for form in forms),
    ]
