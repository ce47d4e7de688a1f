"""What is a layer's dense gradient the sum of? Passes of (dy, x), never held whole unless that takes less."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from ..nn import SparseLayer, TopologyLayer
from ..nn.base import Magnitudes, Part, Sample
from ..ops import values_dtype, widened
from ..topology import Move, Topology
from ..topology.patterns import Unstructured


class Pass(NamedTuple):
    """factor x dy^T x: what one backward pass through the layer adds to the dense gradient."""

    factor: float
    dy: Tensor
    x: Tensor

    @property
    def nbytes(self) -> int:
        return self.dy.nbytes + self.x.nbytes


class Rows(NamedTuple):
    """What looking up rows adds to the dense gradient: to rows `indices` [n], each there once, ascending, `gradient` [n, columns]."""

    indices: Tensor
    gradient: Tensor

    @classmethod
    def added(cls, indices: Tensor, gradient: Tensor) -> Rows:
        """Of rows that may be there several times."""
        once, place = indices.long().unique(return_inverse=True)
        return cls(once, gradient.new_zeros(len(once), gradient.shape[1]).index_add_(0, place, gradient))

    def plus(self, other: Rows | None) -> Rows:
        return self if other is None else Rows.added(torch.cat([self.indices, other.indices]), torch.cat([self.gradient, other.gradient]))

    def add_to(self, total: Tensor, start: int) -> None:
        """To the rows of the dense gradient from `start` on, as many as `total` has."""
        first, last = (int(torch.searchsorted(self.indices, bound)) for bound in (start, start + len(total)))
        total[self.indices[first:last] - start] += self.gradient[first:last]

    def at(self, positions: Topology) -> Tensor:
        place = torch.full((positions.shape[0],), -1, device=self.indices.device)
        place[self.indices] = torch.arange(len(self.indices), device=self.indices.device)
        place = place[positions.rows.long()]
        found = place >= 0
        total = self.gradient.new_zeros(positions.nnz)
        total[found] = self.gradient[place[found], positions.indices[found].long()]
        return total

    def largest(self, rows: int) -> Magnitudes:
        bounds = self.gradient.new_zeros(rows)
        if self.gradient.numel():
            bounds[self.indices] = self.gradient.abs().amax(1)
        return bounds, self.gradient.new_ones(self.gradient.shape[1])


@dataclass(frozen=True)
class DenseGradient:
    """The dense gradient of one layer: `AbsentGradients`. Gradients can be multiplied and added.

    Args:
        layer: whose gradient it is.
        passes: what it is the sum of,
        looked_up: with this,
        whole: with this, [rows, columns]. Two passes and more become this as soon as they would take more memory,
        direct: and with this, [nnz], at the connections: what reaches the values without a product, such as a penalty on their squares.
        magnitudes: bounds of `looked_up` and `whole` together.
        unknown: why it cannot be told, if it cannot.
    """

    layer: TopologyLayer
    passes: tuple[Pass, ...] = ()
    looked_up: Rows | None = None
    whole: Tensor | None = None
    direct: Tensor | None = None
    magnitudes: Magnitudes | None = None
    unknown: str = ""

    @classmethod
    def of(cls, layer: TopologyLayer, part: Part) -> DenseGradient:
        if part.pair is not None:
            # Copies: what the network made of its inputs, and a loop of its own buffers, may be written to before anybody reads this.
            dy, x = part.pair
            return cls(layer, (Pass(1.0, dy.clone(), x.clone()),))
        if part.rows is not None:
            rows = Rows.added(part.rows[0], widened(part.rows[1]))
            return cls(layer, looked_up=rows, magnitudes=rows.largest(layer.topology.shape[0]))
        assert part.whole is not None
        return cls(layer, whole=part.whole.clone(), magnitudes=part.magnitudes or _largest(part.whole))

    @property
    def empty(self) -> bool:
        """Whether nothing is in it: the layer took no part."""
        return not self.passes and self.looked_up is None and self.whole is None and self.direct is None and not self.unknown

    def scaled(self, factor: float) -> DenseGradient:
        if factor == 1.0:
            return self
        whole, direct = (None if array is None else array * factor for array in (self.whole, self.direct))
        magnitudes = self.magnitudes and (self.magnitudes[0] * abs(factor), self.magnitudes[1])
        passes = tuple(one._replace(factor=one.factor * factor) for one in self.passes)
        looked_up = self.looked_up and self.looked_up._replace(gradient=self.looked_up.gradient * factor)
        return DenseGradient(self.layer, passes, looked_up, whole, direct, magnitudes, self.unknown)

    def plus(self, other: DenseGradient) -> DenseGradient:
        whole, direct = _sum(self.whole, other.whole), _sum(self.direct, other.direct)
        magnitudes = _sum_of_bounds(self.magnitudes, other.magnitudes)
        looked_up = self.looked_up.plus(other.looked_up) if self.looked_up else other.looked_up
        passes, unknown = self.passes + other.passes, self.unknown or other.unknown
        total = DenseGradient(self.layer, passes, looked_up, whole, direct, magnitudes, unknown)
        held = sum(one.nbytes for one in total.passes)
        if len(total.passes) < 2 - (whole is not None) or held <= self.layer.topology.size * self.layer.parameter.itemsize:
            return total
        indirect = replace(total, direct=None)
        return replace(total, passes=(), looked_up=None, whole=indirect.rows(0, self.layer.topology.shape[0]), magnitudes=indirect.bounds())

    def rows(self, start: int, stop: int) -> Tensor:
        topology = self.layer.topology
        if self.passes:
            total = self._sparse.gradient_rows(self._samples(), start, stop)
        else:
            total = self._zeros((stop - start) * topology.shape[1]).view(stop - start, topology.shape[1])
        if self.looked_up is not None:
            self.looked_up.add_to(total, start)
        if self.whole is not None:
            total += self.whole[start:stop]
        if self.direct is not None:
            here = slice(int(topology.indptr[start]), int(topology.indptr[stop]))
            total[topology.rows[here].long() - start, topology.indices[here].long()] += self.direct[here]
        return total

    def top(self, kept: Topology, count: int) -> Tensor:
        if self.passes and self.looked_up is None and self.whole is None and self.direct is None:
            return self._sparse.top_gradients(self._samples(), kept, count)
        vacant = torch.tensor([min(count, kept.size - kept.nnz)], device="cpu")
        return Unstructured().highest_absent(kept, kept.shape, vacant, self)

    def at(self, positions: Topology) -> Tensor:
        total = self._sparse.gradients_at(self._samples(), positions) if self.passes else self._zeros(positions.nnz)
        if self.looked_up is not None:
            total += self.looked_up.at(positions)
        if self.whole is not None:
            total += self.whole.flatten()[positions.keys]
        if self.direct is not None:
            total += Move.between(self.layer.topology, positions)(self.direct)
        return total

    def bounds(self) -> Magnitudes:
        rows, columns = self.layer.topology.shape
        bounds = self.magnitudes
        if self.passes:
            bounds = _sum_of_bounds(bounds, self.layer.gradient_bounds(self._samples()))
        if self.direct is not None:
            bounds = _sum_of_bounds(bounds, _largest(self.layer.topology.scatter(self.direct)))
        return bounds or (self._zeros(rows), self._zeros(columns))

    def state(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        kept = {name: getattr(self, name) for name in STATE} | {"passes": [tuple(one) for one in self.passes]}
        return kept | ({"looked_up": tuple(self.looked_up)} if self.looked_up else {})

    @classmethod
    def load(cls, layer: TopologyLayer, state: Mapping[str, Any]) -> DenseGradient:
        state = tree_map_only(Tensor, lambda tensor: tensor.to(layer.parameter.device), dict(state))
        looked_up = Rows(*state["looked_up"]) if "looked_up" in state else None
        return cls(layer, tuple(Pass(*one) for one in state["passes"]), looked_up, **{name: state[name] for name in STATE})

    @property
    def _sparse(self) -> SparseLayer:
        assert isinstance(self.layer, SparseLayer), "masked layers have their gradient whole"
        return self.layer

    def _samples(self) -> list[Sample]:
        return [(one.dy if one.factor == 1.0 else one.dy * one.factor, one.x) for one in self.passes]

    def _zeros(self, count: int) -> Tensor:
        parameter = self.layer.parameter
        return torch.zeros(count, dtype=values_dtype(parameter.dtype), device=parameter.device)


STATE = ("whole", "direct", "magnitudes", "unknown")


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


def _sum_of_bounds(one: Magnitudes | None, other: Magnitudes | None) -> Magnitudes | None:
    """What bounds the sum of two gradients that are bounded by these."""
    return other if one is None else one if other is None else (one[0] + other[0], one[1] + other[1])


def _largest(gradient: Tensor) -> Magnitudes:
    rows, columns = gradient.shape
    largest = gradient.abs().amax(1) if columns else gradient.new_zeros(rows)
    return largest, gradient.new_ones(columns)
