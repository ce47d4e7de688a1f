"""LAMP: a weight counts by its share of all that are at least as large. Lee et al. 2021, https://arxiv.org/abs/2010.07611"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..base import Evidence, register


@register
class LAMP:
    """w^2 over the sum of the squares of the weights of its layer that are at least as large. All layers compete.

    Within a layer the order is that of magnitude; between layers the scores decide how many each keeps, and the largest of each has 1.
    """

    across: ClassVar[str] = "network"

    def scores(self, evidence: Evidence) -> Tensor:
        squares = evidence.weight.double().square()
        ascending = (evidence.weight if evidence.whole is None else evidence.whole).double().square().flatten().sort().values
        at_least = ascending.flip(0).cumsum(0).flip(0)
        return squares / at_least[torch.searchsorted(ascending, squares.contiguous())].clamp(min=torch.finfo(torch.float64).tiny)
