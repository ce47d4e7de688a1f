"""What dense operation does a sparse layer stand for? A matrix product or a convolution, as an immutable value.

Each is one matrix of connections. Its rows are the outputs of the operation, except where the operation is the transpose of another:
then they are its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .topology import Topology

Pair = tuple[int, int]
Extents = tuple[int, ...]  # one for each dimension that a convolution slides along, the last one last
Side = TypeVar("Side")

CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED_CONVOLUTIONS = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
DIMENSIONS = {1: "length", 2: "height, width", 3: "depth, height, width"}


class _RowsAreOutputs:
    """An operation whose matrix has a row for each feature or channel of the output."""

    def sides(self, y: Side, x: Side) -> tuple[Side, Side]:
        """(what the rows of the matrix belong to, what its columns do)."""
        return y, x

    def output_of_each(self, topology: Topology) -> Tensor:
        """To which feature or channel of the output each connection adds, [nnz] int64."""
        return topology.rows.to(torch.int64)

    def fan_in(self, topology: Topology) -> Tensor:
        """Connections of each feature or channel of the output, [outputs]."""
        return topology.fan_in

    def reach(self, topology: Topology) -> Tensor:
        """Connections that add to one value of each feature or channel of the output, on average, [outputs]."""
        return topology.fan_in


@dataclass(frozen=True)
class Matrix(_RowsAreOutputs):
    """y = x W^T with W [rows, columns], x [..., columns], y [..., rows]."""

    rows: int
    columns: int

    sample_ndim: ClassVar[int] = 1  # dimensions of one sample: (columns,)
    groups: ClassVar[int] = 1
    taps: ClassVar[int] = 1  # columns of each feature of the input

    @property
    def shape(self) -> Pair:
        return self.rows, self.columns

    @property
    def inputs(self) -> int:
        """Features of the input."""
        return self.columns

    @property
    def outputs(self) -> int:
        """Features of the output, each with its own bias."""
        return self.rows

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, as in `nn.Linear`."""
        return self.rows, self.columns

    @property
    def arguments(self) -> str:
        """As `nn.Linear` writes them."""
        return f"in_features={self.columns}, out_features={self.rows}"

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operation with a dense `weight`."""
        return F.linear(x, weight, bias)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the output for an input of that shape, (batch, columns)."""
        return *shape[:-1], self.rows

    def check_input(self, x: Tensor) -> None:
        if x.ndim < 1 or x.shape[-1] != self.columns:
            raise ValueError(f"expected an input of shape (..., {self.columns}), got {tuple(x.shape)}")

    def input_of_each(self, topology: Topology) -> Tensor:
        """Which feature of the input each connection reads, [nnz] int64."""
        return topology.indices.to(torch.int64)


