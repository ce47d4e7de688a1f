"""Where are the largest gradients of what does not exist? Found in passes over dW, which is summed tile by tile in each and held in none.

A pass counts how many candidates have which leading bits; by these counts it is known, on the device, between which magnitudes the last one
to be chosen is. A second pass collects what is as large, a little more than is chosen. Only where many are alike, as zeros are, do passes
between them look at more bits, and at rows in the end. Nothing waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...topology import Topology
from .forms import Images, Side
from .loading import launch

BITS = 16  # of a magnitude that a pass looks at
PARTS = 16  # of a count, so that programs of a GPU do not wait for one another
COUNT_MAGNITUDES, COUNT_ROWS, COLLECT = range(3)  # what a pass does


class Bounds(NamedTuple):
    """What is known of the last one that is chosen, [1] int64 each, on the device.

    Args:
        least, most: keys that it is between, which are magnitudes as `kernels.py` says.
        last_row: those of keys from least to most are read up to this row.
        wanted: how many of them are chosen; all of greater keys are.
        settled: 1 once there is room for all that is as large.
    """

    least: Tensor
    most: Tensor
    last_row: Tensor
    wanted: Tensor
    settled: Tensor

    def by_magnitude(self, counts: Tensor, shift: int, k: int, room: int) -> Bounds:
        """After candidates between the two are counted by the bits from `shift` on, [2^BITS]."""
        from_top = counts.flip(0).cumsum(0)
        others = (from_top < self.wanted).sum(0, keepdim=True).clamp(max=counts.numel() - 1)
        bucket = counts.numel() - 1 - others
        reached, own = from_top.gather(0, others), counts.gather(0, bucket)
        least = self.least + (bucket << shift)
        found = Bounds(
            least, least + (1 << shift) - 1, self.last_row, self.wanted - reached + own, (k - self.wanted + reached <= room).long()
        )
        return self._unless_settled(found)

    def by_row(self, counts: Tensor) -> Bounds:
        """After those of one magnitude are counted by row, [rows]: the first ones have smaller positions."""
        last = (counts.cumsum(0) < self.wanted).sum(0, keepdim=True)
        return self._unless_settled(self._replace(last_row=last))

    def _unless_settled(self, other: Bounds) -> Bounds:
        return Bounds(*(torch.where(self.settled > 0, own, new) for own, new in zip(self, other, strict=True)))


def largest(x: Side, dy: Side, images: Images, kept: Topology, k: int) -> Tensor:
    """Positions of the k largest |dW| where `kept` has no connection.

    Holds 12 bytes for each of about 2 k candidates, some 50 while they are sorted, and a table of 4 MB.

    Args:
        x, dy: whose products over `images` are dW; all rows share the features of x.
        k: at most the number of empty positions.

    Returns:
        Linear positions, [k] int64, ascending. Ties go to the smaller position; NaN is chosen after every number.
    """
    device, (rows, columns) = kept.device, kept.shape
    if k == 0:
        return torch.empty(0, dtype=torch.int64, device=device)
    wide = torch.int64 if x.tensor.dtype == torch.float64 else torch.int32
    absent = kept.size - kept.nnz
    room = min(2 * k + columns, absent)  # k, and all of one magnitude in a row
    keys = torch.full((room,), -1, dtype=wide, device=device)
    places = torch.full((room,), kept.size, dtype=torch.int64, device=device)
    found = torch.zeros(1, dtype=torch.int32, device=device)

    def run(bounds: Bounds, task: int, shift: int, buckets: int) -> Tensor:
        counts = torch.zeros(PARTS, buckets, dtype=torch.int32, device=device)
        launch(
            "gradients_searched",
            images.pixels,
            lambda sizes: -(-rows // sizes["ROWS"]) * -(-columns // sizes["COLUMNS"]),
            *(kept.indptr, kept.indices, x.tensor, x.starts, x.stride, *x.places, dy.tensor, dy.stride, *dy.places),
            *(rows, columns, columns.bit_length(), *images),
            *(bounds.least, bounds.most, bounds.last_row, bounds.settled, task, shift),
            *(counts, buckets, PARTS, keys, places, found, room),
            device=device,
        )
        return counts.sum(0)

    least, most, last_row, wanted, settled = (
        torch.full((1,), value, dtype=torch.int64, device=device) for value in (0, torch.iinfo(wide).max, rows - 1, k, room == absent)
    )
    bounds = Bounds(least, most, last_row, wanted, settled)
    if room < absent:
        for shift in range(torch.iinfo(wide).bits - BITS, -1, -BITS):
            bounds = bounds.by_magnitude(run(bounds, COUNT_MAGNITUDES, shift, 1 << BITS), shift, k, room)
        bounds = bounds.by_row(run(bounds, COUNT_ROWS, 0, rows))
    run(bounds, COLLECT, 0, 1)
    places, order = places.sort()
    chosen = keys[order].argsort(descending=True, stable=True)[:k]
    return places[chosen].sort().values
