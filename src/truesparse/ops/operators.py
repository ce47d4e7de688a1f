"""What are the verbs to torch? Operators: graphs hold them, programs are exported with them, functions of functions go through them.

    truesparse::spmm(values, x, bias, indptr, indices, geometry, listener) -> y
    truesparse::spmm_t(values, dy, like, indptr, indices, geometry, listener) -> dx
    truesparse::sddmm(dy, x, indptr, indices, geometry, listener) -> dvalues
    truesparse::gradients(values, x, dy, need, indptr, indices, geometry, listener) -> (dvalues, dx, dbias), empty where not needed

`reference.py` says what they mean. They take the topology as tensors, so that a program which holds them holds all it needs. `geometry` is
the `repr` of one, `listener` a number of `listeners.py`. Values and bias may have the 16-bit dtype of x, as their gradients then have.
The algebra is that of `autograd.py`: each gradient of a verb is another verb.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ..common.tracing import may_be_followed
from . import autograd
from .autograd import Heard
from .differentiable import differentiable
from .known import geometry_in, topology_in
from .listeners import NOBODY, Listener, of_one_product, tell, topology_of
from .table import verbs_for
from .verbs import Verbs, values_dtype, widened

Three = tuple[Tensor, Tensor, Tensor]

WHERE = "Tensor indptr, Tensor indices, str geometry, int listener"
_library = torch.library.Library("truesparse", "DEF")
_library.define(f"spmm(Tensor values, Tensor x, Tensor? bias, {WHERE}) -> Tensor")
_library.define(f"spmm_t(Tensor values, Tensor dy, SymInt[] like, {WHERE}) -> Tensor")
_library.define(f"sddmm(Tensor dy, Tensor x, {WHERE}) -> Tensor")
_library.define(f"gradients(Tensor values, Tensor x, Tensor dy, bool[] need, {WHERE}) -> (Tensor, Tensor, Tensor)")
spmm = torch.ops.truesparse.spmm.default
spmm_t = torch.ops.truesparse.spmm_t.default
sddmm = torch.ops.truesparse.sddmm.default
gradients = torch.ops.truesparse.gradients.default


def _verbs(dtype: torch.dtype, indptr: Tensor, indices: Tensor, geometry: str, listener: int) -> Verbs:
    what = geometry_in(geometry)
    return verbs_for(topology_of(listener, indptr, indices) or topology_in(what.shape, indptr, indices), what, dtype)


# What they compute.


def _spmm(values: Tensor, x: Tensor, bias: Tensor | None, *where: Any) -> Tensor:
    return _verbs(x.dtype, *where).spmm(widened(values), x, None if bias is None else widened(bias)).contiguous()


def _spmm_t(values: Tensor, dy: Tensor, like: Sequence[int], *where: Any) -> Tensor:
    return _verbs(dy.dtype, *where).spmm_t(widened(values), dy, torch.Size(like)).contiguous()


def _sddmm(dy: Tensor, x: Tensor, *where: Any) -> Tensor:
    dvalues = _verbs(x.dtype, *where).sddmm(dy, x).contiguous()
    _, indices, _, listener = where
    if listener:
        tell(listener, indices, dvalues.clone(), dy, x)
    return dvalues


def _gradients(values: Tensor, x: Tensor, dy: Tensor, need: Sequence[bool], *where: Any) -> Three:
    found = _verbs(x.dtype, *where).backward(widened(values), x, dy, (need[0], need[1], need[2]))
    _, indices, _, listener = where
    if listener and found[0] is not None:
        tell(listener, indices, found[0].clone(), dy, x)
    like = (values, x, values)
    dvalues, dx, dbias = (one.new_empty(0) if got is None else got.to(one.dtype).contiguous() for got, one in zip(found, like, strict=True))
    return dvalues, dx, dbias


# What shape it has.


def _spmm_shape(values: Tensor, x: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, geometry: str, listener: int) -> Tensor:
    return x.new_empty(geometry_in(geometry).output_shape(x.shape))


def _spmm_t_shape(values: Tensor, dy: Tensor, like: Sequence[int], *where: Any) -> Tensor:
    return dy.new_empty(like)


def _sddmm_shape(dy: Tensor, x: Tensor, indptr: Tensor, indices: Tensor, geometry: str, listener: int) -> Tensor:
    return dy.new_empty(indices.shape, dtype=values_dtype(dy.dtype))


def _gradients_shapes(values: Tensor, x: Tensor, dy: Tensor, need: Sequence[bool], *where: Any) -> Three:
    shapes, like = (values.shape, x.shape, dy.shape[1:2]), (values, x, values)
    dvalues, dx, dbias = (one.new_empty(shape if wanted else (0,)) for one, shape, wanted in zip(like, shapes, need, strict=True))
    return dvalues, dx, dbias


# What its derivatives are: gradients backward, tangents forward.


def _keep_spmm(
    ctx: Any, values: Tensor, x: Tensor, bias: Tensor | None, indptr: Tensor, indices: Tensor, geometry: str, listener: int
) -> None:
    ctx.save_for_backward(values, x, indptr, indices)
    ctx.rest = geometry, of_one_product(listener)


def _spmm_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, x, *arrays = ctx.saved_tensors
    need = ctx.needs_input_grad[1:4]
    found = gradients(values, x, dy, need, *arrays, *ctx.rest)
    return *(one if wanted else None for one, wanted in zip(found, need, strict=True)), None, None, None, None


def _spmm_forward(ctx: Any, tvalues: Tensor | None, tx: Tensor | None, tbias: Tensor | None, *_: Any) -> Tensor | None:
    values, x, *arrays = ctx.saved_tensors
    where = (*arrays, ctx.rest[0], NOBODY)
    return _sum(
        None if tvalues is None else spmm(tvalues, x, None, *where),
        None if tx is None else spmm(values, tx, None, *where),
        None if tbias is None else _of_rows(tbias, geometry_in(ctx.rest[0]).output_shape(x.shape)).to(x.dtype),
    )


def _keep_spmm_t(
    ctx: Any, values: Tensor, dy: Tensor, like: Sequence[int], indptr: Tensor, indices: Tensor, geometry: str, listener: int
) -> None:
    ctx.save_for_backward(values, dy, indptr, indices)
    ctx.like, ctx.rest = like, (geometry, of_one_product(listener))


def _spmm_t_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    values, dy, *arrays = ctx.saved_tensors
    dvalues = sddmm(dy, g, *arrays, *ctx.rest).to(values.dtype) if ctx.needs_input_grad[1] else None
    ddy = spmm(values, g, None, *arrays, *ctx.rest) if ctx.needs_input_grad[2] else None
    return dvalues, ddy, None, None, None, None, None


def _spmm_t_forward(ctx: Any, tvalues: Tensor | None, tdy: Tensor | None, *_: Any) -> Tensor | None:
    values, dy, *arrays = ctx.saved_tensors
    where = (ctx.like, *arrays, ctx.rest[0], NOBODY)
    return _sum(None if tvalues is None else spmm_t(tvalues, dy, *where), None if tdy is None else spmm_t(values, tdy, *where))


def _keep_sddmm(ctx: Any, dy: Tensor, x: Tensor, indptr: Tensor, indices: Tensor, geometry: str, listener: int) -> None:
    # What flows back here are values of a network of its own, not gradients of the layer's: nobody hears of theirs.
    ctx.save_for_backward(dy, x, indptr, indices)
    ctx.rest = geometry, NOBODY


def _sddmm_backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    dy, x, *arrays = ctx.saved_tensors
    ddy = spmm(g, x, None, *arrays, *ctx.rest) if ctx.needs_input_grad[1] else None
    dx = spmm_t(g, dy, x.shape, *arrays, *ctx.rest) if ctx.needs_input_grad[2] else None
    return ddy, dx, None, None, None, None


def _sddmm_forward(ctx: Any, tdy: Tensor | None, tx: Tensor | None, *_: Any) -> Tensor | None:
    dy, x, *arrays = ctx.saved_tensors
    where = (*arrays, *ctx.rest)
    return _sum(None if tdy is None else sddmm(tdy, x, *where), None if tx is None else sddmm(dy, tx, *where))


def _keep_gradients(ctx: Any, values: Tensor, x: Tensor, dy: Tensor, need: Sequence[bool], *where: Any) -> None:
    ctx.save_for_backward(values, x, dy, *where[:2])
    ctx.need, ctx.rest = need, where[2:]


def _gradients_backward(ctx: Any, gvalues: Tensor | None, gx: Tensor | None, gbias: Tensor | None) -> tuple[Tensor | None, ...]:
    """Of dvalues = <dy, x>, dx = W^T dy and dbias = sum of dy."""
    values, x, dy, *arrays = ctx.saved_tensors
    layers, nobodys = (*arrays, *ctx.rest), (*arrays, ctx.rest[0], NOBODY)
    gvalues, gx, gbias = (g if needed else None for g, needed in zip((gvalues, gx, gbias), ctx.need, strict=True))
    need = ctx.needs_input_grad[1:4]
    dvalues = sddmm(dy, gx, *layers).to(values.dtype) if need[0] and gx is not None else None
    dx = spmm_t(gvalues, dy, x.shape, *nobodys) if need[1] and gvalues is not None else None
    ddy = _sum(
        None if gvalues is None else spmm(gvalues, x, None, *nobodys),
        None if gx is None else spmm(values, gx, None, *layers),
        None if gbias is None else _of_rows(gbias, dy.shape).to(dy.dtype),
    )
    return dvalues, dx, ddy if need[2] else None, None, None, None, None, None


def _gradients_forward(ctx: Any, tvalues: Tensor | None, tx: Tensor | None, tdy: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    values, x, dy, *arrays = ctx.saved_tensors
    where, need = (*arrays, ctx.rest[0], NOBODY), ctx.need
    tangents = (
        _sum(None if tdy is None else sddmm(tdy, x, *where), None if tx is None else sddmm(dy, tx, *where)) if need[0] else None,
        _sum(
            None if tvalues is None else spmm_t(tvalues, dy, x.shape, *where), None if tdy is None else spmm_t(values, tdy, x.shape, *where)
        )
        if need[1]
        else None,
        tdy.movedim(1, 0).flatten(1).sum(1, dtype=values_dtype(dy.dtype)) if need[2] and tdy is not None else None,
    )
    zeros = (torch.zeros_like(one) for one in _gradients_shapes(values, x, dy, need))
    return (*(zero if tangent is None else tangent.to(zero.dtype) for tangent, zero in zip(tangents, zeros, strict=True)),)


def _sum(*parts: Tensor | None) -> Tensor | None:
    first, *others = [part for part in parts if part is not None] or [None]
    return sum(others, first)  # type: ignore[arg-type]


def _of_rows(bias: Tensor, shape: Sequence[int]) -> Tensor:
    """`bias` [rows] at every sample and position of an output."""
    return bias.view(-1, *(1 for _ in shape[2:])).expand(*shape)


for _operator, _compute, _shape, *_formulas in (
    (spmm, _spmm, _spmm_shape, _keep_spmm, _spmm_backward, _spmm_forward),
    (spmm_t, _spmm_t, _spmm_t_shape, _keep_spmm_t, _spmm_t_backward, _spmm_t_forward),
    (sddmm, _sddmm, _sddmm_shape, _keep_sddmm, _sddmm_backward, _sddmm_forward),
    (gradients, _gradients, _gradients_shapes, _keep_gradients, _gradients_backward, _gradients_forward),
):
    _library.impl(_operator, _compute, "CompositeExplicitAutograd")
    torch.library.register_fake(_operator, _shape, lib=_library)
    differentiable(_library, _operator, *_formulas)


# How many operations it takes: 2 for each connection, sample and position of what the rows belong to (of the output, mostly).


def _operations(connections: int, y: Sequence[int], x: Sequence[int], geometry: str) -> int:
    at, _ = geometry_in(geometry).sides(y, x)
    return 2 * connections * at[0] * prod(at[2:])


@register_flop_formula(torch.ops.truesparse.spmm)
def _spmm_operations(values: Sequence[int], x: Sequence[int], bias: Any, *where: Any, out_shape: Sequence[int], **_: Any) -> int:
    return _operations(values[0], out_shape, x, where[2])


@register_flop_formula(torch.ops.truesparse.spmm_t)
def _spmm_t_operations(values: Sequence[int], dy: Sequence[int], like: Sequence[int], *where: Any, **_: Any) -> int:
    return _operations(values[0], dy, like, where[2])


@register_flop_formula(torch.ops.truesparse.sddmm)
def _sddmm_operations(dy: Sequence[int], x: Sequence[int], *where: Any, out_shape: Sequence[int], **_: Any) -> int:
    return _operations(out_shape[0], dy, x, where[2])


@register_flop_formula(torch.ops.truesparse.gradients)
def _gradients_operations(values: Sequence[int], x: Sequence[int], dy: Sequence[int], need: Sequence[bool], *where: Any, **_: Any) -> int:
    return (need[0] + need[1]) * _operations(values[0], dy, x, where[2])


# Where layers call them.


class Layer(Listener, Protocol):
    """A layer that computes with verbs."""

    def operands(self) -> tuple[Tensor, Tensor, str, int]:
        """(indptr, indices, geometry, listener)."""
        ...

    def verbs(self, dtype: torch.dtype) -> Verbs: ...

    def heard(self) -> Heard: ...


def product(values: Tensor, x: Tensor, bias: Tensor | None, layer: Layer) -> Tensor:
    """W x + bias, differentiable: an operator where torch compiles, exports, records or transforms, and elsewhere the kernel at once."""
    if torch.compiler.is_compiling() or may_be_followed():
        return spmm(values, x, bias, *layer.operands())
    return autograd.product(values, x, bias, layer.verbs(x.dtype), layer.heard())


def transposed(values: Tensor, dy: Tensor, like: Sequence[int], layer: Layer) -> Tensor:
    """W^T dy, of shape `like`, in the same way."""
    if torch.compiler.is_compiling() or may_be_followed():
        return spmm_t(values, dy, like, *layer.operands())
    return autograd.transposed(values, dy, torch.Size(like), layer.verbs(dy.dtype), layer.heard())
