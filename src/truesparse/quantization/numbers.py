"""Which numbers of a few bits stand for the values of a layer? A pure function of its topology and its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ..nn.rounded import MOST_BITS
from ..topology import Topology
from .described import QuantizedWeights
from .kmeans import kmeans

By = Literal["row", "codebook"]
LEAST_BITS: Mapping[str, int] = {"row": 2, "codebook": 1}


def check_bits(bits: int, by: str) -> None:
    """
    Raises:
        ValueError: if there are no such numbers.
    """
    if by not in get_args(By):
        raise ValueError(f"by is one of {', '.join(map(repr, get_args(By)))}, got {by!r}")
    if type(bits) is not int or not LEAST_BITS[by] <= bits <= MOST_BITS:
        raise ValueError(f"by {by} a number has {LEAST_BITS[by]} to {MOST_BITS} bits, got {bits!r}")


def check_values(name: str, values: Tensor, bits: int, by: str) -> None:
    """
    Raises:
        ValueError: if no such numbers stand for these values of a layer.
    """
    if not bool(values.isfinite().all()):
        raise ValueError(f"layer {name!r} has weights that are NaN or infinite: no scale and no codebook holds them")
    count = values.numel()
    if by == "codebook" and 0 < count < 2**bits:
        raise ValueError(
            f"layer {name!r} has {count} connections, fewer than the {2**bits} entries of a codebook of {bits} bits: give it fewer, "
            f"bits={{{name!r}: {max(count.bit_length() - 1, 1)}, '*': {bits}}}, or exclude it"
        )


def numbers_of(topology: Topology, values: Tensor, bits: int, by: By) -> QuantizedWeights:
    """The numbers that are nearest to `values` [nnz], and their scales or codebook, of the dtype of the values.

    Args:
        topology, values: of one layer, on one device; checked.
        bits, by: as in `quantize`; checked.
    """
    values = values.detach()
    if by == "row":
        scale = row_scales(topology, values, bits)
        numbers = (values / scale.index_select(0, topology.rows)).round().to(torch.int8)
        return QuantizedWeights(by, bits, numbers, scale)
    if not values.numel():
        return QuantizedWeights(by, bits, torch.zeros(0, dtype=torch.uint8, device=values.device), values.clone())
    codebook, codes = kmeans(values, 2**bits)
    return QuantizedWeights(by, bits, codes.to(torch.uint8), codebook.to(values))


def row_scales(topology: Topology, values: Tensor, bits: int) -> Tensor:
    """[rows], so that the largest magnitude of each row is the largest number; 1 where a row has none."""
    largest = torch.zeros(topology.shape[0], dtype=values.dtype, device=values.device)
    largest.scatter_reduce_(0, topology.rows.to(torch.int64), values.abs(), "amax")
    scale = largest / (2 ** (bits - 1) - 1)
    return torch.where(scale > 0, scale, torch.ones_like(scale))
