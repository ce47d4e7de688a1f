"""Which connections live and die together? Blocks of `height` x `width` places: as a topology of blocks, and back. Nothing is sorted."""

from __future__ import annotations

import torch
from torch import Tensor

from .topology import Topology, check_count

Extent = tuple[int, int]  # (height, width) of a block


def connections_of(grid: Topology, block: Extent) -> Topology:
    """All connections of the blocks `grid`.

    Raises:
        ValueError: if they are more than a topology holds.
    """
    (height, width), rows = block, grid.shape[0] * block[0]
    nnz = grid.nnz * height * width
    check_count(nnz)
    counts = (grid.indptr.diff() * width).repeat_interleave(height, output_size=rows)
    indptr = torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)])
    # The rows of a block have the same columns: each reads those of its row of blocks.
    columns = (grid.indices[:, None] * width + torch.arange(width, dtype=torch.int32, device=grid.device)).flatten()
    offset = (grid.indptr[:-1] * width).repeat_interleave(height, output_size=rows) - indptr[:-1]
    places = offset.repeat_interleave(counts, output_size=nnz) + torch.arange(nnz, dtype=torch.int32, device=grid.device)
    filled = Topology._trusted((rows, grid.shape[1] * width), indptr, columns[places])
    filled.derives(grid, blocks_of, block)
    return filled


def blocks_of(topology: Topology, block: Extent) -> Topology:
    """The blocks in which `topology` has a connection, whole or not; its shape is a multiple of theirs."""
    whole = _whole_blocks(topology, block)
    if whole is not None:
        return whole
    (height, width), (rows, columns) = block, topology.shape
    return Topology._collected((rows // height, columns // width), topology.rows // height, topology.indices // width)


def block_of_each(topology: Topology, grid: Topology, block: Extent) -> Tensor:
    """Which of the blocks `grid` of `topology` each connection is in, [nnz]."""
    height, width = block
    if grid.nnz * height * width != topology.nnz:  # some are not whole
        keys = topology.rows.long() // height * grid.shape[1] + topology.indices // width
        return torch.searchsorted(grid.keys, keys)
    counts, begin = topology.indptr.diff(), grid.indptr[:-1].repeat_interleave(height, output_size=topology.shape[0])
    first, begin = (of.repeat_interleave(counts, output_size=topology.nnz) for of in (topology.indptr[:-1], begin))
    return begin + (torch.arange(topology.nnz, dtype=torch.int32, device=topology.device) - first) // width


def _whole_blocks(topology: Topology, block: Extent) -> Topology | None:
    """The blocks that `topology` is made of; None if some are not whole."""
    height, width = block
    blocks, rest = divmod(topology.nnz, height * width)
    if rest:
        return None
    # If all are whole, the first rows of the blocks tell where they are; what that makes of them tells whether they are.
    first = topology.indptr[::height].contiguous()
    indptr = first // (height * width)
    number = torch.arange(blocks, dtype=torch.int32, device=topology.device)
    row = torch.searchsorted(indptr[1:], number, right=True)
    place = (first[row] + (number - indptr[row]) * width).clamp(max=max(topology.nnz - 1, 0))
    shape = (topology.shape[0] // height, topology.shape[1] // width)
    grid = Topology._trusted(shape, indptr, topology.indices[place] // width)
    filled = connections_of(grid, block)
    alike = (filled.indptr == topology.indptr).all() & (filled.indices == topology.indices).all()
    return grid if bool(alike) else None
