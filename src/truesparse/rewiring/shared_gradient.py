"""What is a gradient that several processes have made together? The mean of what each has, of which only what is asked for travels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import torch
from torch import Tensor

from ..distributed import Processes
from ..nn import TopologyLayer
from ..nn.base import Magnitudes
from ..topology import Topology
from ..topology.patterns import Unstructured
from .dense_gradient import DenseGradient

NOT_THE_MEAN = (
    "its .grad is not the mean of what the processes' backward passes have made of it: call rewirer.step() after a pass that synchronises "
    "(the last one outside of no_sync()), without a communication hook that compresses gradients; multiplying all of it, as "
    "clip_grad_norm_ does, is followed"
)
ELSEWHERE = "what was done to its gradient in another process cannot be told of absent connections (that process says what it was)"
ROUNDING = 5e-6  # share of the largest part that a mean over processes may be off, beside what its dtype rounds


@dataclass(frozen=True)
class SharedGradient:
    """The dense gradient of one layer in all processes that train it together: `AbsentGradients`.

    All processes ask the same, in the same order.

    Args:
        own: this process's; the gradient is the mean of all.
        processes: which have one.
        heard: whether the layer took part in any of them.
    """

    own: DenseGradient
    processes: Processes
    heard: bool

    @property
    def layer(self) -> TopologyLayer:
        return self.own.layer

    @property
    def empty(self) -> bool:
        """Whether the layer took no part in any process."""
        return not self.heard and not self.own.unknown

    @property
    def unknown(self) -> str:
        return self.own.unknown

    def scaled(self, factor: float) -> SharedGradient:
        return SharedGradient(self.own.scaled(factor), self.processes, self.heard)

    def plus(self, other: AnyGradient) -> SharedGradient:
        assert isinstance(other, SharedGradient)
        return SharedGradient(self.own.plus(other.own), self.processes, self.heard or other.heard)

    def rows(self, start: int, stop: int) -> Tensor:
        return self.processes.mean(self.own.rows(start, stop))

    def top(self, kept: Topology, count: int) -> Tensor:
        vacant = torch.tensor([min(count, kept.size - kept.nnz)], device="cpu")
        return Unstructured().highest_absent(kept, kept.shape, vacant, self)

    def at(self, positions: Topology) -> Tensor:
        return self.processes.mean(self.own.at(positions))

    def bounds(self) -> Magnitudes:
        rows, columns = self.own.bounds()
        return self.processes.mean(rows.clone()), self.processes.total(columns.clone())

    def state(self) -> dict[str, Any]:
        """This process's part, as plain values, for a checkpoint."""
        return {**self.own.state(), "of": (self.processes.rank, self.processes.size), "heard": self.heard}


AnyGradient = DenseGradient | SharedGradient


def loaded(layer: TopologyLayer, state: Mapping[str, Any], processes: Processes) -> AnyGradient | None:
    """A gradient from a checkpoint; None where this process's part of it is not in there."""
    own = DenseGradient.load(layer, state)
    of = state.get("of", (0, 1))
    if processes.size == 1:
        return own if of == (0, 1) else None
    if of == (0, 1):
        return SharedGradient(own, processes, not own.empty)  # what one process had alone is the mean, if all have it
    return SharedGradient(own, processes, state["heard"]) if tuple(of) == (processes.rank, processes.size) else None


def shared(
    gradients: Sequence[DenseGradient], parts: Sequence[Tensor], past: int, processes: Processes
) -> tuple[list[SharedGradient], bool]:
    """What `.grad` of each layer is made of in all processes: a number times the mean of what each has, or it cannot be told.

    Args:
        gradients: of each layer, as this process has recorded it.
        parts: [nnz] of each layer: the same at the connections.
        past: steps recorded before.
        processes: that train together.

    Returns:
        The gradients, and whether all processes have as many steps recorded before.
    """
    device = parts[0].device
    here = [
        (float(not one.empty), float(bool(one.unknown)), float(part.abs().max()) if part.numel() else 0.0)
        for one, part in zip(gradients, parts, strict=True)
    ]
    anywhere = processes.most(torch.tensor([*here, (past, -past, 0.0)], dtype=torch.float64, device=device)).tolist()
    most, least, _ = anywhere.pop()
    means = processes.means([part.clone() for part in parts])
    factors = [
        _factor(one, mean, bool(unknown), largest) for one, mean, (_, unknown, largest) in zip(gradients, means, anywhere, strict=True)
    ]
    told = processes.most(torch.tensor([float(isnan(factor)) for factor in factors], device=device)).tolist()
    found: list[SharedGradient] = []
    for one, factor, (heard, _, _), lost in zip(gradients, factors, anywhere, told, strict=True):
        if factor == 0.0 and not lost:
            found.append(SharedGradient(DenseGradient(one.layer), processes, heard=False))
            continue
        if lost and not one.unknown:
            one = DenseGradient(one.layer, unknown=NOT_THE_MEAN if isnan(factor) else ELSEWHERE)
        found.append(SharedGradient(one if lost else one.scaled(factor), processes, bool(heard)))
    return found, most == -least


def _factor(gradient: DenseGradient, mean: Tensor, unknown: bool, largest: float) -> float:
    """By which number `.grad` is the `mean` of all parts; 0 if it was discarded, NaN if it is not that or cannot be told.

    Args:
        largest: of all parts of all processes, by magnitude: rounding is measured by it.
    """
    layer = gradient.layer
    grad = layer.parameter.grad
    if grad is None or not bool(grad.any()):
        return 0.0 if unknown or bool(mean.any()) else 1.0
    if unknown:
        return nan
    now, mean = layer.of_connections(grad).double(), mean.double()
    squares = float(mean @ mean)
    if not squares:
        return nan
    off = ROUNDING + 8 * torch.finfo(grad.dtype).eps
    if bool((now - mean).abs().max() <= off * largest):
        return 1.0
    factor = float(now @ mean) / squares
    return factor if bool((now - factor * mean).abs().max() <= off * max(abs(factor) * largest, float(now.abs().max()))) else nan
