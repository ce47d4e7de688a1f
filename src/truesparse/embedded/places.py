"""Which rearrangements move no number, or only a matrix across its diagonal?"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from .network import Place


def rotation(order: Sequence[int]) -> int | None:
    """Where the dimensions are cut so that the two parts change places; 0: nowhere, they stay. None if it is no such order."""
    at = order[0] if order else 0
    return at if list(order) == [*range(at, len(order)), *range(at)] else None


def indexed(place: Place, index: Any) -> Place | None:
    """The part that an index of a batch takes: all samples, numbers, then one slice in steps of 1. None if it is no such part."""
    index = index if isinstance(index, tuple) else (index,)
    if Ellipsis in index:
        at = index.index(Ellipsis)
        index = (*index[:at], *[slice(None)] * (len(place.shape) + 2 - len(index)), *index[at + 1 :])
    if not index or index[0] != slice(None):
        return None
    offset, shape, leading = place.offset, list(place.shape), 0
    for one in index[1:]:
        if not isinstance(one, int) or leading == len(shape):
            break
        size = shape[leading]
        offset += (one + size if one < 0 else one) * prod(shape[leading + 1 :])
        leading += 1
    rest, shape = index[1 + leading :], shape[leading:]
    if rest and isinstance(rest[0], slice):
        start, stop, step = rest[0].indices(shape[0])
        if step != 1:
            return None
        offset += start * prod(shape[1:])
        shape[0] = max(stop - start, 0)
        rest = rest[1:]
    return Place(place.buffer, tuple(shape), offset) if all(one == slice(None) for one in rest) else None
