"""How do gradients flow through a sparse product? The algebra closes: each gradient is another of the same verbs.

    y  = W x          needs  dW on the connections (sddmm) and  W^T dy (spmm_t)
    dx = W^T dy       needs  sddmm and spmm
    dW = <dy, x>      needs  spmm and spmm_t with the incoming gradient as values

so that double backward, and any order beyond, is right with no code of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .verbs import WIDE, Verbs, values_dtype, widened

CHANGED = (
    "a sparse layer changed between a forward pass and its backward pass (it was rewired, loaded or stepped by an optimizer): "
    "call backward() before rewirer.step() and optimizer.step(), or run the forward pass again"
)
Heard = Callable[[Tensor, Tensor, Tensor], None]


def product(values: Tensor, x: Tensor, bias: Tensor | None, verbs: Verbs, heard: Heard | None = None) -> Tensor:
    """W x + bias, differentiable in values [nnz], x and bias.

    Beside x in a 16-bit dtype, values and bias may be of that dtype too: they are widened for the call and their gradients rounded.

    Args:
        heard: called with (dvalues, dy, x), not detached, whenever a backward pass takes dy^T x for a gradient of `values`: dvalues is what
            it is at the connections. The dense gradient is the sum of dy^T x everywhere, whatever the order of differentiation.
    """
    if x.dtype not in WIDE:
        values, bias = widened(values), None if bias is None else widened(bias)
    result: Tensor = _apply_product(values, x, bias, verbs, heard)
    return result


def transposed(values: Tensor, dy: Tensor, like: torch.Size, verbs: Verbs, heard: Heard | None = None) -> Tensor:
    """W^T dy, of shape `like`, in the same way."""
    result: Tensor = _Transposed.apply(widened(values), dy, like, verbs, heard)  # type: ignore[assignment]
    return result


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, bias: Tensor | None, verbs: Verbs, heard: Heard | None) -> Tensor:
        ctx.verbs, ctx.heard = verbs, heard
        ctx.save_for_backward(values, x)
        return verbs.spmm(values, x, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        values, x = _saved(ctx)
        need = ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled():
            dvalues, dx, dbias = ctx.verbs.backward(values, x, dy, need)
            _tell(ctx, dvalues, dy, x)
            return dvalues, dx, dbias, None, None
        # Someone asked for create_graph: go through the differentiable verbs.
        dvalues = _Sampled.apply(dy, x, ctx.verbs, ctx.heard) if need[0] else None
        dx = _Transposed.apply(values, dy, x.shape, ctx.verbs, ctx.heard) if need[1] else None
        dbias = dy.movedim(1, 0).flatten(1).sum(1, dtype=values_dtype(dy.dtype)) if need[2] else None
        _tell(ctx, dvalues, dy, x)
        return dvalues, dx, dbias, None, None  # type: ignore[return-value]


class _Transposed(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dy: Tensor, like: torch.Size, verbs: Verbs, heard: Heard | None) -> Tensor:
        ctx.verbs, ctx.heard = verbs, heard
        ctx.save_for_backward(values, dy)
        return verbs.spmm_t(values, dy, like)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (g,) = grad_outputs
        values, dy = _saved(ctx)
        dvalues = _Sampled.apply(dy, g, ctx.verbs, ctx.heard) if ctx.needs_input_grad[0] else None
        ddy = _Product.apply(values, g, None, ctx.verbs, ctx.heard) if ctx.needs_input_grad[1] else None
        _tell(ctx, dvalues, dy, g)
        return dvalues, ddy, None, None, None


class _Sampled(Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, verbs: Verbs, heard: Heard | None) -> Tensor:
        ctx.verbs, ctx.heard = verbs, heard
        ctx.save_for_backward(dy, x)
        return verbs.sddmm(dy, x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        # What flows back here are values of a network of its own, not gradients of the layer's: nobody hears of theirs.
        (g,) = grad_outputs
        dy, x = ctx.saved_tensors
        ddy = _Product.apply(g, x, None, ctx.verbs, None) if ctx.needs_input_grad[0] else None
        dx = _Transposed.apply(g, dy, x.shape, ctx.verbs, None) if ctx.needs_input_grad[1] else None
        return ddy, dx, None, None


# What Function.apply itself adds is for torch.func, where layers call operators.
_apply_product = super(Function, _Product).apply  # type: ignore[misc]


def _tell(ctx: Any, dvalues: Tensor | None, dy: Tensor, x: Tensor) -> None:
    if ctx.heard is not None and dvalues is not None:
        ctx.heard(dvalues, dy, x)


def _saved(ctx: Any) -> tuple[Tensor, Tensor]:
    """What forward saved.

    Raises:
        RuntimeError: if the values are no longer those of the forward pass.
    """
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(f"{CHANGED}; torch says: {error}") from error
