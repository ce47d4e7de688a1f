"""How are connections written down? Each as the way from the one before it in its row, a byte, and its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .network import Matrix, Network, matrices_of

FURTHEST = 255  # columns that one byte bridges


@dataclass(frozen=True, eq=False)
class Encoded:
    """The connections of a matrix.

    Args:
        counts: of each row; None: every column is connected.
        gaps: uint8, from column 0 to the first connection of a row and from each to the next; None likewise.
        values: of each connection; where a way is longer than 255, values of 0 stand in between.
    """

    counts: NDArray[Any] | None
    gaps: NDArray[np.uint8] | None
    values: NDArray[Any]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + sum(one.nbytes for one in (self.counts, self.gaps) if one is not None)


def count_type(network: Network, item: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that counts the connections of every row, and the values of 0 between them.

    Args:
        item: bytes of a value; matrices that take fewer bytes dense are not counted.

    Raises:
        TypeError: if a row has more than 65,535.
    """
    most = 0
    for step in network.steps:
        for matrix in matrices_of(step):
            counts, gaps, _ = _sparse(matrix, matrix.values)
            if matrix.rows * matrix.columns * item > gaps.nbytes * (1 + item) + matrix.rows:
                most = max(most, int(counts.max(initial=0)))
            if most > np.iinfo(np.uint16).max:
                raise TypeError(f"layer {step.name!r} has no C here: a row of {most:,} connections; at most 65,535 are counted")
    return np.uint8 if most <= np.iinfo(np.uint8).max else np.uint16


def encoded(matrix: Matrix, values: NDArray[Any], counted: type[np.unsignedinteger[Any]]) -> Encoded:
    """In whichever form takes fewer bytes: connections, or all weights.

    Args:
        values: of its connections, [nnz], in the type that they are to have.
        counted: the type of the counts.
    """
    counts, gaps, with_bridges = _sparse(matrix, values)
    dense = np.zeros((matrix.rows, matrix.columns), values.dtype)
    sparse_bytes = gaps.nbytes + with_bridges.nbytes + counted().nbytes * matrix.rows
    if dense.nbytes <= sparse_bytes:
        dense[matrix.row_of_each, matrix.indices] = values
        return Encoded(None, None, dense.ravel())
    return Encoded(counts.astype(counted), gaps, with_bridges)


def _sparse(matrix: Matrix, values: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[Any]]:
    starts = np.cumsum(matrix.fan_in) - matrix.fan_in
    ways = np.diff(matrix.indices, prepend=0)
    first = starts[matrix.fan_in > 0]
    ways[first] = matrix.indices[first]
    bridges = np.maximum(0, (ways - 1) // FURTHEST)
    own = np.cumsum(1 + bridges) - 1  # where each connection stands, after its bridges
    gaps = np.full(len(values) + int(bridges.sum()), FURTHEST, np.uint8)
    gaps[own] = ways - FURTHEST * bridges
    with_bridges = np.zeros(len(gaps), values.dtype)
    with_bridges[own] = values
    counts = np.bincount(matrix.row_of_each, 1 + bridges, matrix.rows).astype(np.int64)
    return counts, gaps, with_bridges
