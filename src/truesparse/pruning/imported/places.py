"""Where in a model does each tensor of a source belong? By name; or, of sources with other names, by order and shapes, which is said."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ...common.shown import listed
from .source import Source


def placed(model: nn.Module, source: Source, names: Mapping[str, str]) -> dict[Tensor, Tensor]:
    """{parameter or buffer of the model: marked tensor in its shape, dtype and device}

    Args:
        names: {name in the model: name in the source}, of tensors or of modules.

    Raises:
        ValueError: if a tensor of the source has no place, one of the model gets nothing, or both differ in shape, or the model's dtype
            cannot hold the values.

    Warns:
        UserWarning: if order and shapes decide.
    """
    targets = {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}
    owners = {f"{name}." if name else "": module for name, module in model.named_modules()}
    _refuse_unmatched(names, targets, source)
    found = {name: own for name in targets if (own := _renamed(name, names)) in source.tensors}
    if source.foreign:
        by_order = _by_order(targets, found, source)
        if by_order:
            _warn(by_order)
        found |= by_order
    _check_all(targets, found, source)
    result: dict[Tensor, Tensor] = {}
    for name, own in found.items():
        owner = owners[name[: name.rfind(".") + 1]]
        if own in source.linear and type(owner) is not nn.Linear:
            raise ValueError(f"{own!r} of the source is the matrix of a linear layer, and {name!r} is that of a {type(owner).__name__}")
        if own in source.kernels and isinstance(owner, _ConvTransposeNd):
            raise ValueError(
                f"{name!r} is of a transposed convolution, whose kernels this kind of source may flip: put {own!r} into a state_dict "
                "as torch has it, and pass that"
            )
        result[targets[name]] = _fitted(name, targets[name], own, source.tensors[own])
    return result


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for start in sorted(names, key=len, reverse=True):
        if name == start or name.startswith(f"{start}.") or not start:
            return (names[start] + name[len(start) :]) if start else f"{names[start]}.{name}"
    return name


def _refuse_unmatched(names: Mapping[str, str], targets: Mapping[str, Tensor], source: Source) -> None:
    for mine, theirs in names.items():
        for name, there, whose in ((mine, targets, "the model"), (theirs, source.tensors, "the source")):
            if name and not any(one == name or one.startswith(f"{name}.") for one in there):
                raise ValueError(f"names says {name!r}, which matches nothing of {whose}; there are: {listed(there)}")


def _by_order(targets: Mapping[str, Tensor], found: Mapping[str, str], source: Source) -> dict[str, str]:
    """{name in the model: name in the source} of layers no tensor of which has a place: each takes the first of its shapes."""
    taken = set(found.values())
    left = {layer: parts for layer, parts in source.layers().items() if not any(f"{layer}.{leaf}" in taken for leaf in parts)}
    wanted: dict[str, dict[str, Tensor]] = {}
    for name, tensor in targets.items():
        if tensor.is_floating_point():
            layer, _, leaf = name.rpartition(".")
            wanted.setdefault(layer, {})[leaf] = tensor
    result: dict[str, str] = {}
    for layer, parts in wanted.items():
        if any(_named(layer, leaf) in found for leaf in parts):
            continue
        shapes = {leaf: tensor.shape for leaf, tensor in parts.items()}
        first = next((one for one, own in left.items() if {leaf: tensor.shape for leaf, tensor in own.items()} == shapes), None)
        if first is not None:
            result |= {_named(layer, leaf): _named(first, leaf) for leaf in parts}
            del left[first]
    return result


def _named(layer: str, leaf: str) -> str:
    return f"{layer}.{leaf}" if layer else leaf


def _warn(by_order: Mapping[str, str]) -> None:
    said = ", ".join(f"{name!r} is {own!r}" for name, own in list(by_order.items())[:3])
    warnings.warn(
        f"names of the source say nothing of {len(by_order)} tensors of this model, so order and shapes decided: {said}"
        f"{', ...' if len(by_order) > 3 else ''}. Compare what both compute, or pass names={{name in the model: name in the source}}",
        stacklevel=4,
    )


def _check_all(targets: Mapping[str, Tensor], found: Mapping[str, str], source: Source) -> None:
    got = {targets[name] for name in found}
    missing = [name for name, tensor in targets.items() if tensor not in got and tensor.is_floating_point()]
    unused = sorted(set(source.tensors) - set(found.values()) - source.may_be_left)
    if unused or missing:
        said = [f"{listed(unused)} of the source match nothing of the model"] if unused else []
        said += [f"the source has nothing for {listed(missing)}"] if missing else []
        raise ValueError(
            f"{', and '.join(said)}: pass names={{name in the model: name in the source}} where they only differ in names, "
            "or a state with all tensors, as {**model.state_dict(), **state}"
        )


def _fitted(name: str, target: Tensor, own: str, tensor: Tensor) -> Tensor:
    shape = tuple(target.shape)
    if tuple(tensor.shape) != shape and tuple(tensor.shape) != (*shape[:1], prod(shape[1:])):
        raise ValueError(f"{own!r} of the source has the shape {tuple(tensor.shape)}, and {name!r} of the model {shape}")
    cast = tensor.to(target.dtype)
    if not torch.allclose(cast.to(tensor.dtype), tensor, rtol=0, atol=0, equal_nan=True):
        raise ValueError(
            f"{own!r} of the source is {tensor.dtype} and {name!r} of the model {target.dtype}, which cannot hold its values: "
            f"convert the model with .to({tensor.dtype})"
        )
    return cast.to(target.device).view(shape)
