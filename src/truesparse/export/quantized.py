"""How do the numbers of a file come into a layer that is quantised, and floats of a file become numbers?"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..nn.quantized import QuantizedLayer
from ..quantization.numbers import By, check_bits, check_values, numbers_of
from .snapshot import SavedLayer, SavedModel


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
            parts[f"input_rounding.{prefix}scale"] = torch.tensor(one.scale, dtype=torch.float32, device="cpu")
            parts[f"input_rounding.{prefix}zero_point"] = torch.tensor(one.zero_point, dtype=torch.int32, device="cpu")
    return parts


def quantized_values(saved: SavedModel, bits: int, by: By) -> SavedModel:
    """The same with the values of all layers as numbers; nothing is trained, and inputs stay as they are.

    Raises:
        ValueError: if bits are out of range, or no such numbers stand for the values of a layer.
    """
    check_bits(bits, by)
    layers: dict[str, SavedLayer] = {}
    for name, layer in saved.layers.items():
        check_values(name, layer.values, bits, by)
        weights = numbers_of(layer.topology, layer.values, bits, by)
        layers[name] = replace(layer, values=weights.values(layer.topology), weights=weights)
    return SavedModel(layers, saved.tensors)


def _inputs(rounded: bool) -> str:
    return "inputs rounded" if rounded else "inputs as they are"
