"""What does a step compute? In float32 with torch, a batch at a time: to see what values come, and to check the reading of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.opened.cells import CELLS, has_memory
from .network import (
    Cell,
    Convolution,
    Copy,
    Function,
    Linear,
    Matrix,
    Network,
    Pair,
    Place,
    Pool,
    Recurrent,
    Softmax,
    Step,
    Window,
    sources_of,
)

Buffers = dict[int, Tensor]  # [batch, numbers]

FUNCTIONS: Mapping[str, Callable[..., Tensor]] = {
    "clamp": lambda x, low, high: x.clamp(low, high),
    "leaky": F.leaky_relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}


def run(network: Network, x: Tensor) -> Buffers:
    """What all buffers hold at the end, those written in place as if they were not.

    Args:
        x: [batch, ...]
    """
    buffers: Buffers = {0: x.flatten(1)}
    for step in network.steps:
        put(buffers, step.target, computed(step, [take(buffers, place) for place in sources_of(step)]))
    return buffers


def take(buffers: Buffers, place: Place) -> Tensor:
    """[batch, *shape]"""
    return buffers[place.buffer][:, place.offset : place.offset + place.size].unflatten(1, place.shape)


def put(buffers: Buffers, place: Place, y: Tensor) -> None:
    """After what the buffer already holds."""
    before = buffers.get(place.buffer)
    buffers[place.buffer] = y.flatten(1) if before is None else torch.cat([before, y.flatten(1)], 1)


def computed(step: Step, sources: list[Tensor]) -> Tensor:
    """[batch, *shape] of the target."""
    x = sources[0]
    if isinstance(step, Linear):
        y = F.linear(x, torch.from_numpy(step.matrix.dense), torch.from_numpy(step.matrix.bias))
        return y.clamp(step.matrix.low, step.matrix.high)
    if isinstance(step, Convolution):
        return convolved(step, x, torch.from_numpy(step.matrix.bias)).clamp(step.matrix.low, step.matrix.high)
    if isinstance(step, Pool):
        return pooled(step, x)
    if isinstance(step, Function):
        return FUNCTIONS[step.kind](x, *step.settings)
    if isinstance(step, Pair):
        return x + sources[1] if step.kind == "add" else x * sources[1]
    if isinstance(step, Softmax):
        return x.softmax(-1)
    if isinstance(step, Recurrent):
        return _recurrent(step, x)
    if isinstance(step, Cell):
        before = tuple(sources[1:]) or _zeros(step, x)
        return torch.stack(CELLS[step.mode](_product(step.inputs, x), _product(step.state, before[0]), before), 1).view(
            -1, *step.target.shape
        )
    return x if isinstance(step, Copy) else x.transpose(1, 2)


def convolved(step: Convolution, x: Tensor, bias: Tensor | None, fill: float = 0.0) -> Tensor:
    """The convolution in the type of `x`, with `fill` around the images."""
    window, matrix = step.window, step.matrix
    weight = torch.from_numpy(matrix.dense).to(x.dtype).view(matrix.rows, -1, *window.kernel)
    return F.conv2d(padded(window, x, fill), weight, bias, window.stride, 0, window.dilation, window.groups)


def padded(window: Window, x: Tensor, fill: float) -> Tensor:
    """[batch, channels, height, width] that the kernel slides over."""
    images = x.reshape(len(x), window.channels, *window.size)
    amounts: list[int] = []
    for axis in (1, 0):
        whole = (window.output[axis] - 1) * window.stride[axis] + window.dilation[axis] * (window.kernel[axis] - 1) + 1
        amounts += [window.padding[axis], whole - window.padding[axis] - window.size[axis]]
    return F.pad(images, amounts, value=fill)


def pooled(step: Pool, x: Tensor) -> Tensor:
    """The largest, or the mean, of each window."""
    window = step.window
    reached = F.unfold(padded(window, x, 0.0 if step.mean else -torch.inf), window.kernel, window.dilation, 0, window.stride)
    reached = reached.view(len(x), window.channels, window.taps, -1)
    if not step.mean:
        return reached.amax(2)
    if step.with_padding:
        return reached.sum(2) / window.taps
    return reached.sum(2) / counts(window)


def counts(window: Window) -> Tensor:
    """Numbers inside the image that each output of a window sees, [outputs]."""
    ones = torch.ones(1, window.channels, *window.size, device="cpu")
    reached = F.unfold(padded(window, ones, 0.0), window.kernel, window.dilation, 0, window.stride)
    return reached.view(1, window.channels, window.taps, -1).sum(2)[0, 0]


def _recurrent(step: Recurrent, x: Tensor) -> Tensor:
    state, states = _zeros(step, x), []
    for at in range(step.steps):
        state = CELLS[step.mode](_product(step.inputs, x[:, at]), _product(step.state, state[0]), state)
        states.append(state[0])
    return torch.stack(states, 1) if step.every else states[-1]


def _product(matrix: Matrix, x: Tensor) -> Tensor:
    return F.linear(x, torch.from_numpy(matrix.dense), torch.from_numpy(matrix.bias))


def _zeros(step: Recurrent | Cell, x: Tensor) -> tuple[Tensor, ...]:
    """The state before the first step, and the cell."""
    return (x.new_zeros(len(x), step.hidden),) * (2 if has_memory(step.mode) else 1)


def size_of(network: Network) -> dict[int, int]:
    """Numbers in each buffer."""
    sizes = {0: prod(network.input.shape)}
    for step in network.steps:
        sizes[step.target.buffer] = max(sizes.get(step.target.buffer, 0), step.target.offset + step.target.size)
    return sizes
