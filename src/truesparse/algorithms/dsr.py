"""DSR: drop what is under one threshold for all layers, grow at random. Mostafa & Wang 2019, https://arxiv.org/abs/1902.05967"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar

import torch

from ..topology import Move, Topology
from ..topology.patterns import Pattern
from ..topology.select import highest, shared_out
from .base import Memory, Signals, check_count_may_change, check_fraction, due_together, held_at_least, register


@register
class DSR:
    """Dynamic sparse reparameterization (algorithm 1 of the paper).

    Every connection under the threshold goes. As many grow at random, shared out among the layers in proportion to what
    survived there, with zero weight and zero state also where one has just been dropped. The threshold then doubles if fewer
    went than wanted, and halves if more, for the next rewiring. What a full layer cannot take goes to the others in equal parts. A layer
    of which all is under the threshold keeps its largest.

    The paper rewires every 100 to 800 iterations (every 1000 to 8000 on ImageNet), until shortly before the end. The authors' code does
    not grow again what it has just pruned; here it may be drawn like any other position, and starts anew.

    Args:
        fraction: of all connections that should go at each rewiring: the paper's N_p. The authors' code calls it 1 % of all positions, and
            it is 1.38 %: at 90 % sparsity 0.14 of the connections.
        tolerance: delta, by what share the count may differ from that before the threshold changes.
        threshold: H at first.
    """

    fraction: float = 0.1
    tolerance: float = 0.1
    threshold: float = 1e-3

    rewiring_ends: ClassVar[float] = 0.95
    sees_absent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance is a share of the count that should go, at least 0, got {self.tolerance}")
        if not self.threshold > 0:
            raise ValueError(f"threshold is a magnitude that doubling and halving change, more than 0, got {self.threshold}")

    def check_pattern(self, pattern: Pattern) -> None:
        check_count_may_change(self, pattern)

    def update_network(self, layers: Mapping[str, Signals], memory: Memory) -> tuple[Mapping[str, Move], Memory]:
        given = list(layers.values())
        threshold = float(memory.get("threshold", self.threshold))
        survivors = [_over(threshold, one) for one in given]
        surviving, sizes = [kept.nnz for kept in survivors], [one.topology.size for one in given]
        due = due_together(given, memory)
        total = min(due, sum(sizes))
        counts = shared_out(
            total,
            surviving,
            surviving,
            sizes,
            [one.pattern.step(one.topology.shape) for one in given],
            [held_at_least(one) for one in given],
        )
        dropped = sum(one.topology.nnz for one in given) - sum(surviving)
        moves = {name: _regrown(one, kept, count) for (name, one), kept, count in zip(layers.items(), survivors, counts, strict=True)}
        return moves, {"threshold": self._next(threshold, dropped, total), "owed": due - sum(counts)}

    def _next(self, threshold: float, dropped: int, total: int) -> float:
        wanted = self.fraction * total
        if dropped < wanted * (1 - self.tolerance):
            return threshold * 2
        return threshold / 2 if dropped > wanted * (1 + self.tolerance) else threshold


def _over(threshold: float, layer: Signals) -> Topology:
    connections = prod(layer.pattern.unit(layer.topology.shape))
    magnitudes = layer.pattern.pool(layer.topology, layer.values.abs()) / connections
    under = magnitudes < threshold
    if bool(under.all()):  # the last one stays: of nothing nothing would grow, ever again
        under &= ~highest(magnitudes[None], torch.tensor([min(1, magnitudes.numel())], device=under.device))[0]
    return layer.pattern.drop_units(layer.topology, under.nonzero().squeeze(1))


def _regrown(layer: Signals, kept: Topology, count: int) -> Move:
    trimmed = layer.pattern.trim(kept, Move.between(layer.topology, kept)(layer.values.abs()), count)
    return Move.through(layer.topology, trimmed, layer.pattern.grow_random(trimmed, count, layer.generator))
