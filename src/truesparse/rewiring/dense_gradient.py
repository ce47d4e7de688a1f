"""What is a layer's dense gradient the sum of? Passes of (dy, x), never held whole unless that takes less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..nn import SparseLayer, TopologyLayer
from ..nn.base import Magnitudes, Part, Sample, Whole
from ..ops import values_dtype
from ..topology import Topology
from ..topology.patterns import Unstructured


class Pass(NamedTuple):
    """factor x dy^T x: what one backward pass through the layer adds to the dense gradient."""

    factor: float
    dy: Tensor
    x: Tensor
    version: int  # of x when it was noted: it is the network's own, not a copy

    @property
    def nbytes(self) -> int:
        return self.dy.nbytes + self.x.nbytes


@dataclass(frozen=True)
class DenseGradient:
    """The dense gradient of one layer: `AbsentGradients`.

    Args:
        layer: whose gradient it is.
        passes: what it is the sum of,
        whole: with this, [rows, columns]. Two passes and more become this as soon as they would take more memory.
        magnitudes: bounds of `whole`.
        unknown: why it cannot be told, if it cannot.
    """

    layer: TopologyLayer
    passes: tuple[Pass, ...] = ()
    whole: Tensor | None = None
    magnitudes: Magnitudes | None = None
    unknown: str = ""

    @classmethod
    def of(cls, layer: TopologyLayer, part: Part) -> DenseGradient:
        if isinstance(part, Whole):
            gradient, magnitudes = part
            return cls(layer, whole=gradient, magnitudes=magnitudes or _largest(gradient))
        dy, x = part
        return cls(layer, (Pass(1.0, dy, x, x._version),))

    @property
    def empty(self) -> bool:
        """Whether nothing is in it: the layer took no part."""
        return not self.passes and self.whole is None and not self.unknown

    def scaled(self, factor: float) -> DenseGradient:
        passes = tuple(one._replace(factor=one.factor * factor) for one in self.passes)
        if self.whole is None or self.magnitudes is None:
            return replace(self, passes=passes)
        rows, columns = self.magnitudes
        return replace(self, passes=passes, whole=self.whole * factor, magnitudes=(rows * abs(factor), columns))

    def plus(self, other: DenseGradient) -> DenseGradient:
        wholes = [one.whole for one in (self, other) if one.whole is not None]
        whole = wholes[0] + wholes[1] if len(wholes) == 2 else wholes[0] if wholes else None
        magnitudes = _added([one.magnitudes for one in (self, other) if one.magnitudes is not None])
        total = DenseGradient(self.layer, self.passes + other.passes, whole, magnitudes, self.unknown or other.unknown)
        held = sum(one.nbytes for one in total.passes)
        if len(total.passes) < 2 - (whole is not None) or held <= self.layer.topology.size * self.layer.parameter.itemsize:
            return total
        return replace(total, passes=(), whole=total.rows(0, self.layer.topology.shape[0]), magnitudes=total.bounds())

    def rows(self, start: int, stop: int) -> Tensor:
        own = self._own_rows(start, stop)
        if self.whole is None:
            return own
        return own + self.whole[start:stop] if self.passes else self.whole[start:stop].clone()

    def top(self, kept: Topology, count: int) -> Tensor:
        if self.whole is None and self.passes:
            return self._sparse.top_gradients(self._samples(), kept, count)
        vacant = torch.tensor([min(count, kept.size - kept.nnz)], device=kept.device)
        return Unstructured().highest_absent(kept, kept.shape, vacant, self)

    def at(self, positions: Topology) -> Tensor:
        if self.whole is not None:
            return self.rows(0, positions.shape[0]).flatten()[positions.keys]
        if not self.passes:
            return self._zeros(positions.nnz)
        return self._sparse.gradients_at(self._samples(), positions)

    def bounds(self) -> tuple[Tensor, Tensor]:
        bounds = [] if self.magnitudes is None else [self.magnitudes]
        if self.passes:
            bounds.append(self.layer.gradient_bounds(self._samples()))
        rows, columns = self.layer.topology.shape
        return _added(bounds) or (self._zeros(rows), self._zeros(columns))

    def state(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        passes = [(one.factor, one.dy, one.x) for one in self.passes]
        return {"passes": passes, "whole": self.whole, "magnitudes": self.magnitudes, "unknown": self.unknown}

    @classmethod
    def load(cls, layer: TopologyLayer, state: Mapping[str, Any]) -> DenseGradient:
        passes = tuple(Pass(factor, dy, x, x._version) for factor, dy, x in state["passes"])
        return cls(layer, passes, state["whole"], state["magnitudes"], state["unknown"])

    @property
    def _sparse(self) -> SparseLayer:
        assert isinstance(self.layer, SparseLayer), "masked layers have their gradient whole"
        return self.layer

    def _own_rows(self, start: int, stop: int) -> Tensor:
        columns = self.layer.topology.shape[1]
        if not self.passes:
            return self._zeros((stop - start) * columns).view(stop - start, columns)
        return self._sparse.gradient_rows(self._samples(), start, stop)

    def _samples(self) -> list[Sample]:
        for one in self.passes:
            if one.x._version != one.version:
                raise RuntimeError(
                    "the input of a sparse layer was overwritten in place between the backward pass and step(): the gradients of absent "
                    "connections need it as it was; write the next batch into another tensor, or call step() first"
                )
        return [(one.dy if one.factor == 1.0 else one.dy * one.factor, one.x) for one in self.passes]

    def _zeros(self, count: int) -> Tensor:
        parameter = self.layer.parameter
        return torch.zeros(count, dtype=values_dtype(parameter.dtype), device=parameter.device)


def _added(bounds: list[Magnitudes]) -> Magnitudes | None:
    """What bounds a sum of gradients that are each bounded by one of these."""
    return reduce(lambda one, other: (one[0] + other[0], one[1] + other[1]), bounds) if bounds else None


def _largest(gradient: Tensor) -> Magnitudes:
    rows, columns = gradient.shape
    largest = gradient.abs().amax(1) if columns else gradient.new_zeros(rows)
    return largest, gradient.new_ones(columns)