@dataclass(frozen=True)
class Convolution(_RowsAreOutputs):
    """A cross-correlation with zero padding along one to three dimensions, as `F.conv1d`, `F.conv2d` and `F.conv3d`.

    As a matrix its shape is (out_channels, in_channels / groups * positions of the kernel).

    Args:
        in_channels, out_channels: of the input and the output.
        kernel: its extent in each dimension: (height, width) of images.
        stride, padding, dilation: in each dimension; () is the usual 1, 0 and 1.
        groups: parts of the channels that do not see each other.
    """

    in_channels: int
    out_channels: int
    kernel: Extents
    stride: Extents = ()
    padding: Extents = ()
    dilation: Extents = ()
    groups: int = 1

    def __post_init__(self) -> None:
        for name, usual in (("stride", 1), ("padding", 0), ("dilation", 1)):
            object.__setattr__(self, name, getattr(self, name) or (usual,) * len(self.kernel))

    @property
    def sample_ndim(self) -> int:
        """Dimensions of one sample: its channels, and those the kernel slides along."""
        return 1 + len(self.kernel)

    @property
    def shape(self) -> Pair:
        return self.out_channels, self.in_channels // self.groups * self.taps

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.in_channels

    @property
    def outputs(self) -> int:
        """Channels of the output, each with its own bias."""
        return self.out_channels

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return prod(self.kernel)

    @property
    def pointwise(self) -> bool:
        """Whether each pixel is a sample of a matrix."""
        return self.taps == self.groups == 1 and set(self.stride) <= {1} and set(self.padding) <= {0}

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, as in `nn.Conv2d`."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def arguments(self) -> str:
        """As `nn.Conv2d` writes them: those that differ from the defaults."""
        usual = {"padding": (0,) * len(self.kernel), "dilation": (1,) * len(self.kernel), "groups": 1}
        given = [f"kernel_size={self.kernel}", f"stride={self.stride}"]
        given += [f"{name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        return f"{self.in_channels}, {self.out_channels}, {', '.join(given)}"

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operation with a dense `weight`."""
        return CONVOLUTIONS[len(self.kernel)](x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def output_size(self, size: Sequence[int]) -> Extents:
        """(height, width) of the output for an input of that (height, width), and so in one and three dimensions."""
        return tuple(
            (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for extent, kernel, stride, padding, dilation in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the output for an input of that shape, (batch, in_channels, height, width)."""
        return shape[0], self.out_channels, *self.output_size(shape[2:])

    def check_input(self, x: Tensor) -> None:
        size = _checked_size(x, self.in_channels, len(self.kernel))
        if min(self.output_size(size)) < 1:
            raise ValueError(
                f"an input of {' x '.join(map(str, size))} is too small for kernel {self.kernel}, "
                f"padding {self.padding}, dilation {self.dilation}"
            )

    def input_of_each(self, topology: Topology) -> Tensor:
        """Which channel of the input each connection reads, [nnz] int64."""
        channel = topology.indices.to(torch.int64) // self.taps
        if self.groups == 1:
            return channel
        group = topology.rows.to(torch.int64) // (self.out_channels // self.groups)
        return group * (self.in_channels // self.groups) + channel


@dataclass(frozen=True)
class Transposed:
    """The transpose of a convolution, as `F.conv_transpose2d`: its input is shaped as the convolution's output, and the other way round.

    Its matrix is that of the convolution: rows are channels of the input, columns those of the output with the positions of the kernel.

    Args:
        of: the convolution, from the output of this to its input.
        output_padding: how much larger the output is, at the end of each dimension, than the smallest of which `of` could be taken; ()
            is 0.
    """

    of: Convolution
    output_padding: Extents = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "output_padding", self.output_padding or (0,) * len(self.of.kernel))

    @property
    def sample_ndim(self) -> int:
        """Dimensions of one sample: its channels, and those the kernel slides along."""
        return self.of.sample_ndim

    @property
    def shape(self) -> Pair:
        return self.of.shape

    @property
    def in_channels(self) -> int:
        return self.of.out_channels

    @property
    def out_channels(self) -> int:
        return self.of.in_channels

    @property
    def inputs(self) -> int:
        """Channels of the input."""
        return self.of.outputs

    @property
    def outputs(self) -> int:
        """Channels of the output, each with its own bias."""
        return self.of.inputs

    @property
    def groups(self) -> int:
        return self.of.groups

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return self.of.taps

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, as in `nn.ConvTranspose2d`: the channels of the input first."""
        return self.of.weight_shape

    @property
    def arguments(self) -> str:
        """As `nn.ConvTranspose2d` writes them: those that differ from the defaults."""
        _, _, others = self.of.arguments.split(", ", 2)
        output = f", output_padding={self.output_padding}" if any(self.output_padding) else ""
        return f"{self.in_channels}, {self.out_channels}, {others}{output}"

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operation with a dense `weight`."""
        operation = TRANSPOSED_CONVOLUTIONS[len(self.of.kernel)]
        return operation(x, weight, bias, self.of.stride, self.of.padding, self.output_padding, self.of.groups, self.of.dilation)

    def output_size(self, size: Sequence[int]) -> Extents:
        """(height, width) of the output for an input of that (height, width), and so in one and three dimensions."""
        of = self.of
        return tuple(
            (extent - 1) * stride - 2 * padding + dilation * (kernel - 1) + 1 + more
            for extent, kernel, stride, padding, dilation, more in zip(
                size, of.kernel, of.stride, of.padding, of.dilation, self.output_padding, strict=True
            )
        )

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the output for an input of that shape, (batch, in_channels, height, width)."""
        return shape[0], self.out_channels, *self.output_size(shape[2:])

    def check_input(self, x: Tensor) -> None:
        size = _checked_size(x, self.in_channels, len(self.of.kernel))
        if min(size) < 1 or min(self.output_size(size)) < 1:
            raise ValueError(
                f"an input of {' x '.join(map(str, size))} leaves no output of kernel {self.of.kernel}, stride {self.of.stride}, "
                f"padding {self.of.padding}"
            )

    def sides(self, y: Side, x: Side) -> tuple[Side, Side]:
        """(what the rows of the matrix belong to, what its columns do)."""
        return x, y

    def input_of_each(self, topology: Topology) -> Tensor:
        """Which channel of the input each connection reads, [nnz] int64."""
        return self.of.output_of_each(topology)

    def output_of_each(self, topology: Topology) -> Tensor:
        """To which channel of the output each connection adds, [nnz] int64."""
        return self.of.input_of_each(topology)

    def fan_in(self, topology: Topology) -> Tensor:
        """Connections of each channel of the output, [outputs]."""
        return torch.bincount(self.output_of_each(topology), minlength=self.outputs)

    def reach(self, topology: Topology) -> Tensor:
        """Connections that add to one value of each channel of the output, on average, [outputs]: one in `stride` finds an input."""
        return self.fan_in(topology) / prod(self.of.stride)


def _checked_size(x: Tensor, channels: int, dimensions: int) -> tuple[int, ...]:
    """The extents of an input along which a kernel slides.

    Raises:
        ValueError: if it has other dimensions, or another number of channels.
    """
    if x.ndim not in (dimensions + 1, dimensions + 2) or x.shape[-dimensions - 1] != channels:
        raise ValueError(f"expected an input of shape (batch, {channels}, {DIMENSIONS[dimensions]}), got {tuple(x.shape)}")
    return tuple(x.shape[-dimensions:])


Geometry = Matrix | Convolution | Transposed
