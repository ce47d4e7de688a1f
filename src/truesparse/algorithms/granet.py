"""GraNet: gradually fewer, the smallest weights of all go; then RigL in each layer. Liu et al. 2021, https://arxiv.org/abs/2106.10404"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..topology import Move
from ..topology.patterns import Pattern
from ..topology.schedules import cosine
from .base import Memory, Signals, check_count_may_change, check_fraction, left_to_each, register


@register
class GraNet:
    """Gradual pruning with zero-cost neuroregeneration.

    First the smallest weights of all layers together go, along the cubic of equation 2 from what the layers begin with to
    `sparsity`, which the last rewiring reaches exactly (with patterns that round, to less than the largest step of a layer); no layer
    is pruned away, see `GMP`. Then each layer drops a share of its smallest weights and grows as many where the gradient is largest.

    What the second step drops and grows again keeps its weight and optimizer state; what the first step pruned and the second
    grows starts at zero. So it is in the authors' code, which differs in small things: it rounds the dropped share up, loses all
    weights that tie with the largest pruned one, and goes on renewing after pruning has ended: its share decays over the whole
    training, which is known to nobody here. Here pruning and renewing end together, at `until`.

    Args:
        sparsity: in the end, of all layers together.
        fraction: the share of each layer that is renewed at first; it decays to 0 along a cosine.
        start_sparsity: that the model is made with: 0.5 (the paper's sparse start) or 0.0 (dense).
    """

    sparsity: float = 0.9
    fraction: float = 0.5
    start_sparsity: float = 0.5

    needs_end: ClassVar[bool] = True
    keeps_count: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("sparsity", self.sparsity)
        check_fraction("fraction", self.fraction)
        check_fraction("start_sparsity", self.start_sparsity)
        if self.start_sparsity > self.sparsity:
            raise ValueError(f"pruning goes from start_sparsity up to sparsity, got {self.start_sparsity} and {self.sparsity}")

    def check_pattern(self, pattern: Pattern) -> None:
        check_count_may_change(self, pattern)

    def update_network(self, layers: Mapping[str, Signals], memory: Memory) -> tuple[Mapping[str, Move], Memory]:
        magnitudes = {name: one.values.abs() for name, one in layers.items()}
        counts = left_to_each(layers, self.sparsity, magnitudes)
        return {name: self._renewed(one, counts[name]) for name, one in layers.items()}, memory

    def _renewed(self, layer: Signals, count: int) -> Move:
        magnitudes = layer.values.abs()
        pruned = layer.pattern.trim(layer.topology, magnitudes, count)
        weakest = int(cosine(self.fraction, layer.progress) * pruned.nnz)
        kept = layer.pattern.drop(pruned, Move.between(layer.topology, pruned)(magnitudes), weakest)
        return Move.through(layer.topology, pruned, layer.pattern.grow_highest(kept, pruned.nnz, layer.absent))
