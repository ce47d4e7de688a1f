"""What is left to do where a model is no graph? Each of its layers is taken by itself, and everything else stays the Python it is."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx, nn

from ..common.hooks import users_on
from .graph.example import Example, call, inputs_of
from .graph.layers import PACKED
from .graph.simplify import Simplified, change
from .graph.trace import copied


def as_it_is(model: nn.Module) -> Simplified:
    """A copy of a model that is no graph: a whole, of which nothing is known."""
    return Simplified(copied(model), (), ("",))


def layers_in_place(simplified: Simplified, example: Example) -> Simplified:
    """The same, in which layers inside of modules that are called as wholes count too: what computes the same may take their places.

    Those are the layers that are called with the example, except inside modules of torch.nn, which read the weights of their parts,
    where a user's hook is on the layer, and where more than an input is passed to it (`output_size`).
    """
    module = simplified.module
    found = {name: list(own_layers(module.get_submodule(name), name)) for name in simplified.whole}
    called, otherwise = set[nn.Module](), set[nn.Module]()
    layers = {layer: name for pairs in found.values() for name, layer in pairs}

    def note(layer: nn.Module, given: tuple[object, ...], named: dict[str, object], result: object) -> None:
        (called if len(given) == 1 and not named else otherwise).add(layer)

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            module(*inputs_of(example)) if isinstance(module, fx.GraphModule) else call(module, example)
    finally:
        for handle in handles:
            handle.remove()
    changes = tuple(change(name, [layer], layer) for layer, name in layers.items() if layer in called - otherwise)
    named = {one.name for one in changes}
    whole: list[str] = []
    for name, pairs in found.items():
        parts = module.get_submodule(name).named_modules(prefix=name)
        others = [part for part, layer in parts if isinstance(layer, PACKED) and part not in named]
        whole += others if not name or any(one in named for one, _ in pairs) else [name]
    return Simplified(module, (*simplified.layers, *changes), tuple(whole))


def own_layers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """(name, layer) of each that something else may stand for: not inside modules of torch.nn, nor with a user's hook on it."""
    if type(module) in PACKED:
        if not users_on(module):
            yield name, module
    elif not type(module).__module__.startswith("torch.nn.") or isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
        for child_name, child in module.named_children():
            yield from own_layers(child, f"{name}.{child_name}" if name else child_name)
