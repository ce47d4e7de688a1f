"""Which weights of a layer live and die together? Tiles of its matrix: rows, the columns of an input channel, blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..nn import TopologyLayer
from ..nn.kinds import kind_of
from ..topology import Topology
from .base import Layer

Groups = Literal["rows", "columns"] | tuple[int, int]


@dataclass(frozen=True)
class Units:
    """Tiles of a matrix [rows, columns].

    Attributes:
        grid: (rows, columns) of tiles.
        height, width: of a tile.
    """

    grid: tuple[int, int]
    height: int
    width: int

    @classmethod
    def of(cls, name: str, layer: Layer, groups: Groups) -> Units:
        """
        Raises:
            ValueError: if blocks do not divide the matrix, or there are no such groups.
        """
        kind = kind_of(layer)
        assert kind is not None
        geometry = layer.geometry if isinstance(layer, TopologyLayer) else kind.sparse.geometry_of(layer)
        rows, columns = geometry.shape
        if groups == "rows":
            height, width = 1, columns
        elif groups == "columns":
            height, width = rows // geometry.groups, geometry.taps
        elif isinstance(groups, tuple):
            height, width = groups
        else:
            raise ValueError(f"groups are 'rows', 'columns' or (height, width) of blocks, got {groups!r}")
        if min(height, width) < 1 or rows % height or columns % width:
            raise ValueError(f"layer {name!r}: blocks of {height} x {width} do not divide its matrix of {rows} x {columns}; exclude it")
        return cls((rows // height, columns // width), height, width)

    @property
    def count(self) -> int:
        return self.grid[0] * self.grid[1]

    def sums(self, entries: Tensor, topology: Topology | None) -> Tensor:
        """[units] the sum over each, of [rows, columns] or, with a topology, [nnz]. Differentiable."""
        if topology is None:
            return entries.view(self.grid[0], self.height, self.grid[1], self.width).sum((1, 3)).flatten()
        return entries.new_zeros(self.count).index_add(0, self._of_each(topology), entries)

    def spread(self, units: Tensor, topology: Topology | None) -> Tensor:
        """[units] at each entry of its unit. Differentiable."""
        if topology is not None:
            return units[self._of_each(topology)]
        tiles = units.view(self.grid[0], 1, self.grid[1], 1).expand(-1, self.height, -1, self.width)
        return tiles.reshape(self.grid[0] * self.height, self.grid[1] * self.width)

    def sizes(self, topology: Topology | None, like: Tensor) -> Tensor:
        """[units] how many weights there are in each."""
        if topology is None:
            return like.new_full((self.count,), self.height * self.width)
        return self.sums(like.new_ones(topology.nnz), topology)

    def _of_each(self, topology: Topology) -> Tensor:
        return topology.derived(_unit_of_each, self)


def _unit_of_each(topology: Topology, units: Units) -> Tensor:
    return (topology.rows // units.height).to(torch.int64) * units.grid[1] + topology.indices // units.width


def topology_of(layer: Layer) -> Topology | None:
    return layer.topology if isinstance(layer, TopologyLayer) else None
