"""SynFlow: what many paths lead through stays, whatever the data. Tanaka et al. 2020, https://arxiv.org/abs/2006.05467"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..base import Evidence, register


@register
class SynFlow:
    """w dR/dw, R the output for an input of ones of the network of absolute weights; taken anew in each round.

    For networks that are not trained yet. Of `data` only the shape of the first batch counts: `data=[torch.ones(1, 3, 32, 32)]`.

    Args:
        rounds: in which the connections left fall to their number by a constant factor, 100 in the paper: a single one may empty a layer.
    """

    rounds: int = 100
    needs: ClassVar[tuple[str, ...]] = ("synaptic_flow",)
    across: ClassVar[str] = "network"

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"SynFlow takes 1 round or more, got rounds={self.rounds}")

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence["synaptic_flow"]
