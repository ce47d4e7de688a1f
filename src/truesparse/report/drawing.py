"""Which positions of a layer are drawn, and when, so that a page of many updates stays small?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..runs.updates import mask_change
from ..topology import Topology
from .heat import input_heat
from .run import Run, RunLayer, Stage

MOST_ROWS, MOST_COLUMNS = 256, 512
MOST_FRAMES = 100
MOST_CHANGES = 600_000  # positions drawn as changed, over all layers and frames of a page: some 1 MB of it


@dataclass(frozen=True)
class Grid:
    """The positions drawn: one row of every `row_step`, one column of every `column_step`."""

    rows: NDArray[Any]
    columns: NDArray[Any]
    row_step: int
    column_step: int

    def cells(self, topology: Topology) -> NDArray[Any]:
        """Ascending numbers (drawn row x drawn columns + drawn column) of the cells with a connection."""
        row_at, column_at = (_places(picked, count) for picked, count in zip((self.rows, self.columns), topology.shape, strict=True))
        rows, columns = row_at[topology.rows.numpy()], column_at[topology.indices.numpy()]
        return (rows * self.columns.size + columns)[(rows >= 0) & (columns >= 0)]


def grid(shape: tuple[int, int], most_cells: float) -> Grid:
    """Of a layer with (rows, columns), so many cells at the most: as many as may be, with steps as alike as may be."""
    rows, columns = shape
    row_step, column_step = max(1, ceil(rows / MOST_ROWS)), max(1, ceil(columns / MOST_COLUMNS))
    excess = ceil(rows / row_step) * ceil(columns / column_step) / max(most_cells, 1)
    if excess > 1:
        row_step, column_step = ceil(row_step * sqrt(excess)), ceil(column_step * sqrt(excess))
    return Grid(_picked(rows, row_step), _picked(columns, column_step), row_step, column_step)


class Drawing:
    """Collects the frames of a layer while its stages pass by. Every `every`-th stage is a frame, and the last.

    Args:
        run, layer: whose stages will pass.
        every: stages that a frame takes together, into their net change.
        most_changes: cells drawn as changed, over all frames.
    """

    def __init__(self, run: Run, layer: RunLayer, every: int, changes: int, most_changes: float) -> None:
        self.run, self.layer, self.every = run, layer, every
        self.grid = grid(layer.shape, layer.geometry.shape[0] * layer.geometry.shape[1] * most_changes / max(changes, 1))
        self.frames: list[dict[str, Any]] = []
        self._cells = np.zeros(0, dtype=np.int64)
        self._last: Topology | None = None

    def watch(self, stages: Iterator[Stage]) -> Iterator[Stage]:
        """The same stages; each frame among them is taken in."""
        stage, number = None, 0
        for number, stage in enumerate(stages):
            if number % self.every == 0:
                self._take(stage, number)
            yield stage
        if stage is not None and number % self.every:
            self._take(stage, number)

    def content(self) -> dict[str, Any]:
        """As plain values for the page. `changed` of a frame are the differences of the ascending cells that it changes."""
        return {
            "rows": self.grid.rows.size,
            "columns": self.grid.columns.size,
            "rowStep": self.grid.row_step,
            "columnStep": self.grid.column_step,
            "every": self.every,
            "frames": self.frames,
        }

    def _take(self, stage: Stage, number: int) -> None:
        cells = self.grid.cells(stage.topology)
        if self._last is None or self.every == 1:
            dropped, grown = stage.dropped, stage.grown
        else:
            dropped, grown = mask_change(self._last, stage.topology)
        heat = input_heat(self.layer, stage.topology, self.run.sample)
        self.frames.append(
            {
                "stage": number,
                "dropped": dropped.numel(),
                "grown": grown.numel(),
                "changed": np.diff(np.setxor1d(self._cells, cells, assume_unique=True), prepend=0).tolist(),
                "heat": None if heat is None else heat.flatten().tolist(),
            }
        )
        self._cells, self._last = cells, stage.topology


def _picked(count: int, step: int) -> NDArray[Any]:
    """One of each `step` in a row, not always the same one: a regular choice could meet a pattern of the layer."""
    generator = torch.Generator().manual_seed(count)
    starts = np.arange(0, count, step)
    widths = np.minimum(step, count - starts)
    return starts + (torch.rand(starts.size, generator=generator, device="cpu").numpy() * widths).astype(np.int64)


def _places(picked: NDArray[Any], count: int) -> NDArray[Any]:
    """Where each of `count` is among those picked, or -1."""
    places = np.full(count, -1, dtype=np.int64)
    places[picked] = np.arange(picked.size)
    return places
