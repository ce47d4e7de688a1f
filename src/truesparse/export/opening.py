"""How do layers of a file that are parts of an opened module come into a model where that module is dense? Opened, filled, closed again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ..nn.opened import Opened, named_opened, opened_kind, opened_one, tied_tables
from ..nn.wrapped import plain_name
from .header import tensor_name


def opened_for(model: nn.Module, layers: Iterable[str]) -> dict[nn.Module, Opened]:
    """{dense module inside which the file has layers: the same, opened}; the model is left as it is."""
    layers, found, tied = list(layers), dict[nn.Module, Opened](), tied_tables(model.modules())
    for name, module in model.named_modules(remove_duplicate=False):
        kind, inside = opened_kind(type(module)), tensor_name(plain_name(model, name), "")
        if kind is not None and any(layer.startswith(inside) for layer in layers):
            found[module] = opened_one(kind, module, tied)
    return found


def opened_modules(model: nn.Module, opened: Mapping[nn.Module, Opened]) -> dict[str, nn.Module]:
    """Every module by the name that it has when nothing is wrapped, with those that are opened in their places."""
    return {plain_name(model, name): module for name, module in named_opened(model, opened)}


def opened_state(model: nn.Module, opened: Mapping[nn.Module, Opened]) -> dict[str, Tensor]:
    """The `state_dict` of the model, by such names, if it were opened there."""
    state = {plain_name(model, name): tensor for name, tensor in model.state_dict().items()}
    for inside, module in _places(model, opened):
        state = {name: tensor for name, tensor in state.items() if not name.startswith(inside)}
        state |= {inside + name: tensor for name, tensor in opened[module].state_dict().items()}
    return state


def closed_state(model: nn.Module, opened: Mapping[nn.Module, Opened], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state for the opened model as one for the model that is dense there."""
    closed = dict(state)
    for inside, module in _places(model, opened):
        own = {name.removeprefix(inside): closed.pop(name) for name in state if name.startswith(inside)}
        opened[module].load_state_dict(own)
        closed |= {inside + name: tensor for name, tensor in opened[module].closed().state_dict().items()}
    return closed


def _places(model: nn.Module, opened: Mapping[nn.Module, Opened]) -> list[tuple[str, nn.Module]]:
    """(what the names inside begin with, module) of each, under all names that it has."""
    return [
        (tensor_name(plain_name(model, name), ""), module)
        for name, module in model.named_modules(remove_duplicate=False)
        if module in opened
    ]
