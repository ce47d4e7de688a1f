"""What is a network to a C program? Numbered buffers, and a list of steps that each write one of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, prod

import numpy as np
from numpy.typing import NDArray

from .scale import Scale

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Place:
    """Where one tensor of one sample lies: numbers of a buffer, one after the other.

    Args:
        buffer: its number; 0 is the input.
        shape: without the batch.
        offset: of its first number.
    """

    buffer: int
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Stated:
    """How `truesparse.quantize` has rounded a layer.

    Args:
        scales: of each row, of which its values are whole multiples, -127 to 127, [rows]; None: the values are entries of a codebook.
        source: how the layer rounds what it reads; None: not at all.
        target: how int8 can hold what it gives, if nothing says otherwise; None likewise.
    """

    scales: NDArray[np.float64] | None
    source: Scale | None = None
    target: Scale | None = None


@dataclass(frozen=True, eq=False)
class Matrix:
    """The weights of a layer.

    Args:
        rows, columns: of the matrix.
        fan_in: connections of each row, [rows].
        indices: column of each connection, row by row, ascending within each, [nnz].
        values: [nnz].
        bias: [rows].
        low, high: what comes out is clamped to: a ReLU is 0 and infinity.
        stated: how it is rounded already; None: it is not.
    """

    rows: int
    columns: int
    fan_in: NDArray[np.int64]
    indices: NDArray[np.int64]
    values: Floats
    bias: Floats
    low: float = -inf
    high: float = inf
    stated: Stated | None = None

    @property
    def nnz(self) -> int:
        return len(self.values)

    def normed(self, scale: Floats, shift: Floats) -> Matrix:
        """With a norm after it, which multiplies each row and adds to it, [rows]."""
        stated = self.stated
        if stated is not None:
            times = np.where(scale == 0, 1.0, np.abs(scale.astype(np.float64)))  # a row of zeros has any scale
            scales = None if stated.scales is None else stated.scales * times
            stated = Stated(scales, stated.source)  # what comes out has other ends now
        return replace(self, values=self.values * scale[self.row_of_each], bias=self.bias * scale + shift, stated=stated)

    @property
    def row_of_each(self) -> NDArray[np.int64]:
        """[nnz]"""
        return np.repeat(np.arange(self.rows), self.fan_in)

    @property
    def dense(self) -> Floats:
        """[rows, columns]"""
        dense = np.zeros((self.rows, self.columns), np.float32)
        dense[self.row_of_each, self.indices] = self.values
        return dense


@dataclass(frozen=True)
class Window:
    """How a kernel slides over images of one sample; sequences are images of height 1. Pairs are (vertical, horizontal).

    Args:
        channels, size: of the input.
        output: height and width of the output.
        padding: zeros above and left; below and right there are as many as the output needs.
    """

    channels: int
    size: tuple[int, int]
    output: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int = 1

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return prod(self.kernel)

    def reach(self, axis: int, tap: int) -> tuple[int, int]:
        """(first, end) of the outputs along an axis whose input at that position of the kernel is inside the image."""
        at = tap * self.dilation[axis] - self.padding[axis]
        first = max(0, -(at // self.stride[axis]))
        end = min(self.output[axis], (self.size[axis] - 1 - at) // self.stride[axis] + 1)
        return (first, end) if first < end else (0, 0)

    def outputs_of_each(self) -> NDArray[np.int64]:
        """Products that a connection at each position of the kernel takes part in, [taps]."""
        along = [np.array([end - first for first, end in (self.reach(a, t) for t in range(self.kernel[a]))]) for a in (0, 1)]
        return np.outer(*along).ravel()


@dataclass(frozen=True, eq=False)
class Linear:
    """y = W x + b for each of `samples` rows."""

    name: str
    source: Place
    target: Place
    matrix: Matrix
    samples: int = 1


@dataclass(frozen=True, eq=False)
class Convolution:
    """The columns of its matrix are (channel of the group, position of the kernel)."""

    name: str
    source: Place
    target: Place
    matrix: Matrix
    window: Window


@dataclass(frozen=True)
class Pool:
    """The largest of each window, or the mean.

    Args:
        mean: of what is inside the image, or also of the zeros around it (`with_padding`).
    """

    name: str
    source: Place
    target: Place
    window: Window
    mean: bool
    with_padding: bool = False


@dataclass(frozen=True)
class Function:
    """The same function of each number: "clamp" to `settings` (low, high), "leaky" with a slope, or one without settings."""

    name: str
    source: Place
    target: Place
    kind: str
    settings: tuple[float, ...] = ()


@dataclass(frozen=True)
class Pair:
    """The sum ("add") or product ("multiply") of two tensors of one shape."""

    name: str
    source: Place
    other: Place
    target: Place
    kind: str


@dataclass(frozen=True)
class Softmax:
    """Over the last dimension."""

    name: str
    source: Place
    target: Place


@dataclass(frozen=True)
class Transpose:
    """[rows, columns] becomes [columns, rows]."""

    name: str
    source: Place
    target: Place


@dataclass(frozen=True)
class Copy:
    """Into a part of a larger tensor, or to the output."""

    name: str
    source: Place
    target: Place


@dataclass(frozen=True, eq=False)
class Recurrent:
    """A GRU, LSTM or RNN of one layer and direction over [steps, inputs], from a state of zeros.

    Args:
        mode: "GRU", "LSTM", "RNN_TANH" or "RNN_RELU".
        inputs, state: the matrices that multiply the input and the state, with the rows of all gates in torch's order.
        every: whether the target has the states of all steps, [steps, hidden], or the last, [hidden].
    """

    name: str
    source: Place
    target: Place
    mode: str
    inputs: Matrix
    state: Matrix
    every: bool

    @property
    def steps(self) -> int:
        return self.source.shape[0]

    @property
    def hidden(self) -> int:
        return self.state.columns


@dataclass(frozen=True, eq=False)
class Cell:
    """One step of a GRU, LSTM or RNN, from a state that is handed in.

    Args:
        source: [inputs].
        before: the state, [hidden], and of an LSTM the cell; nothing: zeros.
        target: the next state, [hidden]; of an LSTM with the cell after it, [2, hidden].
        mode, inputs, state: as of `Recurrent`.
    """

    name: str
    source: Place
    before: tuple[Place, ...]
    target: Place
    mode: str
    inputs: Matrix
    state: Matrix

    @property
    def hidden(self) -> int:
        return self.state.columns


Step = Linear | Convolution | Pool | Function | Pair | Softmax | Transpose | Copy | Recurrent | Cell


@dataclass(frozen=True)
class Network:
    """All that a C program does with one sample.

    Args:
        steps: in their order.
        input, output: places in buffers of their own.
    """

    steps: tuple[Step, ...]
    input: Place
    output: Place


def sources_of(step: Step) -> tuple[Place, ...]:
    """What a step reads."""
    if isinstance(step, Cell):
        return step.source, *step.before
    return (step.source, step.other) if isinstance(step, Pair) else (step.source,)


def matrices_of(step: Step) -> tuple[Matrix, ...]:
    """The weights of a step."""
    if isinstance(step, (Recurrent, Cell)):
        return step.inputs, step.state
    return (step.matrix,) if isinstance(step, (Linear, Convolution)) else ()


def multiply_adds(step: Step) -> int:
    """Products of a weight and a number that exist, in one call."""
    if isinstance(step, Convolution):
        return int(step.window.outputs_of_each()[step.matrix.indices % step.window.taps].sum())
    return _times(step) * sum(one.nnz for one in matrices_of(step))


def dense_multiply_adds(step: Step) -> int:
    """The same if every weight existed."""
    if isinstance(step, Convolution):
        channels = step.window.channels // step.window.groups
        return int(step.window.outputs_of_each().sum()) * channels * step.matrix.rows
    return _times(step) * sum(one.rows * one.columns for one in matrices_of(step))


def _times(step: Step) -> int:
    """How often a call multiplies with its matrices."""
    return step.steps if isinstance(step, Recurrent) else step.samples if isinstance(step, Linear) else 1
