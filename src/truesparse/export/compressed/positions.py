"""In how few bits can it be said which connections exist? By the gaps between them, over all rows as if they were one.

A gap is the number of positions `row * columns + column` between a connection and the one before it. Its lowest bits, `low` of them, are
written as they are, for they are as good as random; the others are symbols of a stream: 0 to 62, or 63, which says that 63 follow and the
number goes on with the next symbol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...topology import Topology
from .streams import Coded, decode, encode, entropy_of

Array = NDArray[Any]

ESCAPE = 63
MOST_LOW = 24  # bits
SAMPLE = 1 << 16  # gaps that are looked at to choose how many of their bits are low


@dataclass(frozen=True)
class Positions:
    """A topology as a file has it.

    Attributes:
        low: how many bits of each gap are written as they are.
        lowest: they, the lowest first, eight in a byte.
        gaps: the stream of the others.
    """

    low: int
    lowest: bytes
    gaps: Coded

    @property
    def entropy(self) -> float:
        """In bits, of what was coded."""
        return self.gaps.entropy + 8 * len(self.lowest)


def encode_positions(topology: Topology) -> Positions:
    """The gaps, with as many low bits apart as makes them shortest. The topology is on the CPU."""
    keys = topology.keys.numpy()
    gaps = np.diff(keys, prepend=-1) - 1
    some = gaps[:: max(1, gaps.size // SAMPLE)]
    most = min(MOST_LOW, int(some.mean()).bit_length() + 1) if some.size else 0  # more would leave nothing to tell gaps by
    low = min(range(most + 1), key=lambda bits: _nbits(some, bits))
    lowest = (gaps[:, None] >> np.arange(low)) & 1 if low else np.zeros(0)
    return Positions(low, np.packbits(lowest.astype(bool), bitorder="little").tobytes(), encode(_symbols(gaps >> low), topology.shape[0]))


def decode_positions(shape: tuple[int, int], connections: int, low: int, lowest: bytes, gaps: bytes, symbols: int) -> Topology:
    """The topology that was encoded. No array is made that is not in proportion to the bytes given.

    Raises:
        ValueError: if they do not describe so many connections of this shape.
    """
    if not 0 <= low <= MOST_LOW or len(lowest) != (low * connections + 7) // 8:
        raise ValueError(f"{len(lowest)} bytes are not {low} bits for each of {connections} connections")
    found = decode(gaps, symbols, shape[0])
    ends = found != ESCAPE
    if np.count_nonzero(ends) != connections or (found.size and not ends[-1]):
        raise ValueError(f"its gaps must end in a connection and have {connections}, got {np.count_nonzero(ends)}")
    steps = np.diff(np.cumsum(found, dtype=np.int64)[ends], prepend=0) << low
    if low:
        bits = np.unpackbits(np.frombuffer(lowest, dtype=np.uint8), count=low * connections, bitorder="little").reshape(connections, low)
        for place in range(low):
            steps += bits[:, place].astype(np.int64) << place
    keys = np.cumsum(steps + 1) - 1
    rows, columns = shape
    if keys.size and not 0 <= int(keys[-1]) < rows * columns:
        raise ValueError(f"its gaps lead to position {int(keys[-1])}; positions lie in [0, {rows * columns})")
    starts = np.arange(rows + 1, dtype=np.int64) * columns
    indptr = np.searchsorted(keys, starts) if columns else np.zeros(rows + 1)
    indices = keys - np.repeat(starts[:-1], np.diff(indptr)) if columns else keys
    return Topology(shape, torch.from_numpy(indptr.astype(np.int32)), torch.from_numpy(indices.astype(np.int32)))


def _symbols(numbers: Array) -> NDArray[np.uint8]:
    large = np.flatnonzero(numbers >= ESCAPE)  # few: division takes longer than all the rest
    escapes = np.zeros(numbers.size, dtype=np.int64)
    escapes[large] = numbers[large] // ESCAPE
    written = np.full(numbers.size + int(escapes.sum()), ESCAPE, dtype=np.uint8)
    written[np.arange(numbers.size) + np.cumsum(escapes)] = numbers - ESCAPE * escapes
    return written


def _nbits(gaps: Array, low: int) -> float:
    """About how many bits they take."""
    numbers = gaps >> low
    is_large = numbers >= ESCAPE
    small, large = numbers[~is_large], numbers[is_large]  # few, as above
    counts = np.bincount(small, minlength=ESCAPE + 1) + np.bincount(large % ESCAPE, minlength=ESCAPE + 1)
    counts[ESCAPE] = int((large // ESCAPE).sum())
    return entropy_of(counts) + low * gaps.size + 8 * np.count_nonzero(counts)
