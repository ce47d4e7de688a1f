"""Movement: weights that training moves towards zero go. Sanh et al. 2020, https://arxiv.org/abs/2005.07683"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..base import Evidence, register
from ..history import History


@register
class Movement:
    """The sum of -w g over the steps of training: above zero where they have led away from zero.

        history = ts.pruning.History(model)
        ...                                                       # fine-tune in any loop
        ts.prune(model, 0.85, ts.criteria.Movement(history))

    Args:
        history: of the model, from before it was trained.
    """

    history: History | None = None

    @property
    def needs(self) -> tuple[Callable[..., Any], ...]:
        if self.history is None:
            raise ValueError(
                "movement is what training does to the weights: make history = ts.pruning.History(model) before it, and pass "
                "criterion=ts.criteria.Movement(history) after it"
            )
        return (self.history.movement,)

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence["movement"]
