"""SRigL: RigL with constant fan-in, and neurons with too little to say are ablated. Lasby et al. 2024, https://arxiv.org/abs/2305.02299"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..topology import Topology
from ..topology.patterns import FanIn, Pattern, shared_evenly
from ..topology.schedules import cosine
from ..topology.select import lowest
from .base import Signals, check_fraction, register


@register
class SRigL:
    """Structured RigL (section 3.1 of the paper), layer by layer.

    A connection is salient if RigL's two rankings over the whole layer want it: it is among the weights of largest magnitude that
    stay, or among the gradients of largest magnitude, as many as go. A neuron with too few salient connections is ablated, its row is
    empty, and the others share its connections; the layer keeps its count. Each update decides anew, so a neuron returns as
    soon as its gradients are large. The output layer (`Signals.output`) is never ablated: a class would vanish. Where it is dense
    (`sparsify(..., exclude=...)`) all sparse layers may be, the last hidden one too.

    Neurons that stay have equally many connections. Where the count does not divide, those with the most salient ones have one more.
    A neuron with more weights left than that keeps its largest; one with fewer grows where its gradient is largest.

    With `SharedFanIn` the neurons of a group are one to all of this: a connection is a column of the group, by the sum of its magnitudes,
    and groups are ablated whole. That is not in the paper.

    The paper's text ranks the gradients of absent connections for the salience; the authors' code, which made its figures, ranks those
    of all connections, and so does this. Their code differs otherwise: of an over-full neuron it keeps the first weights instead of
    the largest, and what does not divide is lost.

    Args:
        fraction: alpha, the share of the connections replaced at first; it decays to 0 along a cosine.
        gamma: share of the constant fan-in that must be salient for a neuron to stay: .3 for convolutional networks, .95 for
            transformers. 0 ablates nothing. It gives way where too few neurons would be left to hold the connections.
    """

    fraction: float = 0.3
    gamma: float = 0.3

    replaces_step: ClassVar[bool] = True
    default_pattern: ClassVar[Pattern] = FanIn()

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_fraction("gamma", self.gamma)

    def check_pattern(self, pattern: Pattern) -> None:
        if not isinstance(pattern, FanIn):
            raise ValueError(
                f"SRigL gives neurons a constant fan-in and ablates them, which {pattern} does not allow; "
                "use pattern=FanIn(), or SharedFanIn()"
            )

    def update(self, topology: Topology, signals: Signals) -> Topology:
        if not topology.nnz:
            return topology
        pattern, units = signals.pattern, signals.pattern.units(topology)
        height, width = pattern.unit(topology.shape)
        magnitudes = signals.values.abs()
        count = int(cosine(self.fraction, signals.progress) * units.nnz)
        salient = _salient(units.drop(lowest(pattern.pool(topology, magnitudes), count), distinct=True), topology, count, signals)
        active = salient >= self._threshold(units, salient, signals.output)
        due = shared_evenly(units.nnz, active, salient)
        # The weights of ablated neurons are the first of those that go, so that more of the others stay.
        ranked = magnitudes.masked_fill(~active[topology.rows // height], -1.0)
        survivors = pattern.drop(topology, ranked, count * height * width, due=due)
        return pattern.grow_highest(survivors, topology.nnz, signals.absent, due)

    def _threshold(self, units: Topology, salient: Tensor, output: bool) -> int | Tensor:
        """Salient connections that a neuron needs to stay."""
        if output or not self.gamma:
            return 0
        rows, columns = units.shape
        wanted = max(1, int(self.gamma * (units.nnz // rows)))
        # The neurons ranked before this one hold no more than all connections: without it, some might not fit.
        last = min(units.nnz // columns, rows - 1)
        return salient.sort(descending=True).values[last].clamp(max=wanted)


def _salient(kept: Topology, topology: Topology, count: int, signals: Signals) -> Tensor:
    """Of each row of units: those `kept` and those of the `count` largest gradients, each counted once."""
    nothing = kept.keep(torch.zeros_like(kept.indices, dtype=torch.bool), 0)
    steepest = signals.pattern.steepest_absent(nothing, topology.shape, torch.tensor([count], device="cpu"), signals.absent)
    return kept.fan_in.long().index_add(0, steepest // kept.shape[1], (~kept.contains(steepest)).long())
