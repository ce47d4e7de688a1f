"""How has a layer lived? Measures of the topologies it went through, one value a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics.history import Explored, Lineage
from ..metrics.topologies import change_of, fan_in, fan_out
from ..topology import Move
from ..topology.geometry import Geometry
from .run import Stage


@dataclass(frozen=True, eq=False)
class Evolution:
    """Measures of a layer. Every sequence has an entry for each stage; the first stage is the beginning.

    A connection dropped and grown again at the same place counts as one that stayed: masks do not tell.

    Attributes:
        steps: steps of training behind the stage.
        connections: that exist.
        dropped, grown: by the update.
        hamming: mask distance to the stage before: (dropped + grown) / positions. 0 at the first.
        jaccard: the same relative to the connections: 1 - both / either. 0 at the first.
        itop: share of positions that have ever held a connection.
        itop_one_in: 1: exact; s: of a layer of more than 4 million positions, estimated from one position in s.
        births: stages at which the groups of `alive` begin; the first is 0, the connections of the beginning.
        alive: [stages, groups] int64: how many of the connections that a group's stages grew live at each stage.
        survival: share of the first connections that have lived ever since.
        ages: how many of the connections at the end have which age, in steps; the youngest first.
        fan_in: for each stage [width] int64, how many output neurons have 0, 1, 2, ... connections.
        fan_out: the same of input neurons. In a convolution an input neuron is a channel.
    """

    steps: tuple[int, ...]
    connections: tuple[int, ...]
    dropped: tuple[int, ...]
    grown: tuple[int, ...]
    hamming: tuple[float, ...]
    jaccard: tuple[float, ...]
    itop: tuple[float, ...]
    itop_one_in: int
    births: tuple[int, ...]
    alive: Tensor
    survival: tuple[float, ...]
    ages: Mapping[int, int]
    fan_in: tuple[Tensor, ...]
    fan_out: tuple[Tensor, ...]

    @property
    def dead_outputs(self) -> tuple[int, ...]:
        """Output neurons without a connection: ablated, or never connected."""
        return tuple(int(counts[0]) for counts in self.fan_in)

    @property
    def dead_inputs(self) -> tuple[int, ...]:
        """Input neurons that nothing looks at."""
        return tuple(int(counts[0]) for counts in self.fan_out)


def evolution(geometry: Geometry, stages: Iterable[Stage], births: Sequence[int] | None = None) -> Evolution:
    """The measures of a layer, in one pass over its stages.

    Args:
        geometry: of the layer.
        stages: at least one.
        births: ascending numbers of the stages at which groups of connections that are told apart by age begin, from 0; None: each
            stage is a group, which takes stages x stages numbers.

    Raises:
        ValueError: if there is no stage.
    """
    before: Stage | None = None
    explored, lineage = None, None
    changes, rates, alive, firsts, inputs, outputs, steps, connections = [], [], [], [], [], [], [], []
    for stage in stages:
        if before is None or explored is None or lineage is None:
            explored, lineage = Explored.begin(stage.topology), Lineage.begin(stage.topology)
            move = Move.between(stage.topology, stage.topology)
        else:
            move = Move.between(before.topology, stage.topology)
            explored, lineage = explored.after(stage.grown), lineage.after(move)
        changes.append(change_of(move, stage.grown))
        rates.append(explored.rate)
        living = lineage.alive
        alive.append(living if births is None else _grouped(living, births))
        firsts.append(int(living[0]))
        inputs.append(torch.bincount(fan_in(stage.topology, geometry), minlength=1))
        outputs.append(torch.bincount(fan_out(stage.topology, geometry), minlength=1))
        steps.append(stage.step)
        connections.append(stage.topology.nnz)
        before = stage
    if explored is None or lineage is None:
        raise ValueError("expected the stages of a layer, got none")
    groups = range(len(steps)) if births is None else births
    by_age = reversed(list(zip(steps, lineage.alive.tolist(), strict=True)))
    return Evolution(
        steps=tuple(steps),
        connections=tuple(connections),
        dropped=tuple(change.dropped for change in changes),
        grown=tuple(change.grown for change in changes),
        hamming=tuple(change.hamming for change in changes),
        jaccard=tuple(change.jaccard for change in changes),
        itop=tuple(rates),
        itop_one_in=explored.one_in,
        births=tuple(groups),
        alive=torch.stack([torch.nn.functional.pad(counts, (0, len(groups) - counts.numel())) for counts in alive]),
        survival=tuple(first / firsts[0] if firsts[0] else 0.0 for first in firsts),
        ages={steps[-1] - born: count for born, count in by_age if count},
        fan_in=tuple(inputs),
        fan_out=tuple(outputs),
    )


def _grouped(alive: Tensor, births: Sequence[int]) -> Tensor:
    """[groups] sums of `alive`, which has an entry for each stage so far."""
    below = torch.nn.functional.pad(alive.cumsum(0), (1, 0))
    edges = torch.tensor([*births, alive.numel()], device="cpu").clamp_(max=alive.numel())
    return below[edges].diff()
