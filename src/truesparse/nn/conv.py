"""A 2-D convolution that has only its connections."""

from __future__ import annotations

from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..topology import Topology
from ..topology.geometry import Convolution, Geometry, Pair
from ..topology.patterns import Pattern
from .base import TopologyLayer
from .sparse import SparseLayer

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}  # ours: torch's


class ConvolutionInterface(TopologyLayer):
    """The arguments and attributes of `nn.Conv2d`, however the values are held."""

    stands_for = nn.Conv2d
    geometry: Convolution
    padding: Pair | str
    padding_mode: PaddingMode

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
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
        # nn.Conv2d knows what its arguments may be; made without memory, it says so in its own words.
        like = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device="meta")
        self._draw(self.geometry_of(like), bias, sparsity, pattern, generator, device, dtype)
        self._set_padding(like)

    def _set_padding(self, like: nn.Conv2d | ConvolutionInterface) -> None:
        self.padding = like.padding if isinstance(like.padding, str) else _pair(like.padding)
        self.padding_mode = like.padding_mode  # type: ignore[assignment]
        self._padding_before = padding_of(like)[1]

    @property
    def in_channels(self) -> int:
        return self.geometry.in_channels

    @property
    def out_channels(self) -> int:
        return self.geometry.out_channels

    @property
    def kernel_size(self) -> Pair:
        return self.geometry.kernel

    @property
    def stride(self) -> Pair:
        return self.geometry.stride

    @property
    def dilation(self) -> Pair:
        return self.geometry.dilation

    @property
    def groups(self) -> int:
        return self.geometry.groups

    @classmethod
    def from_dense(
        cls, module: nn.Conv2d, topology: Topology | None = None, *, pattern: Pattern | None = None, values: Tensor | None = None
    ) -> Self:
        layer = super().from_dense(module, topology, pattern=pattern, values=values)
        layer._set_padding(module)
        return layer

    @staticmethod
    def geometry_of(module: nn.Conv2d) -> Convolution:
        """The geometry of a dense convolution."""
        return Convolution(
            module.in_channels,
            module.out_channels,
            _pair(module.kernel_size),
            _pair(module.stride),
            padding_of(module)[0],
            _pair(module.dilation),
            module.groups,
        )

    def dense_module(self) -> nn.Conv2d:
        """The `nn.Conv2d` that computes exactly the same."""
        g = self.geometry
        dense = nn.Conv2d(
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
        fits = x.ndim in (3, 4) and x.shape[-3] == self.in_channels
        if not fits or not any(self._padding_before):
            return x  # what does not fit is refused after this, in the shape it came in
        return F.pad(x, self._padding_before, mode=PADDING_MODES[self.padding_mode])


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


def padding_of(module: nn.Conv2d | ConvolutionInterface) -> tuple[Pair, tuple[int, ...]]:
    """(zero padding done by the kernel, padding (left, right, top, bottom) done before it)."""
    padding = module.padding
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        low = (total[0] // 2, total[1] // 2)
        high = (total[0] - low[0], total[1] - low[1])
    else:
        low = high = _pair(padding)
    if module.padding_mode == "zeros" and low == high:
        return low, (0, 0, 0, 0)
    return (0, 0), (low[1], high[1], low[0], high[0])


def _pair(value: Any) -> Pair:
    height, width = value if isinstance(value, tuple) else (value, value)
    return height, width
