"""How has a layer lived? Measures of the topologies it went through, one value a stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import Geometry
from ..metrics.history import Explored, Lineage
from ..metrics.topologies import change_of, fan_in, fan_out
from ..topology import Move
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
        alive: [stages, stages] int64; row `s`, column `b`: how many of the connections that stage `b` grew live at stage `s`.
            Column 0 is those of the beginning.
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
    alive: Tensor
    fan_in: tuple[Tensor, ...]
    fan_out: tuple[Tensor, ...]

    @property
    def survival(self) -> tuple[float, ...]:
        """Share of the first connections that have lived ever since."""
        first = int(self.alive[0, 0])
        return tuple((self.alive[:, 0] / first).tolist()) if first else tuple(0.0 for _ in self.steps)

    @property
    def ages(self) -> dict[int, int]:
        """How many of the connections at the end have which age, in steps; the youngest first."""
        counts = self.alive[-1].tolist()
        return {self.steps[-1] - born: count for born, count in reversed(list(zip(self.steps, counts, strict=True))) if count}

    @property
    def dead_outputs(self) -> tuple[int, ...]:
        """Output neurons without a connection: ablated, or never connected."""
        return tuple(int(counts[0]) for counts in self.fan_in)

    @property
    def dead_inputs(self) -> tuple[int, ...]:
        """Input neurons that nothing looks at."""
        return tuple(int(counts[0]) for counts in self.fan_out)


def evolution(geometry: Geometry, stages: Iterable[Stage]) -> Evolution:
    """The measures of a layer with that geometry, in one pass over its stages (at least one)."""
    before: Stage | None = None
    explored, lineage = None, None
    changes, rates, alive, inputs, outputs, steps, connections = [], [], [], [], [], [], []
    for stage in stages:
        if before is None or explored is None or lineage is None:
            explored, lineage = Explored.begin(stage.topology), Lineage.begin(stage.topology)
            move = Move.between(stage.topology, stage.topology)
        else:
            move = Move.between(before.topology, stage.topology)
            explored, lineage = explored.after(stage.grown), lineage.after(move)
        changes.append(change_of(move, stage.grown))
        rates.append(explored.rate)
        alive.append(lineage.alive)
        inputs.append(torch.bincount(fan_in(stage.topology), minlength=1))
        outputs.append(torch.bincount(fan_out(stage.topology, geometry), minlength=1))
        steps.append(stage.step)
        connections.append(stage.topology.nnz)
        before = stage
    if explored is None:
        raise ValueError("expected the stages of a layer, got none")
    return Evolution(
        steps=tuple(steps),
        connections=tuple(connections),
        dropped=tuple(change.dropped for change in changes),
        grown=tuple(change.grown for change in changes),
        hamming=tuple(change.hamming for change in changes),
        jaccard=tuple(change.jaccard for change in changes),
        itop=tuple(rates),
        itop_one_in=explored.one_in,
        alive=torch.stack([torch.nn.functional.pad(counts, (0, len(alive) - counts.numel())) for counts in alive]),
        fan_in=tuple(inputs),
        fan_out=tuple(outputs),
    )
