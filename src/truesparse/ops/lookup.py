"""How are rows of a sparse matrix looked up, and how does their gradient come back? By the places of their connections.

    y = W[rows]         needs  dW on the connections: dy gathered from where they are in y
    dW = gathered dy    needs  the incoming gradient looked up in the same way

so that double backward is right with no code of its own. Nothing of the size of W is made.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from ..common.tracing import follower
from ..topology import Topology
from .autograd import Heard, _saved


class _Places(NamedTuple):
    """Where connections are: among all of a matrix, and in rows of it, flattened."""

    held: Tensor
    shown: Tensor
    shape: tuple[int, int]


def lookup(values: Tensor, rows: Tensor, topology: Topology, heard: Heard | None = None) -> Tensor:
    """W[rows], dense, [n, columns]; differentiable in values [nnz].

    Args:
        rows: [n] int64 or int32, any number of times each.
        heard: called with (dvalues, rows, dy), detached, whenever a backward pass takes this for a gradient of `values`: the dense
            gradient is dy [n, columns] added to those rows.

    Raises:
        IndexError: if there is no such row.
    """
    count, columns = topology.shape
    if rows.numel() and not (int(rows.min()) >= 0 and int(rows.max()) < count):
        raise IndexError(f"expected indices from 0 to {count - 1}, got {int(rows.min())} to {int(rows.max())}")
    first = topology.indptr.index_select(0, rows).long()
    lengths = topology.indptr.index_select(0, rows + 1).long() - first
    before = lengths.cumsum(0) - lengths
    row = torch.arange(len(rows), device=rows.device).repeat_interleave(lengths)
    held = torch.arange(len(row), device=rows.device) + (first - before).index_select(0, row)
    shown = row * columns + topology.indices.index_select(0, held).long()
    if follower() is not None:  # gradients that go to no .grad
        return values.new_zeros(len(rows) * columns).index_copy(0, shown, values.index_select(0, held)).view(len(rows), columns)
    result: Tensor = _Lookup.apply(values, rows, _Places(held, shown, (len(rows), columns)), heard)  # type: ignore[assignment]
    return result


class _Lookup(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rows: Tensor, places: _Places, heard: Heard | None) -> Tensor:
        ctx.rows, ctx.places, ctx.heard = rows, places, heard
        ctx.save_for_backward(values, places.held)
        y = values.new_zeros(places.shape[0] * places.shape[1])
        return y.index_copy_(0, places.shown, values.index_select(0, places.held)).view(places.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (dy,) = grad_outputs
        values, _ = _saved(ctx)
        dvalues: Tensor = _Gathered.apply(dy, ctx.rows, ctx.places, len(values))  # type: ignore[assignment]
        if ctx.heard is not None:
            ctx.heard(dvalues.detach(), ctx.rows, dy.detach())
        return dvalues, None, None, None


class _Gathered(Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, rows: Tensor, places: _Places, count: int) -> Tensor:
        ctx.rows, ctx.places = rows, places
        return dy.new_zeros(count).index_add_(0, places.held, dy.reshape(-1).index_select(0, places.shown))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (g,) = grad_outputs
        return _Lookup.apply(g, ctx.rows, ctx.places, None), None, None, None
