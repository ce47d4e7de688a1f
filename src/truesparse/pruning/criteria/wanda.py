"""Wanda: weights count as much as what flows through them. Sun et al. 2023, https://arxiv.org/abs/2306.11695"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from ..base import Evidence, register


@register
class Wanda:
    """|w| times the norm of its input over the data, equation 1. The weights of one output compete with one another."""

    needs: ClassVar[tuple[str, ...]] = ("input_squares",)
    across: ClassVar[str] = "row"

    def scores(self, evidence: Evidence) -> Tensor:
        return evidence.weight.abs() * evidence["input_squares"].sqrt()
