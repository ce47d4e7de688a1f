"""Which entries of a weight exist, also where they are zero? One dense array says it: in a marked weight NaN is a zero that exists.

So it can be turned, cut into parts and put into modules like any weight, and what exists goes with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.sparse import SparseSemiStructuredTensor
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

from ...common.quiet import quiet


def marked(name: str, weight: Tensor, present: Tensor | None = None) -> Tensor:
    """The marked weight.

    Args:
        name: of the weight, for the message.
        weight: dense.
        present: bool of its shape, which entries exist; None: those that are not zero.

    Raises:
        ValueError: if it holds NaN.
    """
    if weight.is_floating_point() and bool(weight.isnan().any()):
        raise ValueError(f"{name!r} holds NaN, which is no weight: look for what went wrong when it was trained or stored")
    return weight if present is None else weight.masked_fill(~present, 0).masked_fill(present & (weight == 0), torch.nan)


def plain(weight: Tensor) -> Tensor:
    """The dense weight that a marked one stands for."""
    return weight.masked_fill(weight.isnan(), 0) if weight.is_floating_point() else weight


def is_sparse(tensor: Tensor) -> bool:
    """Whether it is stored as its entries and where they are."""
    return isinstance(tensor, SparseSemiStructuredTensor) or tensor.layout is not torch.strided


def from_anything(name: str, array: Any) -> Tensor:
    """The marked weight of a tensor of torch in any layout, or of whatever numpy takes for an array. What a layout stores exists.

    Raises:
        ValueError: if it cannot be read.
        TypeError: if it is no array of numbers.
    """
    if not isinstance(array, Tensor):
        return marked(name, _from_numpy(name, array))
    tensor = array.detach()
    if isinstance(tensor, SparseSemiStructuredTensor):
        return _from_semi_structured(name, tensor)
    if tensor.layout is torch.strided:
        return marked(name, tensor)
    try:
        present = _stored(tensor)
    except RuntimeError as error:
        raise ValueError(f"{name!r} of the source is damaged: {str(error).splitlines()[0]}") from error
    return marked(name, tensor.to_dense(), present)


def _stored(tensor: Tensor) -> Tensor:
    """Where a sparse tensor stores a value, a dense bool.

    Raises:
        RuntimeError: if its positions are none.
    """
    if tensor.layout is torch.sparse_coo:
        positions = tensor._indices()
        ones = torch.ones_like(tensor._values())
        return torch.sparse_coo_tensor(positions, ones, tensor.shape, check_invariants=True, device=ones.device).to_dense() != 0
    by_rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
    outer, inner = (tensor.crow_indices(), tensor.col_indices()) if by_rows else (tensor.ccol_indices(), tensor.row_indices())
    with quiet():  # torch says once in a process that these layouts are new
        ones = torch.ones_like(tensor.values())
        like: dict[str, Any] = {"layout": tensor.layout, "device": ones.device}
        return torch.sparse_compressed_tensor(outer, inner, ones, tensor.shape, check_invariants=True, **like).to_dense() != 0


def _from_semi_structured(name: str, tensor: Any) -> Tensor:
    """Two of four: CUTLASS keeps values and their places apart; cuSPARSELt mixes them in an order that it does not tell."""
    if tensor.meta is not None and tensor.meta.ndim == 2 and tensor.packed is not None:
        present = sparse_semi_structured_to_dense_cutlass(torch.ones_like(tensor.packed), tensor.meta) != 0
        weight = tensor.packed.new_zeros(present.shape)
        weight[present] = tensor.packed.flatten()  # torch's own way is not exact in float32: it moves halves, some of which are NaN
        return marked(name, weight, present)
    if tensor.device.type == "cpu":
        raise ValueError(
            f"{name!r} of the source is a {type(tensor).__name__}, whose packed form only a GPU can unfold: call to_dense() on it there"
        )
    return marked(name, tensor.to_dense())


def _from_numpy(name: str, array: Any) -> Tensor:
    found = np.asarray(array)
    if found.dtype.name == "bfloat16":  # numpy has it from ml_dtypes, and torch does not know it
        return torch.from_numpy(np.ascontiguousarray(found).view(np.int16).copy()).view(torch.bfloat16)
    if found.dtype.kind not in "fiub":
        raise TypeError(f"{name!r} of the source is a {type(array).__name__}, no array of real numbers")
    return torch.from_numpy(np.array(found, copy=True, order="C"))
