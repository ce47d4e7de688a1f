"""What does a network hold while it trains? Counted on the tensors at hand, not by a formula."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..nn import topology_layers


def live_bytes(model: nn.Module, optimizer: Optimizer) -> dict[str, int]:
    """Bytes of the storages that now hold weights, gradients, optimizer state and topology (or mask, and kernel plans), each once.

    Weights are all parameters, and buffers that describe no topology.
    """
    layers = topology_layers(model).values()
    describing = [array for layer in layers for array in (layer.topology.indptr, layer.topology.indices)]
    describing += [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    kinds: list[tuple[str, Iterable[Tensor]]] = [
        ("topology", describing),
        ("weights", [*model.parameters(), *model.buffers()]),
        ("gradients", [parameter.grad for parameter in model.parameters() if parameter.grad is not None]),
        ("optimizer", _tensors(optimizer.state)),
    ]
    seen: set[tuple[torch.device, int]] = set()
    counted = {"weights": 0, "gradients": 0, "optimizer": 0, "topology": sum(layer.plan_nbytes() for layer in layers)}
    for kind, tensors in kinds:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if (tensor.device, storage.data_ptr()) not in seen:
                seen.add((tensor.device, storage.data_ptr()))
                counted[kind] += storage.nbytes()
    return counted


def connections(model: nn.Module) -> int:
    """Weights that exist: connections of sparse layers, and all entries of other parameters of two or more dimensions."""
    layers = topology_layers(model).values()
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    dense = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1 and id(parameter) not in inside)
    return sum(layer.topology.nnz for layer in layers) + dense


def _tensors(nested: Any) -> list[Tensor]:
    if isinstance(nested, Tensor):
        return [nested]
    if isinstance(nested, Mapping):
        nested = list(nested.values())
    return [tensor for item in nested for tensor in _tensors(item)] if isinstance(nested, (list, tuple)) else []
