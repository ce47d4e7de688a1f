"""For convolutions of one and three dimensions: the layout for images, on arrays that are looked at as images, or laid out as such."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ops.rearranged import OnImages, rearrangement
from ...topology.geometry import Convolution
from ..graph.layers import Weights
from .base import Candidate, Conditions, Layout
from .planes import Planes, PlanesCandidate

COPIED = 0.3  # nanoseconds of a number that is laid out anew


class RearrangedPlanes(Layout):
    """`Planes` of the images that a length or a volume is seen as.

    Args:
        images: how it is seen.
    """

    name = "planes"

    def __init__(self, weights: Weights, relu: bool, images: OnImages) -> None:
        super().__init__(weights, relu)
        self.images, self.planes = images, Planes(_on_images(weights), relu)

    def __call__(self, x: Tensor) -> Tensor:
        return self.images.y(self.planes(self.images.x(x).contiguous()), self.images.geometry.output_size(x.shape[2:]))

    @property
    def nbytes(self) -> int:
        return self.planes.nbytes


@dataclass(frozen=True)
class RearrangedPlanesCandidate(Candidate):
    def make(self, weights: Weights, relu: bool, values: str) -> RearrangedPlanes:
        images = _images(weights)
        assert images is not None
        return RearrangedPlanes(weights, relu, images)

    def guess(self, weights: Weights, conditions: Conditions) -> float:
        images = _images(weights)
        assert images is not None
        shape = images.shape(torch.Size(conditions.input_shape))
        inner = replace(conditions, input_shape=tuple(shape))
        return PlanesCandidate().guess(_on_images(weights), inner) + COPIED * shape.numel() * (images.geometry.sample_ndim > 2)

    def __str__(self) -> str:
        return RearrangedPlanes.name


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """One for each convolution that is not of images, and not transposed."""
    return [] if _images(weights) is None else [RearrangedPlanesCandidate()]


def _images(weights: Weights) -> OnImages | None:
    way = rearrangement(weights.geometry)
    if way is None or not isinstance(weights.geometry, Convolution):
        return None
    images: OnImages = way.build(weights.geometry, None, *way.settings)
    return images


def _on_images(weights: Weights) -> Weights:
    way = rearrangement(weights.geometry)
    assert way is not None
    return replace(weights, geometry=way.inner)
