"""How does a compiled graph hold the product of a sparse layer? As one operator, which knows its layer by a number.

The number stays the layer's through all rewirings, so that none of them compiles anything again.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from ..ops import Verbs
from ..topology.geometry import Geometry
from .base import Part


class Numbered(Protocol):
    """What the operator asks of a layer."""

    geometry: Geometry

    @property
    def parameter(self) -> Tensor: ...

    def _verbs(self, dtype: torch.dtype | None = None) -> Verbs: ...

    def _hears(self) -> Callable[[Part], None]: ...


_layers: WeakValueDictionary[int, Numbered] = WeakValueDictionary()
_numbers = count(1)

PRODUCT = "(Tensor values, Tensor x, Tensor? bias, int layer) -> Tensor"
BACKWARD = "(Tensor values, Tensor x, Tensor dy, bool[] need, int layer) -> (Tensor, Tensor, Tensor)"


def numbered(layer: Numbered) -> int:
    """A number that no other layer of this process has."""
    number = next(_numbers)
    _layers[number] = layer
    return number


@torch.library.custom_op("truesparse::product", mutates_args=(), schema=PRODUCT)
def product(values: Tensor, x: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    """W x + bias as `ops.product`, in a graph. Differentiable once."""
    return _layers[layer]._verbs(x.dtype).spmm(values, x, bias).contiguous()


@torch.library.custom_op("truesparse::product_backward", mutates_args=(), schema=BACKWARD)
def product_backward(values: Tensor, x: Tensor, dy: Tensor, need: list[bool], layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """(dvalues, dx, dbias), empty where not needed."""
    held = _layers[layer]
    gradients = held._verbs(x.dtype).backward(values, x, dy, (need[0], need[1], need[2]))
    if gradients[0] is not None:
        held._hears()(Part(held.parameter, gradients[0].clone(), (dy, x)))
    dvalues, dx, dbias = (values.new_empty(0) if gradient is None else gradient.contiguous() for gradient in gradients)
    return dvalues, dx, dbias


@product.register_fake
def _shape_of_product(values: Tensor, x: Tensor, bias: Tensor | None, layer: int) -> Tensor:
    return x.new_empty(_layers[layer].geometry.output_shape(x.shape))


@product_backward.register_fake
def _shapes_of_gradients(values: Tensor, x: Tensor, dy: Tensor, need: list[bool], layer: int) -> tuple[Tensor, Tensor, Tensor]:
    shapes = (values.shape, x.shape, dy.shape[1:2])
    like = (values, x, values)
    dvalues, dx, dbias = (one.new_empty(shape if needed else 0) for one, shape, needed in zip(like, shapes, need, strict=True))
    return dvalues, dx, dbias


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    values, x, _, ctx.layer = inputs
    ctx.save_for_backward(values, x)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    values, x = ctx.saved_tensors
    need = list(ctx.needs_input_grad[:3])
    dvalues, dx, dbias = product_backward(values, x, dy, need, ctx.layer)
    return dvalues if need[0] else None, dx if need[1] else None, dbias if need[2] else None, None


product.register_autograd(_backward, setup_context=_setup)
