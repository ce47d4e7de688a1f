"""What is an operator of many samples at once, as torch.vmap asks? With one weight for all, a larger batch; else a call for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import operators

InDims = Sequence[Any]


def _spmm(info: Any, dims: InDims, values: Tensor, x: Tensor, bias: Tensor | None, *where: Any) -> tuple[Tensor, int]:
    if not _only(1, dims):
        return _each(operators.spmm, info, dims, values, x, bias, *where)
    return _apart(operators.spmm(values, _together(x, dims[1]), bias, *where), info), 0


def _spmm_t(info: Any, dims: InDims, values: Tensor, dy: Tensor, like: Sequence[int], *where: Any) -> tuple[Tensor, int]:
    if not _only(1, dims):
        return _each(operators.spmm_t, info, dims, values, dy, like, *where)
    return _apart(operators.spmm_t(values, _together(dy, dims[1]), (info.batch_size * like[0], *like[1:]), *where), info), 0


def _sddmm(info: Any, dims: InDims, *inputs: Any) -> tuple[Tensor, int]:
    return _each(operators.sddmm, info, dims, *inputs)


def _gradients(info: Any, dims: InDims, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    return _each(operators.gradients, info, dims, *inputs)


for _operator, _rule in (
    (operators.spmm, _spmm),
    (operators.spmm_t, _spmm_t),
    (operators.sddmm, _sddmm),
    (operators.gradients, _gradients),
):
    torch.library.register_vmap(_operator, _rule, lib=operators._library)


def _only(which: int, dims: InDims) -> bool:
    """Whether this input has a dimension of samples, and no other has."""
    return all((dim is not None) == (place == which) for place, dim in enumerate(dims) if not isinstance(dim, Sequence))


def _together(tensor: Tensor, dim: int) -> Tensor:
    """[samples, batch, ...] as one batch."""
    return tensor.movedim(dim, 0).flatten(0, 1)


def _apart(tensor: Tensor, info: Any) -> Tensor:
    return tensor.view(info.batch_size, tensor.shape[0] // info.batch_size, *tensor.shape[1:])


def _each(operator: Callable[..., Any], info: Any, dims: InDims, *inputs: Any) -> Any:
    def of(sample: int) -> list[Any]:
        return [one.select(dim, sample) if isinstance(dim, int) else one for one, dim in zip(inputs, dims, strict=True)]

    results = [operator(*of(sample)) for sample in range(info.batch_size)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(torch.stack(parts) for parts in zip(*results, strict=True)), (0,) * len(results[0])
