"""Taylor: what changes the loss of the samples least goes, to first order. Molchanov et al. 2017, https://arxiv.org/abs/1611.06440"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..base import Evidence, register


@register
class Taylor:
    """The mean of |g w| over the samples, g the gradient of the loss of each sample alone.

    In a trained network gradients cancel over the data and say nothing; those of single samples do not. Molchanov et al. 2019 take squares
    in the place of magnitudes, which is `OBD()`. A unit of several weights has their sum.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient_magnitudes",)

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence["gradient_magnitudes"] * evidence.weight.abs()
