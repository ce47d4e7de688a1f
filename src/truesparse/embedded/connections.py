"""How are connections written down? Each as the way from the one before it in its row, a byte, and its value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .network import Matrix

FURTHEST = 255  # columns that one byte bridges
MOST_IN_A_ROW = 65_535  # counts are of 16 bits


@dataclass(frozen=True, eq=False)
class Encoded:
    """The connections of a matrix.

    Args:
        counts: of each row, uint16; None: every column is connected.
        gaps: uint8, from column 0 to the first connection of a row and from each to the next; None likewise.
        values: of each connection; where a way is longer than 255, values of 0 stand in between.
    """

    counts: NDArray[np.uint16] | None
    gaps: NDArray[np.uint8] | None
    values: NDArray[Any]

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + sum(one.nbytes for one in (self.counts, self.gaps) if one is not None)


def encoded(matrix: Matrix, values: NDArray[Any]) -> Encoded:
    """In whichever form takes fewer bytes: connections, or all weights.

    Args:
        values: of its connections, [nnz], in the type that they are to have.

    Raises:
        ValueError: if a row has more connections than are counted.
    """
    counts, gaps, with_bridges = _sparse(matrix, values)
    dense = np.zeros((matrix.rows, matrix.columns), values.dtype)
    sparse_bytes = gaps.nbytes + with_bridges.nbytes + 2 * matrix.rows
    if dense.nbytes <= sparse_bytes:
        dense[matrix.row_of_each, matrix.indices] = values
        return Encoded(None, None, dense.ravel())
    if counts.size and counts.max() > MOST_IN_A_ROW:
        raise ValueError(f"a row of {counts.max():,} connections; the C counts at most {MOST_IN_A_ROW:,}. Make the layer smaller")
    return Encoded(counts.astype(np.uint16), gaps, with_bridges)


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
