"""Transposed convolutions that have only their connections, along one, two and three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..topology.geometry import Convolution, Extents, Transposed
from ..topology.patterns import Pattern
from .base import TopologyLayer
from .sparse import SparseLayer


class TransposedInterface(TopologyLayer):
    """The arguments and attributes of `nn.ConvTranspose1d`, `2d` and `3d`, however the values are held."""

    geometry: Transposed
    padding_mode = "zeros"  # torch has no other

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Extents,
        stride: int | Extents = 1,
        padding: int | Extents = 0,
        output_padding: int | Extents = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int | Extents = 1,
        padding_mode: str = "zeros",
        *,
        sparsity: float = 0.9,
        pattern: Pattern | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # Torch's layer knows what its arguments may be; made without memory, it says so in its own words.
        settings = kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode
        geometry = self.geometry_of(self.stands_for(in_channels, out_channels, *settings, device="meta"))
        self._draw(geometry, bias, sparsity, pattern, generator, device, dtype)

    @property
    def in_channels(self) -> int:
        return self.geometry.in_channels

    @property
    def out_channels(self) -> int:
        return self.geometry.out_channels

    @property
    def kernel_size(self) -> Extents:
        return self.geometry.of.kernel

    @property
    def stride(self) -> Extents:
        return self.geometry.of.stride

    @property
    def padding(self) -> Extents:
        return self.geometry.of.padding

    @property
    def output_padding(self) -> Extents:
        return self.geometry.output_padding

    @property
    def dilation(self) -> Extents:
        return self.geometry.of.dilation

    @property
    def groups(self) -> int:
        return self.geometry.of.groups

    @staticmethod
    def geometry_of(module: Any) -> Transposed:
        """The geometry of a dense transposed convolution.

        Raises:
            ValueError: if its output padding is larger than torch itself lets it be at a call.
        """
        for more, stride, dilation in zip(module.output_padding, module.stride, module.dilation, strict=True):
            if not 0 <= more < max(stride, dilation):
                raise ValueError(
                    f"output_padding must be smaller than stride or dilation, got {module.output_padding} "
                    f"with stride {module.stride} and dilation {module.dilation}"
                )
        settings = module.kernel_size, module.stride, module.padding, module.dilation, module.groups
        return Transposed(Convolution(module.out_channels, module.in_channels, *settings), module.output_padding)

    def dense_module(self) -> nn.Module:
        settings = self.kernel_size, self.stride, self.padding, self.output_padding, self.groups, self.bias is not None, self.dilation
        dense = self.stands_for(self.in_channels, self.out_channels, *settings, device="meta")
        self._fill(dense)
        return dense

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        """
        Args:
            input: (batch, in_channels, height, width), or one sample without the batch; in one and three dimensions alike.
            output_size: of the output, in place of `output_padding`, as in torch: (height, width), or the whole shape.

        Raises:
            ValueError: if the shape of `input` does not fit, or it cannot give that size.
        """
        if output_size is None:
            return super().forward(input)
        self.geometry.check_input(input)
        dimensions = len(self.kernel_size)
        wanted, given = list(output_size)[-dimensions:], self.geometry.output_size(input.shape[-dimensions:])
        least = [extent - more for extent, more in zip(given, self.output_padding, strict=True)]
        fits = all(low <= extent < low + stride for low, extent, stride in zip(least, wanted, self.stride, strict=False))
        if len(output_size) not in (dimensions, input.ndim) or not fits:
            most = [low + stride - 1 for low, stride in zip(least, self.stride, strict=True)]
            raise ValueError(f"an input of {tuple(input.shape)} gives sizes from {least} to {most}, got output_size={list(output_size)}")
        # What is at a place does not depend on the size; beyond the last input there are zeros.
        more = [int(extent > own) for extent, own in zip(wanted, given, strict=True)]
        longer = F.pad(input, [count for one in reversed(more) for count in (0, one)]) if any(more) else input
        y: Tensor = super().forward(longer)
        return y[(..., *(slice(extent) for extent in wanted))].contiguous()


class SparseConvTranspose1d(TransposedInterface, SparseLayer):
    """`nn.ConvTranspose1d` that stores, trains and runs only its connections: see `SparseConvTranspose2d`."""

    stands_for = nn.ConvTranspose1d


class SparseConvTranspose2d(TransposedInterface, SparseLayer):
    """`nn.ConvTranspose2d` that stores, trains and runs only its connections.

    Input (batch, in_channels, height, width) or one sample without the batch; output as `nn.ConvTranspose2d`, `output_size` too. It is
    the transpose of a sparse convolution from its output to its input, and has the matrix of that one.

    The dense weight begins with the channels of the input, and so does the topology: **a row is an input channel.** Patterns and
    algorithms that count by rows (`FanIn`, `Neurons`, SRigL) count here what leaves a channel of the input.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias, dilation, padding_mode: as in
            `nn.ConvTranspose2d`, and in its order.
        sparsity: share of the weights that do not exist, 0 to 1. `NM` patterns fix it themselves.
        pattern: which topologies are legal, over [in_channels, out_channels / groups * kernel height * kernel width];
            None is `Unstructured()`.
        generator: CPU generator of the topology and the initial values; None is torch's global one.
        device, dtype: as in `nn.ConvTranspose2d`.

    Raises:
        ValueError: if an argument is one that `nn.ConvTranspose2d` refuses, or the sparsity or the pattern does not fit.
    """

    stands_for = nn.ConvTranspose2d


class SparseConvTranspose3d(TransposedInterface, SparseLayer):
    """`nn.ConvTranspose3d` that stores, trains and runs only its connections: see `SparseConvTranspose2d`, and `SparseConv3d` for the
    memory that a pass takes."""

    stands_for = nn.ConvTranspose3d
