"""Which layer is it? The module of torch that a layer stands for, and the arguments that make it, in JSON's words and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

from torch import nn

from ..nn.kinds import kind_of
from ..topology.patterns import PATTERNS, Pattern
from ..topology.topology import LARGEST_COUNT, Topology

LINEAR = ("in_features", "out_features")
CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
TRANSPOSED = (*CONVOLUTION, "output_padding")
CONVOLUTIONS = {f"Conv{dimensions}d": dimensions for dimensions in (1, 2, 3)}
TRANSPOSED_CONVOLUTIONS = {f"ConvTranspose{dimensions}d": dimensions for dimensions in (1, 2, 3)}
ARGUMENTS = {"Linear": LINEAR} | dict.fromkeys(CONVOLUTIONS, CONVOLUTION) | dict.fromkeys(TRANSPOSED_CONVOLUTIONS, TRANSPOSED)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

Layer = tuple[str, dict[str, Any]]  # (name of the module in torch.nn, its arguments without the bias)


def described(module: nn.Module) -> Layer:
    """The layer of torch that `module`, sparse, masked or dense, stands for; ("", {}) if there is none."""
    kind = kind_of(module)
    if kind is None:
        return "", {}
    name = kind.dense.__name__
    return name, {argument: _plain(getattr(module, argument)) for argument in ARGUMENTS[name]}


def weight_shape(module: str, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of the dense weight.

    Raises:
        ValueError: if there is no such layer: the module, the names of the arguments, or one of their values.
    """
    if module not in ARGUMENTS:
        raise ValueError(f"expected one of the modules {', '.join(ARGUMENTS)}, got {module!r}")
    expected = {*ARGUMENTS[module], "bias"}
    if arguments.keys() != expected:
        raise ValueError(f"{module} takes {', '.join(sorted(expected))}; got {listed(arguments)}")
    _check(type(arguments["bias"]) is bool, "bias", arguments)
    if module == "Linear":
        shape = (_count(arguments, "out_features", 0), _count(arguments, "in_features", 0))
    else:
        shape = _convolution_shape(module, arguments)
    if prod(shape[1:]) > LARGEST_COUNT:
        raise ValueError(f"rows and columns lie in [0, {LARGEST_COUNT}], got a weight of shape {shape}")
    return shape


def bias_length(module: str, arguments: Mapping[str, Any]) -> int:
    """How many numbers a bias has: one for each feature or channel of the output.

    Args:
        module, arguments: that `weight_shape` takes.
    """
    return arguments["out_features" if module == "Linear" else "out_channels"]


def stated_pattern(text: str) -> Pattern | None:
    """The pattern that `str(pattern)` has written; None if it is none of this package.

    Raises:
        ValueError: if it has settings that it cannot have.
    """
    kinds = {kind.__name__: kind for kind in PATTERNS.values()}
    said = re.fullmatch(r"(\w{1,99})\(((?:\w{1,99}=\d{1,9}(?:, )?){0,9})\)", text, re.ASCII)
    if said is None or said[1] not in kinds:
        return None  # a user's own: nothing here knows what it means
    settings = dict(pair.split("=") for pair in said[2].split(", ") if pair)
    try:
        return kinds[said[1]](**{name: int(value) for name, value in settings.items()})
    except TypeError as error:
        raise ValueError(f"there is no pattern {text}: {error}") from error


def check_pattern(text: str, topology: Topology) -> None:
    """
    Raises:
        ValueError: if `text` is one of the patterns of this package, and `topology` does not obey it.
    """
    pattern = stated_pattern(text)
    if pattern is None:
        return
    # Before the check, whose work is in proportion to the groups: this bounds their number by that of the connections.
    if pattern.round(topology.shape, topology.nnz) != topology.nnz:
        raise ValueError(f"{text} cannot have {topology.nnz} connections in shape {topology.shape}")
    pattern.check(topology)


def listed(names: Iterable[str]) -> str:
    """Names that a file gave, for an error: no longer than can be read."""
    return f"{', '.join(sorted(map(repr, names))):.200}"


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _check(fits: bool, name: str, arguments: Mapping[str, Any]) -> None:
    if not fits:
        raise ValueError(f"there is no layer with {name}={arguments[name]!r:.100}")


def _count(arguments: Mapping[str, Any], name: str, least: int) -> int:
    value = arguments[name]
    _check(type(value) is int and least <= value <= LARGEST_COUNT, name, arguments)
    return value


def _convolution_shape(module: str, arguments: Mapping[str, Any]) -> tuple[int, ...]:
    inputs, outputs, groups = (_count(arguments, *least) for least in (("in_channels", 0), ("out_channels", 0), ("groups", 1)))
    _check(inputs % groups == 0 and outputs % groups == 0, "groups", arguments)
    dimensions = CONVOLUTIONS.get(module) or TRANSPOSED_CONVOLUTIONS[module]
    kernel, stride, dilation = (_extents(arguments, name, dimensions, 1) for name in ("kernel_size", "stride", "dilation"))
    _check(arguments["padding_mode"] in PADDING_MODES, "padding_mode", arguments)
    if module in CONVOLUTIONS:
        if arguments["padding"] not in ("same", "valid"):
            _extents(arguments, "padding", dimensions, 0)
        return outputs, inputs // groups, *kernel
    _check(arguments["padding_mode"] == "zeros", "padding_mode", arguments)
    _extents(arguments, "padding", dimensions, 0)
    more = _extents(arguments, "output_padding", dimensions, 0)
    _check(all(extent < max(pair) for extent, *pair in zip(more, stride, dilation, strict=True)), "output_padding", arguments)
    return inputs, outputs // groups, *kernel


def _extents(arguments: Mapping[str, Any], name: str, dimensions: int, least: int) -> tuple[int, ...]:
    extents = arguments[name]
    _check(type(extents) is list and len(extents) == dimensions, name, arguments)
    _check(all(type(extent) is int and least <= extent <= LARGEST_COUNT for extent in extents), name, arguments)
    return tuple(extents)
