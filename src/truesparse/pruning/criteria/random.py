"""Random: any weights go. What every criterion is to be compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base import Evidence, register


@register
class Random:
    """Uniform random scores, drawn from the generator."""

    def scores(self, evidence: Evidence) -> Tensor:
        return torch.rand(evidence.weight.shape, generator=evidence.generator, device="cpu").to(evidence.weight.device)
