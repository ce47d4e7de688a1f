"""GraSP: what carries the flow of gradients stays, before training. Wang et al. 2020, https://arxiv.org/abs/2002.07376"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..base import Evidence, register


@register
class GraSP:
    """w (H g): by how much |g|^2 falls, to first order and up to a factor, if the weight goes, the paper's score with its sign reversed.

    Weights with negative scores hold the gradient back and go first. For networks that are not trained yet, as `SNIP`. Where the paper's
    code divides the logits by 200, that belongs to the loss: `loss=lambda y, target: F.cross_entropy(y / 200, target)`.
    """

    needs: ClassVar[tuple[str, ...]] = ("hessian_gradient",)
    across: ClassVar[str] = "network"

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence.weight * evidence["hessian_gradient"]
