"""Slimming: channels that their batch norm scales down go. Liu et al. 2017, https://arxiv.org/abs/1708.06519"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ...topology.patterns import Pattern
from ..base import Evidence, check_whole_neurons, register


@register
class Slimming:
    """|gamma| of the batch norm that follows. The channels of all layers compete.

    It is for networks that were trained with an L1 penalty on these scales. `data` only shows which batch norm follows which layer: a
    batch is enough.
    """

    needs: ClassVar[tuple[str, ...]] = ("output_scale",)
    across: ClassVar[str] = "network"

    def check_pattern(self, pattern: Pattern) -> None:
        check_whole_neurons(self, pattern)

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence["output_scale"][:, None].expand_as(evidence.weight)
