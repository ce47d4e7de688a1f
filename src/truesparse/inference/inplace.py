"""What is left to do for a model that is no graph? Each of its layers is taken by itself, and everything else stays the Python it is."""

from __future__ import annotations

import torch
from torch import nn

from .graph.layers import LAYERS
from .graph.simplify import Simplified, change
from .graph.trace import Example, call, copied


def layers_in_place(model: nn.Module, example: Example) -> Simplified:
    """A copy of `model` and those of its layers that may be replaced by something that computes the same.

    Those are the layers that are called with the example, except inside modules of torch.nn, which read the weights of their parts, and
    where something is hooked to a layer.

    Args:
        model: any model, which is left as it is.
        example: its inputs.
    """
    copy = copied(model)
    called: set[nn.Module] = set()
    found = {layer: name for name, layer in _own_layers(copy)}
    handles = [layer.register_forward_hook(lambda layer, given, result: called.add(layer)) for layer in found]
    try:
        with torch.no_grad():
            call(copy, example)
    finally:
        for handle in handles:
            handle.remove()
    changes = tuple(change(name, [layer], layer) for layer, name in found.items() if layer in called)
    named = {one.name for one in changes}
    whole = (name for name, layer in copy.named_modules() if isinstance(layer, LAYERS) and name not in named)
    return Simplified(copy, changes, tuple(whole))


def _own_layers(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    found = []
    for name, child in module.named_children():
        hooked = child._forward_hooks or child._forward_pre_hooks
        if type(child) in LAYERS and not hooked:
            found.append((prefix + name, child))
        elif not type(child).__module__.startswith("torch.nn.") or isinstance(child, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            found += _own_layers(child, f"{prefix}{name}.")
    return found
