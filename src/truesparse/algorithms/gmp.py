"""GMP: drop the smallest weights, more and more of them; grow nothing. Zhu & Gupta 2017, https://arxiv.org/abs/1710.01878"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor

from ..topology import Topology
from ..topology.patterns import Pattern
from ..topology.schedules import cubic
from .base import Memory, Signals, check_count_may_change, check_fraction, left_to_each, pruned_so_far, register

SCORES: Mapping[str, Callable[[Signals], Tensor]] = {
    "magnitude": lambda layer: layer.values.abs(),
    "taylor": lambda layer: (layer.gradients * layer.values).abs(),
    "random": lambda layer: torch.rand(layer.topology.nnz, generator=layer.generator, device="cpu").to(layer.values),
}
"""[nnz] how much each connection matters, by the criterion's name: those that know each weight and its gradient, as training does."""


@register
class GMP:
    """Gradual magnitude pruning: the layers lose connections along the cubic of equation 1, from what they begin with to `sparsity`.

    The last rewiring reaches it exactly, over all layers together; with patterns that round, to less than the largest step of
    a layer. What is gone does not come back. No layer is pruned away: each keeps its strongest connection (with a pattern, its
    strongest unit in each group), which the others pay for, and a warning says which layer is nearly gone. The sparsity is that of
    the layers that train: a frozen one keeps what it has and counts for nothing.

    Args:
        sparsity: in the end, of all layers together.
        across: "network": all weights compete, as in most later work; "layers": each layer goes to `sparsity` by itself, as in the
            paper. What a layer lacks that begins sparser than that, the others have more.
        start_sparsity: that the model is made with. The paper starts dense.
        criterion: what goes first: the smallest "magnitude" |w|, as in the paper; "taylor", |g w| with the gradient of the step before,
            the loss that goes with a weight to first order (Molchanov et al. 2017, https://arxiv.org/abs/1611.06440); "random".
    """

    sparsity: float = 0.9
    across: str = "network"
    start_sparsity: float = 0.0
    criterion: str = "magnitude"

    needs_end: ClassVar[bool] = True
    keeps_count: ClassVar[bool] = False
    sees_absent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        check_fraction("start_sparsity", self.start_sparsity)
        if self.across not in ("network", "layers"):
            raise ValueError(f'across is "network" or "layers", got {self.across!r}')
        if self.start_sparsity > self.sparsity:
            raise ValueError(f"pruning goes from start_sparsity up to sparsity, got {self.start_sparsity} and {self.sparsity}")
        if self.criterion not in SCORES:
            raise ValueError(
                f"criterion is one of {', '.join(map(repr, SCORES))}, which look at weights and their gradients, got {self.criterion!r}: "
                "one that wants data, or whole layers, prunes between rounds of training, with prune() and pruning.rounds()"
            )

    def check_pattern(self, pattern: Pattern) -> None:
        check_count_may_change(self, pattern)

    def update_network(self, layers: Mapping[str, Signals], memory: Memory) -> tuple[Mapping[str, Topology], Memory]:
        shares = None
        if self.across == "layers":
            shares = [cubic(one.budget, one.topology.size * (1 - self.sparsity), pruned_so_far(one)) for one in layers.values()]
        scores = {name: SCORES[self.criterion](one) for name, one in layers.items()}
        counts = left_to_each(layers, self.sparsity, scores, shares)
        return {name: one.pattern.trim(one.topology, scores[name], counts[name]) for name, one in layers.items()}, memory
