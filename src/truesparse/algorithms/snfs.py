"""SNFS: drop the smallest weights, grow where momentum is largest. Dettmers & Zettlemoyer 2019, https://arxiv.org/abs/1907.04840"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import ClassVar

from ..topology import Move, Topology
from ..topology.patterns import Pattern
from ..topology.schedules import cosine
from ..topology.select import shared_out
from .base import Memory, Signals, check_count_may_change, check_fraction, due_together, held_at_least, register

NEARLY_FULL = 0.2  # the sparsity under which the authors' code spares a layer that wants to grow


@register
class SNFS:
    """Sparse networks from scratch: sparse momentum; the paper rewires after every epoch.

    Each layer drops a share of its smallest weights. What all have dropped grows again in proportion to the mean absolute
    momentum of each layer's connections before the drop, and within a layer where the absolute momentum of what is absent, just
    dropped or not, is largest (Adam: the first moment over the root of the second). What a full layer cannot take goes to
    the others in equal parts. A nearly full layer of more than average momentum drops no larger share than its sparsity.

    The paper keeps a dense momentum. Here it is formed from the last `window` steps, whose inputs and output gradients are kept,
    and never held whole. It is the paper's as long as no more steps than that have passed. Later it lacks what is older: the
    weight beta^window of all gradients, 0.12 with momentum 0.9 and 20 steps. Adam divides by the root of its second moment, nearly all of
    which is older than a window. That part is taken from the connections there are, and spread over absent ones by a factor for each row
    and one for each column. Of what a dense momentum of 200 steps would grow, the window then finds 69 to 100 % of each layer under Adam
    (33 and 47 % of the first two without that part), and 84 to 100 % under SGD: a network for digits of 8 x 8 at 80 %, in the tests.
    Records begin anew at each rewiring, so a window longer than the steps between two rewirings is no longer than these.

    Grown connections start with zero weight and zero state; the paper's dense momentum would let them start with theirs. A connection
    dropped and grown again keeps both, as in the authors' code, which rounds the dropped share up.

    Args:
        fraction: the share of the connections replaced at first; it decays to 0 along a cosine.
        window: steps whose gradients make the momentum of absent connections.
    """

    fraction: float = 0.5
    window: int = 20

    each_epoch: ClassVar[bool] = True
    rewiring_ends: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window is a number of steps, at least 1, got {self.window!r}")

    def check_pattern(self, pattern: Pattern) -> None:
        check_count_may_change(self, pattern)

    def update_network(self, layers: Mapping[str, Signals], memory: Memory) -> tuple[Mapping[str, Topology], Memory]:
        given = list(layers.values())
        importance = [_importance(one) for one in given]
        average = sum(importance) / len(importance)
        survivors = [self._survivors(one, mine > average) for one, mine in zip(given, importance, strict=True)]
        sizes = [one.topology.size for one in given]
        due = due_together(given, memory)
        counts = shared_out(
            min(due, sum(sizes)),
            importance,
            [kept.nnz for kept in survivors],
            sizes,
            [one.pattern.step(one.topology.shape) for one in given],
            [held_at_least(one) for one in given],
        )
        return {
            name: one.pattern.grow_highest(_trimmed(one, kept, count), count, one.absent_momentum)
            for (name, one), kept, count in zip(layers.items(), survivors, counts, strict=True)
        }, {"owed": due - sum(counts)}

    def _survivors(self, layer: Signals, important: bool) -> Topology:
        share, sparsity = cosine(self.fraction, layer.progress), layer.topology.sparsity
        if important and sparsity < NEARLY_FULL:
            share = min(share, sparsity)
        return layer.pattern.drop(layer.topology, layer.values.abs(), int(share * layer.topology.nnz))


def _importance(layer: Signals) -> float:
    mean = float(layer.momentum.abs().mean()) if layer.topology.nnz else 0.0
    return mean if isfinite(mean) else 0.0  # a layer that has diverged asks for nothing


def _trimmed(layer: Signals, kept: Topology, count: int) -> Topology:
    return layer.pattern.trim(kept, Move.between(layer.topology, kept)(layer.values.abs()), count)
