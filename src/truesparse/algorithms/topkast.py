"""TopKAST: the largest weights act, more of them are trained. Jayakumar et al. 2020, https://arxiv.org/abs/2106.03517"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..topology import Move, Topology
from ..topology.patterns import Pattern
from .base import Signals, check_at_least_zero, check_fraction, register


@register
class TopKAST:
    """Top-K always sparse training: the forward pass has the set A of the largest |w|, the backward pass a larger set B.

    A holds as many connections as the layer had when training began, its budget. Those in B but not in A exist and are trained, by
    the gradients they would have if they acted, but the layer computes without them. At each update A becomes the largest |w| of B.
    Before the first update B is A; at the last one only A remains. A penalty pulls all of B to zero, what is outside A by 1 / D
    times as much, where D is the density of A: a weight must earn its place.

    The paper chooses B too by the largest |w|, of a dense array that keeps the weight of every position. Nothing dense is held
    here: of what is in B but not in A, the weakest give way at each update to random new connections that start at zero. With an
    `exploration` that makes B the whole layer there is nothing to leave out, and this is the paper's rule exactly.

    Args:
        exploration: how many connections B holds beside A, as a share of A. The paper's runs on ImageNet have 1 to 1.5.
        renewal: share of those that give way at each update.
        penalty_weight: lambda of the penalty; 0 leaves it out.
        norm: 2 for lambda / 2 w^2, 1 for lambda |w|.
    """

    exploration: float = 1.0
    renewal: float = 0.3
    penalty_weight: float = 1e-4
    norm: int = 2

    keeps_count: ClassVar[bool] = False
    sees_absent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_at_least_zero("exploration", self.exploration)
        check_fraction("renewal", self.renewal)
        check_at_least_zero("penalty_weight", self.penalty_weight)
        if self.norm not in (1, 2):
            raise ValueError(f"norm is 1 or 2, got {self.norm!r}")

    def check_pattern(self, pattern: Pattern) -> None:
        if pattern.fixes_count:
            raise ValueError(f"TopKAST trains more connections than act, and {pattern} fixes their count")

    def penalty(self, signals: Signals) -> Tensor:
        """[nnz] lambda w, or lambda sign(w), and 1 / D times that where a connection does not act."""
        pull = self.penalty_weight * (signals.values if self.norm == 2 else signals.values.sign())
        if signals.acting is None:
            return pull
        return torch.where(signals.acting, pull, pull * (signals.topology.size / max(signals.budget, 1)))

    def update(self, topology: Topology, signals: Signals) -> Move:
        pattern, magnitudes = signals.pattern, signals.values.abs()
        best = pattern.prune(topology, magnitudes, signals.budget)
        if signals.last:
            return Move.between(topology, best)
        held = pattern.round(topology.shape, min(int((1 + self.exploration) * signals.budget), topology.size))
        explored = int(self.renewal * (topology.nnz - best.nnz)) if topology.nnz < topology.size else 0
        kept = pattern.drop(topology, magnitudes.masked_fill(best.contains(topology.keys), torch.inf), explored)
        new = pattern.grow_random(kept, held, signals.generator)
        return Move.through(topology, kept, new, acting=best.contains(new.keys))
