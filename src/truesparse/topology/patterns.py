"""Which topologies are legal, and who competes with whom?

A pattern is two numbers. Its *unit* is the block of connections that live and die together (one connection, b x b of
them, or a whole row). Its *group* is a run of neighbouring units that holds the same number of connected ones as every other: the
whole layer, a row, or a window of m inputs. Everything else follows from the two, so no algorithm needs to know a
pattern by name: it drops the weakest units of the layer, and each group grows back to its due. What neighbours are is said in three
places, `_group_of`, `_highest_of_groups` and `_random_absent`: units next to one another, but for the channels of a convolution (`NM`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Protocol

import torch
from torch import Tensor

from . import merge
from .geometry import Geometry
from .select import are_lowest_of_each, highest, lowest, lowest_of_each, random_absent
from .topology import Topology
from .units import block_of_each, blocks_of, connections_of

Shape = tuple[int, int]

SLAB_ENTRIES = 1 << 20  # entries of a dense gradient held at one time


class AbsentGradients(Protocol):
    """The dense gradient of one layer, available without ever being held whole."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the dense gradient, [stop - start, columns]."""
        ...

    def top(self, kept: Topology, count: int) -> Tensor:
        """Positions outside `kept` of the `count` largest absolute gradients, ascending int64."""
        ...

    def at(self, positions: Topology) -> Tensor:
        """The gradient at `positions`, [positions.nnz]. Costs time in proportion to them."""
        ...

    def bounds(self) -> tuple[Tensor, Tensor]:
        """([rows], [columns]): the absolute gradient at (row, column) is at most their product."""
        ...


