"""MEST: drop by weight and gradient together, grow at random. Yuan et al. 2021, https://arxiv.org/abs/2110.14032"""

from __future__ import annotations

from typing import ClassVar

from ..topology import Move, Topology
from ..topology.patterns import Pattern
from .base import Signals, check_at_least_zero, check_fraction, register

HALVED = 0.75  # progress at which the authors' scripts halve the mutation: epoch 90, where rewiring ends at 120


@register
class MEST:
    """Memory-economic sparse training: elastic mutation (EM), and with a soft memory bound (EM&S).

    An update keeps the most important connections, |w| + lambda |g|, and grows random ones that start at zero. What was just
    dropped may be drawn again, and then starts anew. How much is exchanged stays constant for three quarters of the time, is
    halved then, and is nothing at the last rewiring.

    EM (`extra = 0`) keeps `1 - fraction` of the budget and grows back to it: the count never changes. EM&S (`extra > 0`) lets the
    layer hold more than its budget between two updates, so that new connections are trained before older ones must go: an update
    prunes back to the budget first, mutates, and grows `extra` on top. After the last rewiring the layer holds exactly its budget;
    a `Rewirer` without `until` never gets there.

    The authors' scripts for 90 % sparsity are `MEST(fraction=0.2, gradient_weight=0)` for EM, `MEST(fraction=0, gradient_weight=0,
    extra=0.5)` for EM&S: their lambda is 0, which leaves |w| alone, though the paper has it above.

    Args:
        fraction: share of the budget that is dropped and grown.
        gradient_weight: lambda, what a gradient counts beside a weight.
        extra: share of the budget that the layer may hold on top of it.
    """

    fraction: float = 0.2
    gradient_weight: float = 0.01
    extra: float = 0.0

    sees_absent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_at_least_zero("gradient_weight", self.gradient_weight)
        check_at_least_zero("extra", self.extra)

    @property
    def keeps_count(self) -> bool:
        """Whether a layer always holds its budget."""
        return not self.extra

    def check_pattern(self, pattern: Pattern) -> None:
        if self.extra and pattern.fixes_count:
            raise ValueError(f"MEST with extra={self.extra} lets a layer hold more than its budget, and {pattern} fixes the count")

    def update(self, topology: Topology, signals: Signals) -> Move:
        pattern, budget = signals.pattern, signals.budget
        if budget == topology.size:  # nowhere else to grow: an update would only reset weights
            return Move.between(topology, topology)
        importance = signals.values.abs() + self.gradient_weight * signals.gradients.abs()
        within = pattern.prune(topology, importance, budget)
        share = 0.0 if signals.last else 0.5 if signals.progress >= HALVED else 1.0
        kept = pattern.drop(within, Move.between(topology, within)(importance), int(share * self.fraction * budget))
        room = topology.size - budget
        held = pattern.round(topology.shape, budget + min(int(share * self.extra * budget), room)) if self.extra else budget
        return Move.through(topology, kept, pattern.grow_random(kept, held, signals.generator))
