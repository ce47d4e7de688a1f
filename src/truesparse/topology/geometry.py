"""What dense operation does a sparse layer stand for? A matrix product or a convolution, as an immutable value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]


@dataclass(frozen=True)
class Matrix:
    """y = x W^T with W [rows, columns], x [..., columns], y [..., rows]."""

    rows: int
    columns: int

    sample_ndim: ClassVar[int] = 1  # dimensions of one sample: (columns,)

    @property
    def shape(self) -> Pair:
        return self.rows, self.columns

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


@dataclass(frozen=True)
class Convolution:
    """A 2-D cross-correlation with zero padding, as `F.conv2d`. Pairs are (height, width).

    As a matrix its shape is (out_channels, in_channels / groups * kernel height * kernel width).
    """

    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    sample_ndim: ClassVar[int] = 3  # dimensions of one sample: (channels, height, width)

    @property
    def shape(self) -> Pair:
        return self.out_channels, self.in_channels // self.groups * self.kernel[0] * self.kernel[1]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense weight, as in `nn.Conv2d`."""
        return self.out_channels, self.in_channels // self.groups, *self.kernel

    @property
    def arguments(self) -> str:
        """As `nn.Conv2d` writes them: those that differ from the defaults."""
        usual = {"padding": (0, 0), "dilation": (1, 1), "groups": 1}
        given = [f"kernel_size={self.kernel}", f"stride={self.stride}"]
        given += [f"{name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        return f"{self.in_channels}, {self.out_channels}, {', '.join(given)}"

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The operation with a dense `weight`."""
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def output_size(self, size: Pair) -> Pair:
        """(height, width) of the output for an input of that (height, width)."""
        height, width = (
            (extent + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for extent, kernel, stride, padding, dilation in zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        )
        return height, width

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Of the output for an input of that shape, (batch, in_channels, height, width)."""
        return shape[0], self.out_channels, *self.output_size((shape[2], shape[3]))

    def check_input(self, x: Tensor) -> None:
        if x.ndim not in (3, 4) or x.shape[-3] != self.in_channels:
            raise ValueError(f"expected an input of shape (batch, {self.in_channels}, height, width), got {tuple(x.shape)}")
        height, width = self.output_size((x.shape[-2], x.shape[-1]))
        if height < 1 or width < 1:
            raise ValueError(
                f"an input of {x.shape[-2]} x {x.shape[-1]} is too small for kernel {self.kernel}, "
                f"padding {self.padding}, dilation {self.dilation}"
            )


Geometry = Matrix | Convolution
