"""Magnitude: the smallest weights go, or the units of smallest norm. Han et al. 2015, https://arxiv.org/abs/1506.02626"""

from __future__ import annotations

from torch import Tensor

from ..base import Evidence, register


@register
class Magnitude:
    """|w|^power, in a unit of several weights their sum: with the pattern `Neurons` the norm of each filter.

    Args:
        power: 1 is the L1 norm, as Li et al. 2017 have it for filters (https://arxiv.org/abs/1608.08710); 2 the L2 norm, as He et al. 2018
            (https://arxiv.org/abs/1808.06866). Single weights of one layer have the same order by both.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.power < float("inf"):
            raise ValueError(f"power is a positive number, 1 or 2 mostly, got {self.power}")

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence.weight.abs() ** self.power
