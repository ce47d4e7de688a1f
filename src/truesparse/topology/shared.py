"""How many neighbouring rows share their columns? Kernels ask, whatever pattern the connections came from."""

from __future__ import annotations

import torch

from .topology import Topology

MOST_SHARED_ROWS = 64


def shared_rows(topology: Topology) -> int:
    """The largest of 64, 32, 16, 8, 4, 2, 1 that divides the rows and of which so many neighbouring rows, aligned, have equal columns.

    Empty rows are equal to one another. 1 if there is no connection. Found once for each topology, in a few passes over its indices.
    """
    return topology.derived(_shared_rows)


def _shared_rows(topology: Topology) -> int:
    (rows, _), indptr, indices = topology.shape, topology.indptr, topology.indices
    if not topology.nnz or rows == 1:
        return 1
    fan_in = topology.fan_in
    first = indices[indptr[:-1].clamp(max=topology.nnz - 1)]  # of empty rows next to one another the same, whichever that is
    differs = (fan_in.diff() != 0) | (first.diff() != 0)  # [rows - 1], from the row before
    if topology.device.type == "cpu" and bool(differs[::2].any()):  # elsewhere the answer would be waited for
        return 1
    back = torch.repeat_interleave(fan_in, fan_in, output_size=topology.nnz)  # to the same place in a row before that is as long
    before = (torch.arange(topology.nnz, device=indices.device) - back).clamp(min=0)
    unlike = torch.cat([indptr.new_zeros(1), (indices != indices[before]).cumsum(0, dtype=torch.int32)])
    differs |= unlike[indptr].diff()[1:] != 0
    # Groups of g rows share theirs if each row that differs is a multiple of g: the least power of two that divides all of those.
    row = torch.arange(1, rows, device=indices.device)
    divides = torch.where(differs, row & -row, MOST_SHARED_ROWS)
    return min(int(divides.min()), rows & -rows, MOST_SHARED_ROWS)
