"""How do kernels for images compute the other convolutions? Their verbs, on arrays that are looked at as images, or laid out as such.

A length is an image of height 1. A volume is one image for each position of the kernel in depth, whose channels are those of the slices
that the kernel sees there: in the order of the dense weight, so that the matrix is the same. A transposed convolution is another's verbs
the other way round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..topology import Topology
from ..topology.geometry import Convolution, Extents, Geometry, Transposed
from .verbs import Sample, Verbs, values_dtype, widened

Need = tuple[bool, bool, bool]
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class _Rearranged:
    """Verbs that are others' on rearranged arrays. `name` and `nbytes` are theirs."""

    def __init__(self, inner: Verbs) -> None:
        self.inner = inner

    @property
    def name(self) -> str:
        return self.inner.name

    @property
    def nbytes(self) -> int:
        return self.inner.nbytes


class OnImages(_Rearranged, ABC):
    """What the ways to see a convolution as one of images have in common."""

    @abstractmethod
    def x(self, x: Tensor) -> Tensor:
        """An input as images."""

    @abstractmethod
    def dx(self, dx: Tensor, like: torch.Size) -> Tensor:
        """The gradient of an input of shape `like`, from that of its images."""

    @abstractmethod
    def y(self, y: Tensor, size: tuple[int, ...]) -> Tensor:
        """An output of that size, from its images."""

    @abstractmethod
    def dy(self, dy: Tensor) -> Tensor:
        """The gradient of an output as images."""

    @abstractmethod
    def shape(self, like: torch.Size) -> torch.Size:
        """That of the images of an input of shape `like`."""

    def __init__(self, geometry: Convolution, inner: Verbs) -> None:
        super().__init__(inner)
        self.geometry = geometry

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.y(self.inner.spmm(values, self.x(x), bias), self.geometry.output_size(x.shape[2:]))

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        return self.dx(self.inner.spmm_t(values, self.dy(dy), self.shape(like)), like)

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        return self.inner.sddmm(self.dy(dy), self.x(x))

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        return self.inner.gradient_rows(self.dy(dy), self.x(x), start, stop)

    def top_gradients(self, samples: list[Sample], kept: Topology, k: int) -> Tensor:
        return self.inner.top_gradients([(self.dy(dy), self.x(x)) for dy, x in samples], kept, k)

    def backward(self, values: Tensor, x: Tensor, dy: Tensor, need: Need) -> Gradients:
        # What of the input its gradient asks for is the shape alone.
        images = self.x(x) if need[0] else x.new_empty(1).expand(self.shape(x.shape))
        dvalues, dx, dbias = self.inner.backward(values, images, self.dy(dy), need)
        return dvalues, None if dx is None else self.dx(dx, x.shape), dbias


class Viewed(OnImages):
    """A convolution whose arrays are images as they lie in memory.

    Args:
        folded: the dimensions that become the height, and those that become the width.
    """

    def __init__(self, geometry: Convolution, inner: Verbs, folded: Folded) -> None:
        super().__init__(geometry, inner)
        self.folded = folded

    def x(self, x: Tensor) -> Tensor:
        return x.reshape(self.shape(x.shape))

    def dx(self, dx: Tensor, like: torch.Size) -> Tensor:
        return dx.reshape(like)

    def y(self, y: Tensor, size: tuple[int, ...]) -> Tensor:
        return y.reshape(*y.shape[:2], *size)

    def dy(self, dy: Tensor) -> Tensor:
        return dy.reshape(self.shape(dy.shape))

    def shape(self, like: torch.Size) -> torch.Size:
        height, width = (prod(like[2 + dimension] for dimension in folded) for folded in self.folded)
        return torch.Size((*like[:2], height, width))


