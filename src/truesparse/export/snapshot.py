"""What does a model hold that a file shall hold? Its sparse layers as values, and every other tensor as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import MaskedLayer, TopologyLayer
from ..nn.quantized import QuantizedLayer
from ..nn.wrapped import plain_name, unwrapped
from ..quantization import QuantizedWeights
from ..quantization.described import weights_of
from ..topology import Topology
from .header import tensor_name
from .layers import described
from .opening import opened_modules

TOPOLOGY = ("indptr", "indices", "fingerprint", "acting")  # the digest of a file sees more than the fingerprint


@dataclass(frozen=True, eq=False)
class SavedLayer:
    """A sparse layer of a file.

    Attributes:
        module: what it stands for: "Linear" or "Conv2d" of `torch.nn`.
        arguments: those of that module, `bias` included; `ts.SparseLinear(**arguments)` has the same shape.
        pattern: the text of its pattern, as `str(pattern)` writes it.
        topology: which connections exist, over [rows, columns] of the flattened weight.
        values: [nnz], in the dtype of the file.
        acting: [nnz] bool, which connections act: the others have been trained, but the layer computes without them. None, as
            nearly always: all of them.
        weights: the numbers that the values are made of, where they are quantised; else None.
    """

    module: str
    arguments: Mapping[str, Any]
    pattern: str
    topology: Topology
    values: Tensor
    acting: Tensor | None = None
    weights: QuantizedWeights | None = None

    def parts(self) -> dict[str, Tensor]:
        """As a sparse layer's `state_dict` has them."""
        parts = {"values": self.values, "indptr": self.topology.indptr, "indices": self.topology.indices}
        return parts if self.acting is None else parts | {"acting": self.acting}


@dataclass(frozen=True, eq=False)
class SavedModel:
    """What a file holds.

    Attributes:
        layers: the sparse layers, by name.
        tensors: every other tensor of the `state_dict`, by its name there: biases, norms, dense layers.
    """

    layers: Mapping[str, SavedLayer]
    tensors: Mapping[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        """The `state_dict` of the sparse model."""
        state = dict(self.tensors)
        for name, layer in self.layers.items():
            state |= {tensor_name(name, part): tensor for part, tensor in layer.parts().items()}
        return state


def snapshot(model: nn.Module) -> SavedModel:
    """What a file of the model shall hold, on the CPU, in memory of its own. Masked twins are the sparse layers they stand for.

    Raises:
        TypeError: if there is something that a file of tensors cannot hold.
    """
    model = unwrapped(model)
    # Each tensor apart from all others: safetensors refuses those that share memory.
    state = {plain_name(model, name): _copied(name, tensor) for name, tensor in model.state_dict().items()}
    modules = opened_modules(model, {})
    return SavedModel({name: _taken(state, name, layer) for name, layer in modules.items() if isinstance(layer, TopologyLayer)}, state)


def _taken(state: dict[str, Tensor], name: str, layer: TopologyLayer) -> SavedLayer:
    """A layer, whose tensors in `state` are taken out."""
    quantized = isinstance(layer, QuantizedLayer)
    own = () if quantized else ("weight", "mask") if isinstance(layer, MaskedLayer) else ("values",)
    for part in own:
        if state.pop(tensor_name(name, part), None) is None:
            raise TypeError(f"layer {name!r} has no {part!r} in its state_dict: it is parametrized; make that permanent first")
    inside = tuple(tensor_name(name, part) for part in ("rounding.", "input_rounding.")) if quantized else ()
    for part in [part for part in state if part.startswith(inside) and inside]:
        del state[part]
    for part in TOPOLOGY:
        state.pop(tensor_name(name, part), None)
    module, arguments = described(layer)
    if not module:
        raise TypeError(f"layer {name!r} ({type(layer).__name__}) stands for no layer of torch that a file can name")
    arguments = {**arguments, "bias": tensor_name(name, "bias") in state}
    values = layer.of_connections(layer.parameter).detach().cpu().clone()
    acting = None if layer.acting is None else layer.of_connections(layer.acting).cpu().clone()
    weights = weights_of(layer).to("cpu") if isinstance(layer, QuantizedLayer) else None
    return SavedLayer(module, arguments, str(layer.pattern), layer.topology.to("cpu"), values, acting, weights)


def _copied(name: str, tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
        what = type(tensor).__name__ if not isinstance(tensor, Tensor) else f"a tensor on {tensor.device} of layout {tensor.layout}"
        raise TypeError(f"a file holds dense tensors with values, but {name!r} of the state_dict is {what}; take it out of the model")
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
