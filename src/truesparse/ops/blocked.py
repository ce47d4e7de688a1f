"""Which connections does a row hold in each block of columns? The layout of the CPU kernels.

Values stay in the one order of the topology: because columns ascend within a row, a (row, block) is a run of
connections, and a block costs one pointer per row. The transposed layout lists the connections by what they read
from, with the index of each in the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _core
from ..topology import Topology
from ..topology.geometry import Convolution
from ..topology.merge import threads_for

CONNECTIONS_PER_BLOCK = 8  # of a row, on average, at least: fewer would not pay for the block's pointers and sums
COLUMNS_PER_BLOCK = 64  # at least; kernels walk several blocks at once where their cache has room


@dataclass(frozen=True, eq=False)
class Blocked:
    """Connections by target row and block of source columns. `nbytes` counts what it holds beyond the topology."""

    layout: _core.Layout
    arrays: tuple[Tensor, ...]  # the layout holds their addresses
    nbytes: int


def forward_blocks(topology: Topology) -> Blocked:
    """The topology as it stands, cut into blocks. 4 bytes per row and block but one."""
    return _blocked(topology.shape, topology.indptr, topology.indices, None, 1, topology.shape[0])


def transposed_blocks(topology: Topology) -> Blocked:
    """The transposed topology. 8 bytes per connection, and 4 per row and block."""
    rows, columns = topology.shape
    indptr, indices, permutation = _empty_transpose(topology, columns)
    _core.transpose(
        rows,
        columns,
        topology.indptr.data_ptr(),
        topology.indices.data_ptr(),
        indptr.data_ptr(),
        indices.data_ptr(),
        permutation.data_ptr(),
        threads_for(topology.nnz),
    )
    return _blocked((columns, rows), indptr, indices, permutation, 1, columns)


def forward_channel_blocks(topology: Topology, geometry: Convolution) -> Blocked:
    """Like `forward_blocks`, with whole channels in each block."""
    taps = geometry.taps
    return _blocked(topology.shape, topology.indptr, topology.indices, None, taps, geometry.out_channels // geometry.groups)


def transposed_channel_blocks(topology: Topology, geometry: Convolution) -> Blocked:
    """Rows are (in channel, phase of the stride), columns (out channel, tap). 8 bytes per connection and 4 per row and block."""
    taps = geometry.taps
    targets = geometry.in_channels * geometry.stride[0] * geometry.stride[1]
    indptr, indices, permutation = _empty_transpose(topology, targets)
    _core.transpose_convolution(
        core_convolution(geometry),
        topology.indptr.data_ptr(),
        topology.indices.data_ptr(),
        indptr.data_ptr(),
        indices.data_ptr(),
        permutation.data_ptr(),
    )
    return _blocked((targets, geometry.out_channels * taps), indptr, indices, permutation, taps, targets)


def core_convolution(geometry: Convolution) -> _core.Convolution:
    """The geometry as the kernels want it."""
    g = geometry
    return _core.Convolution(g.in_channels, g.out_channels, g.kernel, g.stride, g.padding, g.dilation, g.groups)


def _empty_transpose(topology: Topology, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty(targets + 1, dtype=torch.int32),
        torch.empty(topology.nnz, dtype=torch.int32),
        torch.empty(topology.nnz, dtype=torch.int32),
    )


def _blocked(
    shape: tuple[int, int], indptr: Tensor, indices: Tensor, permutation: Tensor | None, whole: int, rows_per_group: int
) -> Blocked:
    """Blocks of a multiple of `whole` columns. Only rows of one group of `rows_per_group` read the same source for the same index."""
    rows, columns = shape
    density = indices.numel() / max(rows * columns, 1)
    width = max(COLUMNS_PER_BLOCK if whole == 1 else whole, math.ceil(CONNECTIONS_PER_BLOCK / density) if density else columns)
    width = min(math.ceil(width / whole) * whole, max(columns, 1))
    blocks = max(math.ceil(columns / width), 1)
    starts = torch.empty((blocks - 1) * rows, dtype=torch.int32)
    _core.block_starts(rows, indptr.data_ptr(), indices.data_ptr(), width, blocks, starts.data_ptr(), threads_for(indices.numel()))
    where = 0 if permutation is None else permutation.data_ptr()
    alike = _core.rows_alike(rows, indptr.data_ptr(), indices.data_ptr(), rows_per_group)
    layout = _core.Layout(rows, columns, indptr.data_ptr(), indices.data_ptr(), where, starts.data_ptr(), blocks, width, alike)
    own = (starts,) if permutation is None else (starts, indptr, indices, permutation)
    return Blocked(layout, (indptr, indices, *own), sum(array.nbytes for array in own))
