"""How do the numbers of a file come into a layer that is quantised? As they are, where the layer is quantised in the same way."""

from __future__ import annotations

import torch
from torch import Tensor

from ..nn.quantized import QuantizedLayer
from .snapshot import SavedLayer


def quantized_parts(module: QuantizedLayer, name: str, layer: SavedLayer) -> dict[str, Tensor]:
    """The `state_dict` of the layer.

    Raises:
        ValueError: if it is quantised in another way than the file, or rounds its input and the file does not, or the other way round.
    """
    weights, rounding = layer.weights, module.rounding
    ours = f"by {rounding.by} with {rounding.bits} bits, {_inputs(module.input_rounding is not None)}"
    theirs = "not quantised" if weights is None else f"by {weights.by} with {weights.bits} bits, {_inputs(weights.inputs is not None)}"
    if weights is None or ours != theirs:
        raise ValueError(
            f"layer {name!r} is {theirs} in the file, {ours} in the model: quantise the model likewise, or load into one that is not "
            "quantised, which takes the rounded values"
        )
    parts = layer.parts()
    values = parts.pop("values")
    if weights.by == "row":
        parts |= {"rounding.trained": values, "rounding.scale": weights.table}
    else:
        parts |= {"rounding.trained": weights.table, "rounding.codes": weights.numbers}
    for prefix, one in (("", weights.inputs), ("output_", weights.outputs)):
        if one is not None:
            parts[f"input_rounding.{prefix}scale"] = torch.tensor(one.scale, dtype=torch.float32)
            parts[f"input_rounding.{prefix}zero_point"] = torch.tensor(one.zero_point, dtype=torch.int32)
    return parts


def _inputs(rounded: bool) -> str:
    return "inputs rounded" if rounded else "inputs as they are"
