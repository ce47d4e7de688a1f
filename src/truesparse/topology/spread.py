"""What would an array of connections hold where there is none? The product of a number for the row and one for the column."""

from __future__ import annotations

import torch
from torch import Tensor

from .topology import Topology

ROUNDS = 10


def row_and_column_factors(topology: Topology, values: Tensor) -> tuple[Tensor, Tensor]:
    """([rows], [columns]) whose products have the sums of `values` over each row and over each column: what stands at (row, column)
    is about factor x factor, whether there is a connection or not.

    For a full layer this is what Adafactor keeps of second moments (Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235, section 3);
    with connections missing it is found in rounds, row by row and column by column. Costs `ROUNDS` times a step for each connection.
    Rows and columns without connections have the mean of the others.

    Args:
        topology: which connections there are.
        values: [nnz], at least 0.
    """
    held, ends = values.double(), (topology.rows.long(), topology.indices.long())
    sums = [held.new_zeros(extent).index_add_(0, end, held) for extent, end in zip(topology.shape, ends, strict=True)]
    there = [torch.bincount(end, minlength=extent) > 0 for extent, end in zip(topology.shape, ends, strict=True)]
    factors = [held.new_ones(extent) for extent in topology.shape]
    for turn in range(2 * ROUNDS):
        side, other = turn % 2, 1 - turn % 2
        weights = torch.zeros_like(sums[side]).index_add_(0, ends[side], factors[other][ends[other]])
        factors[side] = torch.where(weights > 0, sums[side] / weights, 0.0)
    row, column = (
        torch.where(known, factor, factor[known].mean() if bool(known.any()) else 0.0) for factor, known in zip(factors, there, strict=True)
    )
    return row.to(values.dtype), column.to(values.dtype)
