"""SET: drop the weights nearest zero of each sign, grow at random. Mocanu et al. 2018, https://arxiv.org/abs/1707.04780"""

from __future__ import annotations

from typing import ClassVar

import torch

from ..topology import Move, Topology
from ..topology.merge import places
from ..topology.schedules import cosine
from ..topology.select import lowest
from .base import Signals, check_fraction, register


@register
class SET:
    """Sparse evolutionary training (algorithm 1 of the paper); the paper rewires after every epoch.

    Args:
        fraction: zeta, the share of the positive and of the negative weights that goes: those nearest zero.
        grown_std: standard deviation of the normal values of grown connections; 0 starts them at zero.
        decay: whether zeta falls to 0 along a cosine, as in SET-ITOP (Liu et al. 2021, https://arxiv.org/abs/2102.02887, whose
            published code then drops without regard to sign).
    """

    fraction: float = 0.3
    grown_std: float = 0.0
    decay: bool = False

    each_epoch: ClassVar[bool] = True
    rewiring_ends: ClassVar[float] = 1.0
    sees_absent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        if not self.grown_std >= 0:
            raise ValueError(f"grown_std is a standard deviation, at least 0, got {self.grown_std}")

    def update(self, topology: Topology, signals: Signals) -> Move:
        if topology.nnz == topology.size:  # nowhere else to grow: rewiring would only reset weights
            return Move.between(topology, topology)
        # Of a unit of several connections: the sign of its sum, and the sum of its magnitudes.
        negative = signals.pattern.pool(topology, signals.values) < 0
        magnitudes = signals.pattern.pool(topology, signals.values.abs())
        fraction = cosine(self.fraction, signals.progress) if self.decay else self.fraction
        below = int(negative.sum())
        # A weight of exactly zero has no sign and is nearest to zero: it goes first.
        sides = places(~negative, negative.numel() - below), places(negative, below)
        dropped = [side[lowest(magnitudes[side], int(fraction * side.numel()))] for side in sides]
        excess = signals.pattern.excess(topology, magnitudes)
        survivors = signals.pattern.drop_units(topology, torch.cat([*dropped, excess]), distinct=not excess.numel())
        grown = signals.pattern.grow_random(survivors, topology.nnz, signals.generator)
        # What was just dropped may be drawn again, and then starts anew like any other grown connection.
        return Move.through(topology, survivors, grown, self._initial(grown.nnz - survivors.nnz, signals))

    def _initial(self, count: int, signals: Signals) -> torch.Tensor | None:
        return torch.randn(count, generator=signals.generator, device="cpu") * self.grown_std if self.grown_std else None
