"""Which numbers of a layer does a C program hold? Its connections row by row, and how its kernel slides."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..inference.graph.fold import scale_and_shift
from ..inference.graph.layers import Weights, weights_of
from ..nn.conv import padding_of
from ..topology import Topology, geometry
from .errors import NoC
from .network import Floats, Matrix, Place, Window

Pair = tuple[int, int]


def matrix_of(weights: Weights) -> Matrix:
    """The same weights as arrays."""
    rows, columns = weights.topology.shape
    bias = torch.zeros(rows, device="cpu") if weights.bias is None else weights.bias
    return Matrix(
        rows,
        columns,
        weights.topology.fan_in.cpu().numpy().astype(np.int64),
        weights.topology.indices.cpu().numpy().astype(np.int64),
        _floats(weights.values),
        _floats(bias),
    )


def linear_of(layer: nn.Module) -> Matrix:
    """Of a linear layer."""
    return matrix_of(weights_of(layer))


def convolution_of(layer: nn.Module, source: Place, output: tuple[int, ...]) -> tuple[Matrix, Window]:
    """Of a convolution of images or sequences.

    Args:
        layer: sparse, masked or dense.
        source: its input.
        output: shape of its output.

    Raises:
        NoC: if it pads with something else than zeros.
    """
    weights = weights_of(layer)
    g = weights.geometry
    assert isinstance(g, geometry.Convolution)
    own, before = padding_of(layer)
    if any(before) and layer.padding_mode != "zeros":
        raise NoC(f"it pads with {layer.padding_mode}, and here there are only zeros: padding_mode='zeros'")
    first = before[0::2][::-1]  # F.pad begins with the last dimension, and each has (before, after)
    low = tuple(one + more for one, more in zip(own, first, strict=True))
    window = window_of(source.shape, output, g.kernel, g.stride, low, g.dilation, g.groups)
    if window.kernel == window.stride == (1, 1) and window.padding == (0, 0):  # every number by itself: one row of them
        plane = window.size[0] * window.size[1]
        window = Window(window.channels, (1, plane), (1, plane), (1, 1), (1, 1), (0, 0), (1, 1), g.groups)
    return matrix_of(weights), window


def window_of(
    shape: tuple[int, ...],
    output: tuple[int, ...],
    kernel: Any,
    stride: Any,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Window:
    """A window over [channels, length] or [channels, height, width]; settings are numbers or one for each dimension."""
    n = len(shape) - 1

    def two(given: Any, usual: int) -> Pair:
        each = tuple(given) if isinstance(given, (tuple, list)) else (given,) * n
        return (usual, int(each[0])) if n == 1 else (int(each[0]), int(each[1]))

    size, out = two(shape[1:], 1), two(output[1:], 1)
    size, out = ((1, size[1]), (1, out[1])) if n == 1 else (size, out)
    return Window(shape[0], size, out, two(kernel, 1), two(stride, 1), two(padding, 0), two(dilation, 1), groups)


def scale_of(norm: Any) -> tuple[Floats, Floats]:
    """What a fixed BatchNorm multiplies each channel with, and what it adds then."""
    scale, shift = scale_and_shift(norm)
    return _floats(scale), _floats(shift)


def diagonal(scale: Floats, shift: Floats) -> Matrix:
    """The matrix of a convolution, a group for each channel, that multiplies and adds."""
    topology = Topology.from_mask(torch.ones(len(scale), 1, dtype=torch.bool, device="cpu"))
    ones = topology.fan_in.numpy().astype(np.int64)
    return Matrix(len(scale), 1, ones, topology.indices.numpy().astype(np.int64), scale, shift)


def _floats(values: Tensor) -> Floats:
    return values.detach().cpu().numpy().astype(np.float32)
