"""OBD: what raises the loss least goes, by its curvature. LeCun et al. 1989, https://papers.nips.cc/paper/250-optimal-brain-damage"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from ..base import Evidence, register

Curvature = Literal["fisher", "hessian"]
MEASURED = {"fisher": "gradient_squares", "hessian": "hessian_diagonal"}


@register
class OBD:
    """h w^2 / 2, h the second derivative of the loss by the weight, for trained networks, whose gradient is nearly zero.

    Args:
        curvature: "fisher": h is the mean square of the gradients of single samples, which is never negative (Theis et al. 2018,
            https://arxiv.org/abs/1801.05787). "hessian": the diagonal of the Hessian itself, as Hutchinson's 32 random vectors estimate it.
    """

    curvature: Curvature = "fisher"

    def __post_init__(self) -> None:
        if self.curvature not in get_args(Curvature):
            raise ValueError(f"curvature is one of {', '.join(map(repr, get_args(Curvature)))}, got {self.curvature!r}")

    @property
    def needs(self) -> tuple[str, ...]:
        return (MEASURED[self.curvature],)

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence[MEASURED[self.curvature]] * evidence.weight.square() / 2
