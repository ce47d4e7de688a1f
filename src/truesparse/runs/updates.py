"""Which connections came and went, and when? Follows a `Rewirer` and keeps each change of the masks until the epoch's file is written."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..rewiring import Rewirer
from ..topology import Move, Topology
from ..topology.merge import accepted

MOST_UPDATES, FEWEST_UPDATES = 32, 8
"""Updates that the file of an epoch tells apart. Of more rewirings, as many as needed are merged into their net change."""

STEPS_APART = 100
"""Beyond `FEWEST_UPDATES`, updates lie so many steps apart on average: taking one in lasts as long as a step of a small network."""

MOST_CONNECTIONS = 8_000_000
"""Updates of an epoch x connections of the network: of a large network fewer updates are told apart, of one beyond this one an epoch."""


KINDS = ("dropped", "grown")
WIDTHS = (np.uint8, np.uint16, np.uint32, np.int64)


@dataclass(frozen=True, eq=False)
class Update:
    """What one rewiring, or several taken together, have changed in the masks.

    A connection that is dropped and grown again at the same place (SET) has not changed.

    Attributes:
        step: steps of training behind it, those of earlier epochs included.
        changes: for each layer, ascending int64 positions (row x columns + column) of the connections (dropped, grown).
    """

    step: int
    changes: Mapping[str, tuple[Tensor, Tensor]]


def mask_change(old: Topology, new: Topology) -> tuple[Tensor, Tensor]:
    """Ascending int64 positions of the connections (dropped, grown) between two topologies of one shape."""
    # Merged: choosing by a mask takes ten times as long.
    before, after = old.keys.cpu(), new.keys.cpu()
    none = before[:0]
    return accepted(after, none, before)[0], accepted(before, none, after)[0]


class Updates:
    """Keeps the updates of the epoch under way. `take()` hands them over and begins the next epoch.

    Looks at one in `every` rewirings of an epoch and at its end. Holds, beside the topologies seen last, two bytes (where the masks
    are very sparse, four or more) for each connection dropped or grown.

    Args:
        rewirer: of the model.
        steps: of an epoch.

    Attributes:
        every: rewirings merged into an update.
        seconds: spent in this object.
    """

    def __init__(self, rewirer: Rewirer, steps: int) -> None:
        self.rewirer = rewirer
        connections = sum(layer.topology.nnz for layer in rewirer.layers.values())
        kept = min(MOST_UPDATES, max(FEWEST_UPDATES, ceil(steps / STEPS_APART)))
        kept = max(1, min(kept, MOST_CONNECTIONS // max(connections, 1)))
        self.every = max(1, ceil(ceil(steps / rewirer.schedule.every) / kept))
        self.seconds = 0.0
        self._steps: list[int] = []
        self._coded: list[dict[str, tuple[Tensor, Tensor]]] = []
        self._unseen = 0  # rewirings since the last look
        self._last = 0  # the step of the last rewiring
        self._seen = self._now()
        rewirer.register_hook(self._after_rewiring)

    def take(self) -> dict[str, NDArray[Any]]:
        """The updates since the last call as the tensors of a file.

        `steps` [updates] int64, and for each layer LAYER.dropped and LAYER.grown, the differences of `packed`, one update after the
        other, and LAYER.dropped_counts and LAYER.grown_counts [updates] int64, how many belong to each.
        """
        began = time.perf_counter()
        if self._unseen:
            self._look()
        arrays: dict[str, NDArray[Any]] = {"steps": np.array(self._steps, dtype=np.int64)}
        for name in self._seen:
            for place, kind in enumerate(KINDS):
                gaps = [coded[name][place].numpy() for coded in self._coded]
                arrays[f"{name}.{kind}"] = np.concatenate([np.zeros(0, dtype=np.uint8), *gaps])  # of the widest dtype among them
                arrays[f"{name}.{kind}_counts"] = np.array([gap.size for gap in gaps], dtype=np.int64)
        self._steps, self._coded = [], []
        self.seconds += time.perf_counter() - began
        return arrays

    def state_dict(self) -> dict[str, Any]:
        """Where this object stands, as tensors and plain values."""
        seen = {name: (topology.indptr, topology.indices) for name, topology in self._seen.items()} if self._unseen else {}
        return {"steps": list(self._steps), "coded": list(self._coded), "unseen": self._unseen, "last": self._last, "seen": seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` stood. The model holds the topologies of that moment."""
        self._steps, self._coded = list(state["steps"]), list(state["coded"])
        self._unseen, self._last = state["unseen"], state["last"]
        now = self._now()
        self._seen = now | {name: Topology(now[name].shape, *arrays) for name, arrays in state["seen"].items()}

    def _after_rewiring(self, moves: Mapping[str, Move]) -> None:
        began = time.perf_counter()
        self._unseen += 1
        self._last = self.rewirer.steps
        if self._unseen >= self.every:
            self._look()
        self.seconds += time.perf_counter() - began

    def _look(self) -> None:
        now = self._now()
        changes = {name: mask_change(self._seen[name], now[name]) for name in now}
        self._coded.append({name: (packed(dropped), packed(grown)) for name, (dropped, grown) in changes.items()})
        self._steps.append(self._last)
        self._seen, self._unseen = now, 0

    def _now(self) -> dict[str, Topology]:
        # Without the kernel plans that it has derived: those of old topologies shall not stay in memory.
        held = {name: layer.topology for name, layer in self.rewirer.layers.items()}
        return {name: Topology._trusted(topology.shape, topology.indptr, topology.indices) for name, topology in held.items()}


def packed(keys: Tensor) -> Tensor:
    """Ascending positions as differences (the first from 0), in the smallest of `WIDTHS` that holds them all."""
    gaps = np.diff(keys.cpu().numpy(), prepend=0)
    largest = int(gaps.max(initial=0))
    return torch.from_numpy(gaps.astype(next(kind for kind in WIDTHS if largest <= np.iinfo(kind).max)))


def unpacked(gaps: Tensor) -> Tensor:
    """The positions that were packed, int64."""
    return torch.from_numpy(np.cumsum(gaps.numpy(), dtype=np.int64))


def from_arrays(arrays: Mapping[str, NDArray[Any]], layers: Sequence[str]) -> tuple[Update, ...]:
    """The updates in the tensors of a file, see `Updates.take`.

    Raises:
        KeyError: if an array is missing.
        ValueError: if the arrays contradict each other.
    """
    steps = arrays["steps"].tolist()
    changes: list[dict[str, tuple[Tensor, Tensor]]] = [{} for _ in steps]
    for name in layers:
        dropped, grown = (_split(arrays[f"{name}.{kind}"], arrays[f"{name}.{kind}_counts"], name, steps) for kind in KINDS)
        for place, both in enumerate(zip(dropped, grown, strict=True)):
            changes[place][name] = both
    return tuple(Update(step, changed) for step, changed in zip(steps, changes, strict=True))


def _split(gaps: NDArray[Any], counts: NDArray[Any], name: str, steps: Sequence[int]) -> list[Tensor]:
    if counts.shape != (len(steps),) or (counts < 0).any() or int(counts.sum()) != gaps.size:
        raise ValueError(f"layer {name!r}: expected the counts of {len(steps)} updates, {gaps.size} positions in all")
    pieces = np.split(gaps, np.cumsum(counts)[:-1]) if len(steps) else []
    return [unpacked(torch.from_numpy(np.ascontiguousarray(piece))) for piece in pieces]
