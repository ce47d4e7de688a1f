"""APoZ: neurons that are mostly silent go. Hu et al. 2016, https://arxiv.org/abs/1607.03250"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ...topology.patterns import Pattern
from ..base import Evidence, check_whole_neurons, register


@register
class APoZ:
    """One less the average percentage of zeros of a neuron behind its ReLU, over all samples and positions.

    Zero is what a ReLU makes zero of the layer's output, or of the batch norm's that follows it.
    """

    needs: ClassVar[tuple[str, ...]] = ("output_activity",)

    def check_pattern(self, pattern: Pattern) -> None:
        check_whole_neurons(self, pattern)

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence["output_activity"][:, None].expand_as(evidence.weight)
