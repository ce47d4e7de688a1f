"""RigL: drop the smallest weights, grow where the dense gradient is largest. Evci et al. 2020, https://arxiv.org/abs/1911.11134"""

from __future__ import annotations

from typing import ClassVar

from ..topology import Topology
from ..topology.schedules import cosine
from .base import Signals, check_fraction, register


@register
class RigL:
    """Rigging the lottery (algorithm 1 of the paper), layer by layer.

    A connection that is dropped and has one of the largest gradients is grown again at once: it keeps its weight and its
    optimizer state. Others that grow start at zero.

    Args:
        fraction: alpha, the share of the connections replaced at first; it decays to 0 along a cosine.
    """

    fraction: float = 0.3

    replaces_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)

    def update(self, topology: Topology, signals: Signals) -> Topology:
        count = int(cosine(self.fraction, signals.progress) * topology.nnz)
        survivors = signals.pattern.drop(topology, signals.values.abs(), count)
        return signals.pattern.grow_highest(survivors, topology.nnz, signals.absent)
