"""How do gradients flow through a sparse product? The algebra closes: each gradient is another of the same verbs.

    y  = W x          needs  dW on the connections (sddmm) and  W^T dy (spmm_t)
    dx = W^T dy       needs  sddmm and spmm
    dW = <dy, x>      needs  spmm and spmm_t with the incoming gradient as values

so that double backward, and any order beyond, is right with no code of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .verbs import Verbs, values_dtype, widened


def product(values: Tensor, x: Tensor, bias: Tensor | None, verbs: Verbs) -> Tensor:
    """W x + bias, differentiable in values [nnz], x and bias.

    Beside x in a 16-bit dtype, values and bias may be of that dtype too: they are widened for the call and their gradients rounded.
    """
    result: Tensor = _Product.apply(widened(values), x, None if bias is None else widened(bias), verbs)  # type: ignore[assignment]
    return result


class _Product(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, x: Tensor, bias: Tensor | None, verbs: Verbs) -> Tensor:
        ctx.verbs = verbs
        ctx.save_for_backward(values, x)
        return verbs.spmm(values, x, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        (dy,) = grad_outputs
        values, x = ctx.saved_tensors
        need = ctx.needs_input_grad[:3]
        if not torch.is_grad_enabled():
            return *ctx.verbs.backward(values, x, dy, need), None
        # Someone asked for create_graph: go through the differentiable verbs.
        dvalues = _Sampled.apply(dy, x, ctx.verbs) if need[0] else None
        dx = _Transposed.apply(values, dy, x.shape, ctx.verbs) if need[1] else None
        dbias = dy.movedim(1, 0).flatten(1).sum(1, dtype=values_dtype(dy.dtype)) if need[2] else None
        return dvalues, dx, dbias, None  # type: ignore[return-value]


class _Transposed(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dy: Tensor, like: torch.Size, verbs: Verbs) -> Tensor:
        ctx.verbs = verbs
        ctx.save_for_backward(values, dy)
        return verbs.spmm_t(values, dy, like)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (g,) = grad_outputs
        values, dy = ctx.saved_tensors
        dvalues = _Sampled.apply(dy, g, ctx.verbs) if ctx.needs_input_grad[0] else None
        ddy = _Product.apply(values, g, None, ctx.verbs) if ctx.needs_input_grad[1] else None
        return dvalues, ddy, None, None


class _Sampled(Function):
    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, verbs: Verbs) -> Tensor:
        ctx.verbs = verbs
        ctx.save_for_backward(dy, x)
        return verbs.sddmm(dy, x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Any, ...]:
        (g,) = grad_outputs
        dy, x = ctx.saved_tensors
        ddy = _Product.apply(g, x, None, ctx.verbs) if ctx.needs_input_grad[0] else None
        dx = _Transposed.apply(g, dy, x.shape, ctx.verbs) if ctx.needs_input_grad[1] else None
        return ddy, dx, None