class Pattern(ABC):
    """A rule that a topology obeys. Concrete patterns are frozen dataclasses."""

    def unit(self, shape: Shape) -> Shape:
        """(rows, columns) of the block of connections that live and die together, in a layer of `shape`."""
        return 1, 1

    def fitted(self, geometry: Geometry) -> Pattern:
        """The pattern as a layer of this geometry has it: the same, unless it must know which columns are neighbours (`NM`)."""
        return self

    @property
    def couples(self) -> bool:
        """Whether connections live and die together with others, in units of several."""
        return False

    @property
    def fixes_count(self) -> bool:
        """Whether a shape has only one legal number of connections."""
        return False

    @abstractmethod
    def group_size(self, grid: Shape) -> int:
        """Units in a group, for a layer of `grid` (rows, columns) units."""

    def round(self, shape: Shape, nnz: int) -> int:
        """The legal number of connections nearest to `nnz`: at least one unit a group when `nnz` > 0.

        Raises:
            ValueError: if the pattern does not fit the shape.
        """
        groups, size = self._groups(shape)
        unit = prod(self.unit(shape))
        if not groups or not nnz:
            return 0
        return groups * min(max(round(nnz / (groups * unit)), 1), size) * unit

    def step(self, shape: Shape) -> int:
        """Legal numbers of connections are the multiples of this: one unit in each group.

        Raises:
            ValueError: if the pattern does not fit the shape.
        """
        return max(self._groups(shape)[0], 1) * prod(self.unit(shape))

    def due(self, shape: Shape, nnz: int) -> Tensor:
        """Units that growth gives each group for `nnz` connections in all, [groups] int64: the same number everywhere.

        Raises:
            ValueError: if the pattern does not fit the shape or cannot have that many connections.
        """
        legal = self.round(shape, nnz)
        if nnz != legal:
            raise ValueError(f"{self} cannot have {nnz} connections in shape {shape}; the nearest legal count is {legal}")
        return torch.full((self._groups(shape)[0],), nnz // self.step(shape), dtype=torch.int64, device="cpu")

    def random(self, shape: Shape, nnz: int, generator: torch.Generator | None = None) -> Topology:
        """A uniformly random legal topology with `nnz` connections, on the CPU, whatever torch's default device is.

        Raises:
            ValueError: if the pattern does not fit the shape or cannot have that many connections.
        """
        return self.grow_random(Topology.from_keys(shape, torch.empty(0, dtype=torch.int64, device="cpu")), nnz, generator)

    def check(self, topology: Topology) -> None:
        """
        Raises:
            ValueError: if `topology` does not obey this pattern.
        """
        grid, (height, width) = self.units(topology), self.unit(topology.shape)
        if grid.nnz * height * width != topology.nnz:
            raise ValueError(f"{self} needs whole blocks of {height} x {width}; some blocks of {topology} are not full")
        self._check_counts(self._counts(grid, topology.shape), topology)
        self.due(topology.shape, topology.nnz)

    def _check_counts(self, counts: Tensor, topology: Topology) -> None:
        least, most = torch.stack(counts.aminmax()).tolist() if counts.numel() else (0, 0)
        if least != most:
            raise ValueError(f"{self} needs the same count in every group, {topology} has {least} to {most}")

    def pool(self, topology: Topology, scores: Tensor) -> Tensor:
        """The sum of `scores` [nnz] over each unit, in the order of `units(topology)`."""
        if self.unit(topology.shape) == (1, 1):
            return scores
        grid = self.units(topology)
        return scores.new_zeros(grid.nnz).index_add(0, block_of_each(topology, grid, self.unit(topology.shape)), scores)

    def strongest(self, scores: Tensor, nnz: int) -> Topology:
        """The `nnz` connections of highest `scores` [rows, columns], each group with its due. The scores are dense.

        Raises:
            ValueError: if the pattern does not fit the shape or cannot have that many connections.
        """
        shape = (scores.shape[0], scores.shape[1])
        due, grid, (height, width) = self.due(shape, nnz), self._grid(shape), self.unit(shape)
        pooled = scores.reshape(grid[0], height, grid[1], width).sum((1, 3))
        chosen = self._highest_of_groups(pooled, due.to(scores.device), shape)
        return self._connections(Topology._from_sorted_keys(grid, chosen.flatten().nonzero().squeeze(1)), shape)

    def ranks(self, scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The rank of each unit's sum of `scores` [rows, columns], at each of its entries; equal units are ranked in random order.

        Ties would else go to the first rows, and a layer of zeros would leave all other neurons without an input. NaN is below zero.

        Raises:
            ValueError: if the pattern does not fit the shape.
        """
        shape = rows, columns = scores.shape[0], scores.shape[1]
        self.step(shape)  # refuses a shape that its units do not divide
        height, width = self.unit(shape)
        pooled = (
            scores.reshape(rows // height, height, columns // width, width).sum((1, 3)).flatten().nan_to_num(nan=-1.0, posinf=torch.inf)
        )
        shuffled = torch.randperm(pooled.numel(), generator=generator, device="cpu").to(scores.device)
        ranks = torch.empty(pooled.numel(), dtype=torch.float64, device=scores.device)
        ranks[shuffled[pooled[shuffled].argsort(stable=True)]] = torch.arange(pooled.numel(), dtype=torch.float64, device=scores.device)
        grid = ranks.view(rows // height, columns // width)
        return grid.repeat_interleave(height, 0).repeat_interleave(width, 1)

    def drop(self, topology: Topology, scores: Tensor, count: int, nnz: int | None = None, due: Tensor | None = None) -> Topology:
        """What survives when the units of lowest summed `scores` [nnz] go, `count` connections of them (rounded down to units).

        What exceeds the due of a group goes as well, so that growth to `nnz` finds room in every group. That can be where neurons
        were ablated (`FanIn`), or where growth is to fewer connections.

        Args:
            nnz: connections that growth will give back; None is those of `topology`.
            due: [groups] units of each, where they are not alike.
        """
        grid, pooled = self.units(topology), self.pool(topology, scores)
        weakest, over = lowest(pooled, count // prod(self.unit(topology.shape))), self._over(grid, topology, nnz, due)
        if over is None:
            return self.drop_units(topology, weakest, distinct=True)
        goes = are_lowest_of_each(pooled, self._group_of(grid.keys, topology.shape), over)
        goes[weakest] = True
        return self._connections(grid.keep(~goes), topology.shape)

    def drop_units(self, topology: Topology, dropped: Tensor, distinct: bool = False) -> Topology:
        """What survives without the units at the indices `dropped` of `units(topology)`; `distinct` says that none is there twice."""
        return self._connections(self.units(topology).drop(dropped, distinct), topology.shape)

    def prune(self, topology: Topology, scores: Tensor, nnz: int) -> Topology:
        """The `nnz` connections of highest `scores` [topology.nnz], each group with its due. Ties go to the earlier position.

        No group may have less than its due. A topology of `nnz` connections or fewer stays as it is.
        """
        if topology.nnz <= nnz:
            return topology
        nothing = topology.keep(torch.zeros_like(topology.indices, dtype=torch.bool), 0)
        return self.grow_scored(nothing, nnz, topology, scores)

    def trim(self, topology: Topology, scores: Tensor, nnz: int) -> Topology:
        """What survives when each group that has more than its due with `nnz` connections loses its units of lowest summed `scores` [nnz].

        A topology that has `nnz` or more, and obeys the pattern, has exactly `nnz` then.
        """
        return self.drop_units(topology, self.excess(topology, self.pool(topology, scores), nnz), distinct=True)

    def excess(self, topology: Topology, scores: Tensor, nnz: int | None = None, due: Tensor | None = None) -> Tensor:
        """Indices in `units(topology)` of what each group has above its due, its units of lowest `scores` [units]; ties: the earlier.

        Args:
            topology: whole units; else it need not be legal.
            scores: one for each unit, as `pool` gives them.
            nnz: connections of which each group has its due; None is those of `topology` (and where that is no legal count, between
                a drop and a growth, nothing is above its due).
            due: [groups] units of each, where they are not alike.
        """
        grid = self.units(topology)
        over = self._over(grid, topology, nnz, due)
        if over is None:
            return grid.indices.new_empty(0, dtype=torch.int64)
        return lowest_of_each(scores, self._group_of(grid.keys, topology.shape), over)

    def _over(self, grid: Topology, topology: Topology, nnz: int | None, due: Tensor | None) -> Tensor | None:
        """How many of the units `grid` of `topology` each group has above its due, [groups]; None where it is known that none has."""
        shape = topology.shape
        if due is None:
            if nnz is None and self.round(shape, topology.nnz) != topology.nnz:
                return None
            due = self.due(shape, topology.nnz if nnz is None else nnz)
        counts = self._counts(grid, shape)
        over = (counts - merge.sent(due, counts.device)).clamp(min=0)
        return None if merge.here(over) and not bool(over.any()) else over

    def grow_random(self, kept: Topology, nnz: int, generator: torch.Generator | None) -> Topology:
        """`kept` and random new connections, `nnz` in all: each group is filled to its due (see `grow_highest`)."""
        grid, vacant = self._begin(kept, nnz)
        return self._connections(grid._grow(self._random_absent(grid, kept.shape, vacant, generator)), kept.shape)

    def grow_highest(self, kept: Topology, nnz: int, gradients: AbsentGradients, due: Tensor | None = None) -> Topology:
        """`kept` and the connections of largest absolute gradient, `nnz` in all: each group is filled to its due.

        Of a group that has more than its due the first units stay. `drop` and `excess` choose by score before.

        Args:
            due: [groups] units of each, `nnz` connections together, where they are not alike.

        Raises:
            ValueError: if `nnz` is no legal count, or less than what is kept.
        """
        grid, vacant = self._begin(kept, nnz, due)
        if not merge.here(vacant) or bool(vacant.any()):
            grid = grid._grow(self.steepest_absent(grid, kept.shape, vacant, gradients))
        return self._connections(grid, kept.shape)

    def sample_absent(self, kept: Topology, nnz: int, factor: float, generator: torch.Generator | None) -> Topology:
        """Random connections outside `kept`: in each group `factor` times the units it lacks of its due with `nnz`, or all there are."""
        grid, size = self.units(kept), self._groups(kept.shape)[1]
        vacant, free = self._begin(kept, nnz)[1], size - self._counts(grid, kept.shape)
        drawn = self._random_absent(grid, kept.shape, torch.minimum((vacant * factor).ceil().long(), free), generator)
        return self._connections(Topology._from_sorted_keys(grid.shape, drawn), kept.shape)

    def grow_scored(
        self, kept: Topology, nnz: int, candidates: Topology, scores: Tensor, generator: torch.Generator | None = None
    ) -> Topology:
        """`kept` and the `candidates` of highest scores, `nnz` in all: each group is filled to its due.

        Args:
            kept: what stays.
            nnz: connections of the result.
            candidates: connections that may grow; those in `kept` do not count.
            scores: [candidates.nnz]; a unit has the sum of its candidates. Ties go to the earlier position.
            generator: draws what a group lacks after its candidates.
        """
        grid, vacant = self._begin(kept, nnz)
        best = self._best_units(grid, vacant, candidates, scores)
        grown = grid._grow(best)
        missing = vacant - self._counts(Topology._from_sorted_keys(grid.shape, best), kept.shape)
        if bool(missing.any()):
            grown = grown._grow(self._random_absent(grown, kept.shape, missing, generator))
        return self._connections(grown, kept.shape)

    def absent_units(self, topology: Topology, drawn: Topology) -> Topology:
        """The connections of those of the units `drawn`, a topology of units, that `topology` has not."""
        grid = self.units(topology)
        return self._connections(drawn.keep(merge.followed(grid.shape[1], grid._connections, drawn._connections) < 0), topology.shape)

    def complement(self, topology: Topology) -> Topology:
        """All connections that `topology` has not. Costs rows x columns: for topologies that have half of them or more."""
        grid = self.units(topology)
        every = Topology._from_sorted_keys(grid.shape, torch.arange(grid.size, device=grid.device))
        return self.absent_units(topology, every)

    def best(self, kept: Topology, nnz: int, candidates: Topology, scores: Tensor) -> Tensor:
        """Which of the `candidates` may grow in `grow_scored`, [candidates.nnz] bool: whoever meets them in parts keeps the best so far."""
        grid, vacant = self._begin(kept, nnz)
        best, units = Topology._from_sorted_keys(grid.shape, self._best_units(grid, vacant, candidates, scores)), self.units(candidates)
        grows = best.contains(units.keys)
        return grows if units is candidates else grows[block_of_each(candidates, units, self.unit(candidates.shape))]

    def pooled(self, candidates: Topology, scores: Tensor) -> tuple[Topology, Tensor]:
        """One candidate for each unit, its first connection, and the sum of the unit's `scores` [candidates.nnz]."""
        height, width = self.unit(candidates.shape)
        if (height, width) == (1, 1):
            return candidates, scores
        grid = self.units(candidates)
        corners = grid.rows.long() * (height * candidates.shape[1]) + grid.indices.long() * width
        return Topology._from_sorted_keys(candidates.shape, corners), self.pool(candidates, scores)

    def units(self, topology: Topology) -> Topology:
        """The topology of the units: one entry a block. The topology itself when a unit is one connection."""
        if self.unit(topology.shape) == (1, 1):
            return topology
        self._grid(topology.shape)  # refuses a shape that its units do not divide
        return topology.derived(blocks_of, self.unit(topology.shape))

    def highest_absent(self, grid: Topology, shape: Shape, vacant: Tensor, gradients: AbsentGradients) -> Tensor:
        """Keys of the `vacant[g]` units of each group with the largest absolute gradient, in a layer of `shape` with the units `grid`.

        A single number in `vacant` is of units anywhere in the layer.
        """
        size = self._groups(shape)[1]
        whole_layer = vacant.numel() == 1
        best_keys, best_scores = grid.indices.new_empty(0, dtype=torch.int64), torch.empty(0, device=grid.device)
        grown: list[Tensor] = []
        for start, stop, scores, free in self._slabs(grid, shape, gradients):
            first = start * grid.shape[1]
            if not whole_layer:
                groups = slice(first // size, stop * grid.shape[1] // size)
                chosen = self._highest_of_groups(scores, vacant[groups], shape)
                grown.append(merge.places(chosen.flatten()) + first)
                continue
            # A group that spans slabs: what is best so far competes with the best of the new slab.
            scores = scores.flatten()
            some = vacant.clamp(max=free)
            candidates = merge.places(highest(scores[None], some)[0], int(some))
            best_keys = torch.cat([best_keys, candidates + first])
            best_scores = torch.cat([best_scores.to(scores), scores[candidates]])
            some = vacant.clamp(max=best_keys.numel())
            chosen = merge.places(highest(best_scores[None], some)[0], int(some))
            best_keys, best_scores = best_keys[chosen], best_scores[chosen]
        return best_keys if whole_layer else torch.cat([best_keys, *grown])

    def steepest_absent(self, grid: Topology, shape: Shape, vacant: Tensor, gradients: AbsentGradients) -> Tensor:
        """The same, in the way that `gradients` have for it where units are single connections, anywhere in the layer."""
        alone = vacant.numel() == 1 and self.unit(shape) == (1, 1)
        return gradients.top(grid, int(vacant)) if alone else self.highest_absent(grid, shape, vacant, gradients)

    def _slabs(self, grid: Topology, shape: Shape, gradients: AbsentGradients) -> Iterator[tuple[int, int, Tensor, int]]:
        """(first unit row, last + 1, scores [unit rows, unit columns], how many are free): -inf where there is a unit already."""
        height, width = self.unit(shape)
        step = max(SLAB_ENTRIES // max(shape[1] * height, 1), 1)
        groups, size = self._groups(shape)
        if groups > 1 and size > grid.shape[1]:  # no slab may cut a group of several rows
            rows_of_group = size // grid.shape[1]
            step = max(step // rows_of_group, 1) * rows_of_group
        starts = [0, grid.nnz] if grid.shape[0] <= step else torch.cat([grid.indptr[:-1:step], grid.indptr[-1:]]).tolist()
        for number, start in enumerate(range(0, grid.shape[0], step)):
            stop = min(start + step, grid.shape[0])
            scores = gradients.rows(start * height, stop * height).abs()
            if (height, width) != (1, 1):
                scores = scores.view(stop - start, height, grid.shape[1], width).sum((1, 3))
            first, last = starts[number : number + 2]
            each = torch.arange(stop - start, device=grid.device)
            rows = each.repeat_interleave(grid.indptr[start : stop + 1].diff(), output_size=last - first)
            scores = scores.nan_to_num(nan=-1.0, posinf=torch.inf)
            scores[rows, grid.indices[first:last].long()] = -torch.inf
            yield start, stop, scores, scores.numel() - (last - first)

    def _grid(self, shape: Shape) -> Shape:
        for extent, unit, name in zip(shape, self.unit(shape), ("rows", "columns"), strict=True):
            if extent % unit:
                raise ValueError(f"{self} needs {name} divisible by {unit}, got shape {shape}; exclude this layer or use another pattern")
        height, width = self.unit(shape)
        return shape[0] // height, shape[1] // width

    def _groups(self, shape: Shape) -> tuple[int, int]:
        """(number of groups, units in each)."""
        grid = self._grid(shape)
        size = self.group_size(grid)
        if size and (grid[0] * grid[1] % size or (grid[1] % size and size % grid[1])):
            raise ValueError(
                f"{self} needs a layer of whole groups of {size} units, got shape {shape}; exclude this layer or use another pattern"
            )
        return (grid[0] * grid[1] // size if size else 0), size

    def _group_of(self, keys: Tensor, shape: Shape) -> Tensor:
        """The group of each of the units at `keys`."""
        return keys // max(self._groups(shape)[1], 1)

    def _highest_of_groups(self, scores: Tensor, counts: Tensor, shape: Shape) -> Tensor:
        """Where the `counts[g]` highest of each group stand in `scores` [unit rows, unit columns], whole rows of them and whole groups."""
        groups = counts.numel()
        return highest(scores.reshape(groups, scores.numel() // max(groups, 1)), counts).view_as(scores)

    def _random_absent(self, grid: Topology, shape: Shape, counts: Tensor, generator: torch.Generator | None) -> Tensor:
        """Ascending keys of `counts[g]` units of each group, drawn among those that `grid` has not."""
        return random_absent(grid.keys, self._groups(shape)[1], counts, generator)

    def _counts(self, grid: Topology, shape: Shape) -> Tensor:
        """Units that each group has, [groups] int64; of one group on the CPU, for there is nothing to ask a device about."""
        groups, size = self._groups(shape)
        if groups == 1:
            return torch.tensor([grid.nnz], device="cpu")
        if groups and size == grid.shape[1]:
            return grid.fan_in.long()
        return merge.counted(self._group_of(grid.keys, shape), groups)

    def _begin(self, kept: Topology, nnz: int, due: Tensor | None = None) -> tuple[Topology, Tensor]:
        """What growth starts from: the units of `kept`, no group above its due, and how many each group lacks of it."""
        even = self.due(kept.shape, nnz)
        if kept.nnz > nnz:
            raise ValueError(f"{self} cannot grow {kept.nnz} connections in shape {kept.shape} to {nnz}: drop before growing")
        grid = self.units(kept)
        counts = self._counts(grid, kept.shape)
        vacant = merge.sent(even if due is None else due, counts.device) - counts
        if vacant.numel() and int(vacant.min()) < 0:
            from_last = torch.arange(grid.nnz, 0, -1, dtype=torch.float64, device=grid.device)
            grid = grid.drop(lowest_of_each(from_last, self._group_of(grid.keys, kept.shape), -vacant.clamp(max=0)))
        return grid, vacant.clamp(min=0)

    def _best_units(self, grid: Topology, vacant: Tensor, candidates: Topology, scores: Tensor) -> Tensor:
        """Ascending keys of the candidate units of highest scores outside `grid`, at most `vacant[g]` in each group."""
        units, pooled = self.units(candidates), self.pool(candidates, scores)
        keys = units.keys
        if grid.nnz:
            free = merge.places(merge.followed(grid.shape[1], grid._connections, units._connections) < 0)
            keys, pooled = keys[free], pooled[free]
        if vacant.numel() == 1:
            return keys[lowest(-pooled, min(int(vacant), keys.numel()))]
        group = self._group_of(keys, candidates.shape)
        return keys[lowest_of_each(-pooled, group, torch.minimum(vacant, merge.counted(group, vacant.numel())))]

    def _connections(self, grid: Topology, shape: Shape) -> Topology:
        unit = self.unit(shape)
        return grid if unit == (1, 1) else connections_of(grid, unit)


def shared_evenly(nnz: int, active: Tensor, scores: Tensor) -> Tensor:
    """[groups] `nnz` units in equal parts for the groups that are `active` [groups] bool; what does not divide goes, one each, to those
    of highest `scores` [groups], ties to the earlier. The others have none."""
    sharing = active.sum().clamp(min=1)
    ranked = scores.double().masked_fill(~active, -torch.inf)
    return active * (nnz // sharing) + highest(ranked[None], (nnz % sharing)[None])[0]


@dataclass(frozen=True)
class Unstructured(Pattern):
    """Connections anywhere in the layer."""

    def group_size(self, grid: Shape) -> int:
        return grid[0] * grid[1]


@dataclass(frozen=True)
class FanIn(Pattern):
    """Constant fan-in: every row (output neuron) has as many connections as the others. Lasby et al. 2024, https://arxiv.org/abs/2305.02299

    An algorithm may ablate neurons (`SRigL`): their rows are empty, and the others have as many connections as one another, give or
    take one, so that the layer keeps its count. What is drawn or grown otherwise fills every row alike.
    """

    def group_size(self, grid: Shape) -> int:
        return grid[1]

    def trim(self, topology: Topology, scores: Tensor, nnz: int) -> Topology:
        held = self._counts(self.units(topology), topology.shape)
        active = held > 0
        if topology.nnz < nnz or bool(active.all()):
            return super().trim(topology, scores, nnz)
        # Ablated neurons give nothing up: the others share what is left, those that are longer by one before the rest.
        self.due(topology.shape, nnz)
        due = shared_evenly(nnz // prod(self.unit(topology.shape)), active, held)
        return self.drop_units(topology, self.excess(topology, self.pool(topology, scores), due=due), distinct=True)

    def _check_counts(self, counts: Tensor, topology: Topology) -> None:
        if not counts.numel():
            return
        least, most = torch.stack([counts.masked_fill(counts == 0, topology.shape[1]).min(), counts.max()]).tolist()
        if most - least > 1:
            raise ValueError(
                f"{self} needs the same count, give or take one, in every row that is not empty; {topology} has {least} to {most}"
            )


@dataclass(frozen=True)
class SharedFanIn(FanIn):
    """Constant fan-in where groups of `rows` neighbouring rows are connected to the same columns: 32 neurons read the same 20 inputs.

    The values of a group are a small dense matrix, and its inputs are read once for all of its rows. Connections live, die and are
    ablated together, one column of a group at a time.

    A layer whose rows do not divide into such groups has smaller ones, of the greatest common divisor: of `SharedFanIn(32)` an output
    layer of 10 neurons makes `SharedFanIn(2)`, one of 1000 `SharedFanIn(8)`, and says so (`layer.pattern`, `ts.summary`).

    Args:
        rows: of a group, 1 or more; 1 is `FanIn`. Kernels are made for 16, 32 and 64.
    """

    rows: int = 32

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a group has at least 1 row, got rows={self.rows}")

    @property
    def couples(self) -> bool:
        return self.rows > 1

    def fitted(self, geometry: Geometry) -> SharedFanIn:
        return replace(self, rows=gcd(self.rows, geometry.shape[0]))

    def unit(self, shape: Shape) -> Shape:
        return self.rows, 1


@dataclass(frozen=True)
class NM(Pattern):
    """`n` connections in every window of `m` neighbouring inputs. The pattern fixes the sparsity: 1 - n / m.

    In a matrix neighbours are columns next to one another. In a convolution they are neighbouring input channels at one position of the
    kernel, as in the code of Zhou et al. 2021, https://arxiv.org/abs/2102.04010: their columns stand `apart` from one another. Layers
    set that by themselves.

    Args:
        n: connections in a window.
        m: inputs in a window; the inputs (of each group of a convolution) must be a multiple of it.
        apart: columns from one of a window to the next, the positions of the kernel.
    """

    n: int
    m: int
    apart: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.n <= self.m:
            raise ValueError(f"NM needs 0 < n <= m, got n={self.n}, m={self.m}")
        if self.apart < 1:
            raise ValueError(f"the columns of a window stand at least 1 apart, got apart={self.apart}")

    def __repr__(self) -> str:
        return f"NM(n={self.n}, m={self.m}{'' if self.apart == 1 else f', apart={self.apart}'})"

    def fitted(self, geometry: Geometry) -> NM:
        return replace(self, apart=max(prod(geometry.weight_shape[2:]), 1))

    @property
    def fixes_count(self) -> bool:
        return True

    def group_size(self, grid: Shape) -> int:
        return self.m

    def _grid(self, shape: Shape) -> Shape:
        inputs, rest = divmod(shape[1], self.apart)
        if rest or inputs % self.m:
            what = "columns" if self.apart == 1 else f"input channels (columns / {self.apart})"
            raise ValueError(f"{self} needs {what} divisible by {self.m}, got shape {shape}; exclude this layer or use another pattern")
        return super()._grid(shape)

    # Windows that overlap: of m * apart columns next to one another each position of the kernel has every apart-th.
    def _group_of(self, keys: Tensor, shape: Shape) -> Tensor:
        return keys // (self.m * self.apart) * self.apart + keys % self.apart

    def _highest_of_groups(self, scores: Tensor, counts: Tensor, shape: Shape) -> Tensor:
        overlapping = scores.view(-1, self.m, self.apart).transpose(1, 2)
        return highest(overlapping.reshape(-1, self.m), counts).view(overlapping.shape).transpose(1, 2).reshape(scores.shape)

    def _random_absent(self, grid: Topology, shape: Shape, counts: Tensor, generator: torch.Generator | None) -> Tensor:
        group, place = self._group_of(grid.keys, shape), grid.keys // self.apart % self.m
        drawn = random_absent((group * self.m + place).sort().values, self.m, counts, generator)
        group, place = drawn // self.m, drawn % self.m
        return ((group // self.apart * self.m + place) * self.apart + group % self.apart).sort().values

    def round(self, shape: Shape, nnz: int) -> int:
        groups, _ = self._groups(shape)
        return groups * self.n


@dataclass(frozen=True)
class Block(Pattern):
    """Connections come in full, aligned blocks of `size` x `size`."""

    size: int = 4

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a block has at least 1 x 1 connections, got size={self.size}")

    @property
    def couples(self) -> bool:
        return self.size > 1

    def unit(self, shape: Shape) -> Shape:
        return self.size, self.size

    def group_size(self, grid: Shape) -> int:
        return grid[0] * grid[1]


@dataclass(frozen=True)
class Neurons(Pattern):
    """Whole rows: a neuron (an output channel of a convolution) has all of its connections or none.

    An output layer loses answers that way: leave it out (`sparsify(..., exclude=...)`).
    """

    @property
    def couples(self) -> bool:
        return True

    def unit(self, shape: Shape) -> Shape:
        return 1, max(shape[1], 1)

    def group_size(self, grid: Shape) -> int:
        return grid[0] * grid[1]


PATTERNS: dict[str, type[Pattern]] = {
    "unstructured": Unstructured,
    "fan-in": FanIn,
    "shared-fan-in": SharedFanIn,
    "nm": NM,
    "block": Block,
    "neurons": Neurons,
}


def pattern(text_or_pattern: str | Pattern) -> Pattern:
    """The pattern that a text names, or the object itself.

    "unstructured", "fan-in", "shared-fan-in:32" (or just "shared-fan-in"), "nm:2:4" (or just "2:4"), "block:4" (or just "block"),
    "neurons".

    Raises:
        ValueError: if the text names no pattern, or one with settings that it cannot have.
    """
    if not isinstance(text_or_pattern, str):
        return text_or_pattern
    name, *settings = text_or_pattern.split(":")
    if name.isdecimal():
        name, settings = "nm", [name, *settings]
    kind = PATTERNS.get(name)
    if kind is not None and all(setting.isdecimal() for setting in settings):
        least, most = {NM: (2, 2), Block: (0, 1), SharedFanIn: (0, 1)}.get(kind, (0, 0))
        if least <= len(settings) <= most:
            return kind(*map(int, settings))
    raise ValueError(
        f"unknown pattern {text_or_pattern!r}; known: unstructured, fan-in, shared-fan-in:ROWS (shared-fan-in:32), nm:N:M (nm:2:4), "
        "block:SIZE (block:4), neurons"
    )
