"""Magnitude: the smallest weights go. Han et al. 2015, https://arxiv.org/abs/1506.02626"""

from __future__ import annotations

from torch import Tensor

from ..base import Evidence, register


@register
class Magnitude:
    """|w|, in a unit of several weights the sum of their magnitudes."""

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence.weight.abs()
