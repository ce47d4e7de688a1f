"""What do the structures of kernels hold that are the same for every type of number: windows, positions of a kernel, a step in words?"""

from __future__ import annotations

from math import prod

from .errors import NoC
from .network import Cell, Convolution, Copy, Function, Linear, Pair, Place, Pool, Recurrent, Softmax, Step, Transpose, Window

MOST_POSITIONS = 65_535


def said(step: Step) -> str:
    """A step in words: what, and from which shape to which."""
    shapes = f"{_shape(step.source)} -> {_shape(step.target)}"
    if isinstance(step, Linear):
        return f"linear{_clamped(step)} {shapes}"
    if isinstance(step, Convolution):
        return f"convolution {_times(step.window.kernel)}{_clamped(step)} {shapes}"
    if isinstance(step, Pool):
        return f"{'mean' if step.mean else 'max'} pool {_times(step.window.kernel)} {shapes}"
    if isinstance(step, Recurrent):
        return f"{step.mode} {shapes}"
    if isinstance(step, Cell):
        return f"{step.mode} cell {shapes}"
    kinds = {Softmax: "softmax", Transpose: "transpose", Copy: "copy"}
    what = step.kind if isinstance(step, (Function, Pair)) else kinds[type(step)]
    return f"{what} {shapes}"


def taps(window: Window) -> list[str]:
    """A line for each position of the kernel: which outputs see the image there, and the first number that they read.

    Raises:
        NoC: if the image is larger than 16 bits count.
    """
    if max(prod(window.size), prod(window.output)) > MOST_POSITIONS:
        raise NoC(f"images of {window.size[0]} x {window.size[1]}: at most {MOST_POSITIONS:,} positions are counted")
    lines = []
    for y in range(window.kernel[0]):
        for x in range(window.kernel[1]):
            (top, bottom), (left, right) = window.reach(0, y), window.reach(1, x)
            row = top * window.stride[0] + y * window.dilation[0] - window.padding[0]
            column = left * window.stride[1] + x * window.dilation[1] - window.padding[1]
            start = row * window.size[1] + column if bottom and right else 0
            lines.append(f"{{{top}, {bottom}, {left}, {right}, {start}}}")
    return lines


def convolution_fields(step: Convolution) -> list[str]:
    """What comes after the matrix and the positions in the structure of a convolution."""
    window = step.window
    numbers = [
        window.taps,
        window.size[0] * window.size[1],
        window.output[0] * window.output[1],
        window.output[1],
        window.stride[0] * window.size[1],
        window.stride[1],
        step.matrix.rows // window.groups,
        window.channels // window.groups,
    ]
    return [str(number) for number in numbers]


def pool_fields(step: Pool) -> list[str]:
    """The structure of a pool."""
    window = step.window
    divisor = window.taps if step.with_padding else 0
    pairs = (window.size, window.output, window.kernel, window.stride, window.dilation, window.padding)
    return [str(number) for number in (window.channels, *(one for pair in pairs for one in pair), divisor)]


def _shape(place: Place) -> str:
    return _times(place.shape)


def _times(extents: tuple[int, ...]) -> str:
    return " x ".join(map(str, extents)) or "1"


def _clamped(step: Linear | Convolution) -> str:
    known = {(0.0, float("inf")): " + ReLU", (0.0, 6.0): " + ReLU6", (float("-inf"), float("inf")): ""}
    low, high = step.matrix.low, step.matrix.high
    return known.get((low, high), f" + clamp to [{low:g}, {high:g}]")
