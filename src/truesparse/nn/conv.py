"""Convolutions that have only their connections, along one, two and three dimensions."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..topology import Topology
from ..topology.geometry import Convolution, Extents, Geometry
from ..topology.patterns import Pattern
from .base import TopologyLayer
from .sparse import SparseLayer

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}  # ours: torch's


class ConvolutionInterface(TopologyLayer):
    """The arguments and attributes of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d`, however the values are held."""

    geometry: Convolution
    padding: Extents | str
    padding_mode: PaddingMode

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Extents,
        stride: int | Extents = 1,
        padding: int | Extents | str = 0,
        dilation: int | Extents = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        sparsity: float = 0.9,
        pattern: Pattern | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        # Torch's layer knows what its arguments may be; made without memory, it says so in its own words.
        like = self.stands_for(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device="meta")
        self._draw(self.geometry_of(like), bias, sparsity, pattern, generator, device, dtype)
        self._set_padding(like)

    def _set_padding(self, like: Any) -> None:
        self.padding, self.padding_mode = like.padding, like.padding_mode
        self._padding_before = padding_of(like)[1]

    @property
    def in_channels(self) -> int:
        return self.geometry.in_channels

    @property
    def out_channels(self) -> int:
        return self.geometry.out_channels

    @property
    def kernel_size(self) -> Extents:
        return self.geometry.kernel

    @property
    def stride(self) -> Extents:
        return self.geometry.stride

    @property
    def dilation(self) -> Extents:
        return self.geometry.dilation

    @property
    def groups(self) -> int:
        return self.geometry.groups

    @classmethod
    def from_dense(
        cls, module: Any, topology: Topology | None = None, *, pattern: Pattern | None = None, values: Tensor | None = None
    ) -> Self:
        layer = super().from_dense(module, topology, pattern=pattern, values=values)
        layer._set_padding(module)
        return layer

    @staticmethod
    def geometry_of(module: Any) -> Convolution:
        """The geometry of a dense convolution."""
        return Convolution(
            module.in_channels,
            module.out_channels,
            module.kernel_size,
            module.stride,
            padding_of(module)[0],
            module.dilation,
            module.groups,
        )

    def dense_module(self) -> nn.Module:
        g = self.geometry
        dense = self.stands_for(
            g.in_channels,
            g.out_channels,
            g.kernel,
            g.stride,
            self.padding,
            g.dilation,
            g.groups,
            self.bias is not None,
            self.padding_mode,
            device="meta",
        )
        self._fill(dense)
        return dense

    def with_connections(self, geometry: Geometry, topology: Topology, values: Tensor, bias: Tensor | None) -> Self:
        layer = super().with_connections(geometry, topology, values, bias)
        layer._set_padding(self)
        return layer

    def _prepared(self, x: Tensor) -> Tensor:
        own = self.geometry.sample_ndim
        fits = x.ndim in (own, own + 1) and x.shape[-own] == self.in_channels
        if not fits or not any(self._padding_before):
            return x  # what does not fit is refused after this, in the shape it came in
        return F.pad(x, self._padding_before, mode=PADDING_MODES[self.padding_mode])


class SparseConv1d(ConvolutionInterface, SparseLayer):
    """`nn.Conv1d` that stores, trains and runs only its connections.

    Input (batch, in_channels, length) or one sample without the batch; output as `nn.Conv1d`. It runs on the kernels for images, as
    one of height 1.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in `nn.Conv1d`.
        sparsity: share of the weights that do not exist, 0 to 1. `NM` patterns fix it themselves.
        pattern: which topologies are legal, over [out_channels, in_channels / groups * kernel length]; None is `Unstructured()`.
        generator: CPU generator of the topology and the initial values; None is torch's global one.
        device, dtype: as in `nn.Conv1d`.

    Raises:
        ValueError: if an argument is one that `nn.Conv1d` refuses, or the sparsity or the pattern does not fit.
    """

    stands_for = nn.Conv1d


class SparseConv2d(ConvolutionInterface, SparseLayer):
    """`nn.Conv2d` that stores, trains and runs only its connections.

    Input (batch, in_channels, height, width) or one sample without the batch; output as `nn.Conv2d`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in `nn.Conv2d`.
        sparsity: share of the weights that do not exist, 0 to 1. `NM` patterns fix it themselves.
        pattern: which topologies are legal, over [out_channels, in_channels / groups * kernel height * kernel width];
            None is `Unstructured()`.
        generator: CPU generator of the topology and the initial values; None is torch's global one.
        device, dtype: as in `nn.Conv2d`.

    Raises:
        ValueError: if an argument is one that `nn.Conv2d` refuses, or the sparsity or the pattern does not fit.
    """

    stands_for = nn.Conv2d


class SparseConv3d(ConvolutionInterface, SparseLayer):
    """`nn.Conv3d` that stores, trains and runs only its connections.

    Input (batch, in_channels, depth, height, width) or one sample without the batch; output as `nn.Conv3d`. It runs on the kernels for
    images: the slices that the kernel sees at each depth are copied next to one another, so that a pass holds, while it runs, the input
    `kernel depth / stride` times more. Kernels (1, 1, k) and (k, 1, 1) that neither step nor pad where they are 1 need no copy.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode: as in `nn.Conv3d`.
        sparsity: share of the weights that do not exist, 0 to 1. `NM` patterns fix it themselves.
        pattern: which topologies are legal, over [out_channels, in_channels / groups * kernel depth * height * width];
            None is `Unstructured()`.
        generator: CPU generator of the topology and the initial values; None is torch's global one.
        device, dtype: as in `nn.Conv3d`.

    Raises:
        ValueError: if an argument is one that `nn.Conv3d` refuses, or the sparsity or the pattern does not fit.
    """

    stands_for = nn.Conv3d


def padding_of(module: Any) -> tuple[Extents, tuple[int, ...]]:
    """(zero padding done by the kernel, padding done before it as `F.pad` takes it: (left, right, top, bottom) of images).

    Args:
        module: a convolution, sparse, masked or dense, not transposed.
    """
    padding = module.padding
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        low = tuple(all_of // 2 for all_of in total)
        high = tuple(all_of - before for all_of, before in zip(total, low, strict=True))
    else:
        low = high = padding
    if module.padding_mode == "zeros" and low == high:
        return low, (0,) * (2 * len(low))
    return (0,) * len(low), tuple(extent for pair in reversed([*zip(low, high, strict=True)]) for extent in pair)
