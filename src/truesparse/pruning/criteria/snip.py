"""SNIP: what changes the loss least goes, before training. Lee et al. 2019, https://arxiv.org/abs/1810.02340"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..base import Evidence, register


@register
class SNIP:
    """|g w|, the gradient of the loss by a factor of the weight, without its normalisation, which changes no order.

    For networks that are not trained yet; batch norms that have seen no data normalise by the batch. All weights of all layers compete.
    `data` may be one batch, of some samples of each class.
    """

    needs: ClassVar[tuple[str, ...]] = ("gradient",)
    across: ClassVar[str] = "network"

    def scores(self, evidence: Evidence) -> Tensor:
        return (evidence["gradient"] * evidence.weight).abs()