class Sliced(OnImages):
    """A convolution of volumes, as one of images [batch * output depth, channels * kernel depth, height, width].

    The images are a copy of the input, as many times its size as the kernel is deep; none is kept from the forward pass to the backward.
    """

    def x(self, x: Tensor) -> Tensor:
        g, (batch, channels, _, height, width) = self.geometry, x.shape
        padded = F.pad(x, (0, 0, 0, 0, g.padding[0], g.padding[0])) if g.padding[0] else x
        windows = padded.unfold(2, g.dilation[0] * (g.kernel[0] - 1) + 1, g.stride[0])[..., :: g.dilation[0]]
        slices = windows.permute(0, 2, 1, 5, 3, 4)  # [batch, output depth, channels, kernel depth, height, width]
        return slices.reshape(batch * slices.shape[1], channels * g.kernel[0], height, width)

    def dx(self, dx: Tensor, like: torch.Size) -> Tensor:
        g, (batch, channels, depth, height, width) = self.geometry, like
        padding, stride, deep = g.padding[0], g.stride[0], g.output_size(like[2:])[0]
        slices = widened(dx).view(batch, deep, channels, g.kernel[0], height, width)
        total = slices.new_zeros(batch, channels, depth + 2 * padding, height, width)
        for tap in range(g.kernel[0]):
            first = tap * g.dilation[0]
            total[:, :, first : first + stride * (deep - 1) + 1 : stride] += slices[:, :, :, tap].transpose(1, 2)
        return total[:, :, padding : padding + depth].to(dx.dtype).contiguous()

    def y(self, y: Tensor, size: tuple[int, ...]) -> Tensor:
        return y.view(y.shape[0] // size[0], size[0], y.shape[1], *size[1:]).transpose(1, 2).contiguous()

    def dy(self, dy: Tensor) -> Tensor:
        return dy.transpose(1, 2).reshape(dy.shape[0] * dy.shape[2], dy.shape[1], *dy.shape[3:])

    def shape(self, like: torch.Size) -> torch.Size:
        deep = self.geometry.output_size(like[2:])[0]
        return torch.Size((like[0] * deep, like[1] * self.geometry.kernel[0], *like[3:]))


class Swapped(_Rearranged):
    """The transpose of a convolution: what that gives is taken, and what it takes is given.

    Args:
        inner: verbs of the convolution.
    """

    def __init__(self, geometry: Transposed, inner: Verbs) -> None:
        super().__init__(inner)
        self.geometry = geometry
        # An output padding of a stride and more reaches places that only inputs beyond the last could: those are zeros.
        beyond = [more // stride for more, stride in zip(geometry.output_padding, geometry.of.stride, strict=True)]
        self._beyond = [count for more in reversed(beyond) for count in (0, more)]

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = self.inner.spmm_t(values, self._longer(x), torch.Size(self.geometry.output_shape(x.shape)))
        return y if bias is None else (y + bias.view(-1, *[1] * (y.ndim - 2))).to(y.dtype)

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        dx = self.inner.spmm(values, dy)
        return dx if dx.shape == like else dx[(..., *(slice(extent) for extent in like[2:]))].contiguous()

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        return self.inner.sddmm(self._longer(x), dy)

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        return self.inner.gradient_rows(self._longer(x), dy, start, stop)

    def top_gradients(self, samples: list[Sample], kept: Topology, k: int) -> Tensor:
        return self.inner.top_gradients([(self._longer(x), dy) for dy, x in samples], kept, k)

    def backward(self, values: Tensor, x: Tensor, dy: Tensor, need: Need) -> Gradients:
        return (
            self.sddmm(dy, x) if need[0] else None,
            self.spmm_t(values, dy, x.shape) if need[1] else None,
            dy.movedim(1, 0).flatten(1).sum(1, dtype=values_dtype(dy.dtype)) if need[2] else None,
        )

    def _longer(self, x: Tensor) -> Tensor:
        return F.pad(x, self._beyond) if any(self._beyond) else x


Folded = tuple[tuple[int, ...], tuple[int, ...]]


class Rearrangement(NamedTuple):
    """Verbs of one geometry from those of another: `build(geometry, inner verbs, *settings)`."""

    inner: Geometry
    build: Any
    settings: tuple[Any, ...] = ()


def rearrangement(geometry: Geometry) -> Rearrangement | None:
    """How a geometry's verbs are made of another's; None for those that have kernels of their own."""
    if isinstance(geometry, Transposed):
        return Rearrangement(geometry.of, Swapped)
    if not isinstance(geometry, Convolution) or len(geometry.kernel) == 2:
        return None
    folded = _folded(geometry)
    if folded is not None:
        return Rearrangement(_seen_as_images(geometry, folded), Viewed, (folded,))
    channels = geometry.in_channels * geometry.kernel[0]
    kernel, stride, padding, dilation = (own[1:] for own in (geometry.kernel, geometry.stride, geometry.padding, geometry.dilation))
    return Rearrangement(Convolution(channels, geometry.out_channels, kernel, stride, padding, dilation, geometry.groups), Sliced)


def _folded(g: Convolution) -> Folded | None:
    """Which dimensions can be the height and the width of images, if any can: a kernel that does not move in two sees them as one."""
    if len(g.kernel) == 1:
        return (), (0,)
    still = [place == (1, 1, 0) for place in zip(g.kernel, g.stride, g.padding, strict=True)]
    return ((0, 1), (2,)) if still[0] and still[1] else ((0,), (1, 2)) if still[1] and still[2] else None


def _seen_as_images(g: Convolution, folded: Folded) -> Convolution:
    def pair(own: Extents, usual: int) -> Extents:
        return tuple(own[dimensions[0]] if len(dimensions) == 1 else usual for dimensions in folded)

    settings = pair(g.kernel, 1), pair(g.stride, 1), pair(g.padding, 0), pair(g.dilation, 1)
    return Convolution(g.in_channels, g.out_channels, *settings, groups=g.groups)
