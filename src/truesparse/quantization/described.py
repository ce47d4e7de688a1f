"""Which numbers does a quantised model compute with? What whoever runs it in whole numbers needs to know, as values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..nn.quantized import QuantizedLayer
from ..nn.wrapped import plain_name, unwrapped
from ..topology import Topology


@dataclass(frozen=True)
class Affine:
    """How numbers of int8 stand for activations: x = scale x (number - zero_point), number = round(x / scale) + zero_point.

    Args:
        scale: above 0, a float32.
        zero_point: in [-128, 127]: the number that stands for 0, exactly.
    """

    scale: float
    zero_point: int


@dataclass(frozen=True, eq=False)
class QuantizedWeights:
    """The numbers of one layer, in the order of its topology.

    Args:
        by: "row": value = table[row] x number, rounded to the dtype of the table; "codebook": value = table[number].
        bits: of a number.
        numbers: [nnz]; int8 by row, -2^(bits - 1) < number < 2^(bits - 1); uint8 by codebook.
        table: [rows] scales, or the codebook [at most 2^bits].
        inputs: how the input of the layer is rounded to int8; None: it is not.
        outputs: how int8 can hold the output of the layer, before any activation, by the same data; None with `inputs`.

    Whole-number arithmetic of a layer by row: a sum of products in int32, its unit `inputs.scale` x table[row], in which the bias is added.
    """

    by: Literal["row", "codebook"]
    bits: int
    numbers: Tensor
    table: Tensor
    inputs: Affine | None = None
    outputs: Affine | None = None

    def values(self, topology: Topology) -> Tensor:
        """[nnz], as the layer computes with them."""
        if self.by == "codebook":
            return self.table.index_select(0, self.numbers.to(torch.int32))
        return self.numbers.to(self.table.dtype) * self.table.index_select(0, topology.rows)

    def to(self, device: torch.device | str) -> QuantizedWeights:
        """The same on a device."""
        return replace(self, numbers=self.numbers.to(device), table=self.table.to(device))


def quantized_layers(model: nn.Module) -> dict[str, QuantizedWeights]:
    """The numbers of each quantised layer as they are now, by name, in arrays of their own."""
    inside = unwrapped(model)
    return {plain_name(inside, name): weights_of(layer) for name, layer in inside.named_modules() if isinstance(layer, QuantizedLayer)}


def weights_of(layer: QuantizedLayer) -> QuantizedWeights:
    """Of one layer."""
    rounding, beside = layer.rounding, layer.input_rounding
    inputs = outputs = None
    if beside is not None:
        inputs = Affine(float(beside.scale), int(beside.zero_point))
        outputs = Affine(float(beside.output_scale), int(beside.output_zero_point))
    numbers, table = rounding.numbers(layer.indptr), rounding.table()
    return QuantizedWeights(rounding.by, rounding.bits, numbers.clone(), table.clone(), inputs, outputs)  # type: ignore[arg-type]
