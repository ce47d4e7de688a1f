"""Which batch norms can go into the sparse layer before them? Whole numbers have no place for a scale and a shift between layers."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..inference.graph.fold import fold_norms, scale_and_shift
from ..inference.graph.trace import Example, trace
from ..nn import SparseLayer


def foldable(model: nn.Module, layers: Collection[str], example: Example) -> dict[str, str]:
    """{name of a sparse layer: name of the batch norm that can become part of it}, for the norms with their running statistics.

    Warns:
        UserWarning: if there are batch norms and the model cannot be traced, which tells who reads what.
    """
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return {}
    try:
        traced = trace(model, example)
    except TypeError as error:
        warnings.warn(f"batch norms stay as they are, in float: {error}", stacklevel=4)
        return {}
    calls = Counter(str(node.target) for node in traced.graph.find_nodes(op="call_module"))
    _, folded = fold_norms(traced)
    return {layer: norm for layer, norm in folded.items() if layer in layers and calls[norm] == 1 and _is_norm(model, norm)}


def fold(model: nn.Module, norms: Mapping[str, str]) -> None:
    """In place: each layer computes what it and its norm did in eval mode, and an `nn.Identity` takes the place of the norm."""
    for name, norm in norms.items():
        layer, module = model.get_submodule(name), model.get_submodule(norm)
        assert isinstance(layer, SparseLayer)
        assert isinstance(module, _BatchNorm)
        scale, shift = scale_and_shift(module)
        with torch.no_grad():
            layer.values.copy_(layer.values.double() * scale[layer.topology.rows])
            bias = shift if layer.bias is None else layer.bias.double() * scale + shift
            if layer.bias is None:
                layer.bias = nn.Parameter(bias.to(layer.values))
            else:
                layer.bias.copy_(bias)
        for place in [place for place, one in model.named_modules(remove_duplicate=False) if one is module]:
            model.set_submodule(place, nn.Identity().train(module.training))


def _is_norm(model: nn.Module, name: str) -> bool:
    return isinstance(dict(model.named_modules(remove_duplicate=False)).get(name), _BatchNorm)
