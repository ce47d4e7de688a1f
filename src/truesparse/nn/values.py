"""How many dimensions has the parameter of a sparse layer? It holds one, and answers with those of the weight that it stands for.

Training scripts decide by `p.ndim <= 1` or `p.dim() < 2` which parameters are biases and scales, which get no weight decay.
"""

from __future__ import annotations

from importlib import import_module
from typing import ClassVar

from torch import Tensor, nn
from torch._guards import CompileContext


class Values(nn.Parameter):
    """One number a connection, shape [nnz]; `ndim` and `dim()` are those of the dense weight, and nothing else differs from a parameter.

    Pickles, and all that torch makes of it, are plain parameters and tensors; the layer gives its own parameter this class again.
    """

    dimensions: ClassVar[int]

    @property
    def ndim(self) -> int:  # type: ignore[override]
        return self.dim()

    def dim(self) -> int:
        # Where torch itself asks, to compute in Python what an operator would give, it needs to know what is really there.
        return 1 if self.is_meta or CompileContext.try_get() is not None else self.dimensions

    def size(self, dim: int | None = None) -> int | tuple[int, ...]:  # type: ignore[override]
        if dim is None:
            return self.shape
        if dim not in (0, -1):  # torch.nn.init asks so for fan-in and fan-out
            raise IndexError(
                f"values of a sparse layer are one number a connection, shape {tuple(self.shape)}, and have no dimension {dim}; "
                "to initialise them: layer.initialise(torch.nn.init.xavier_uniform_)"
            )
        return self.numel()

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Values, of a weight of {self.dimensions} dimensions:\n{self.detach()!r}"


class MatrixValues(Values):
    """Those of a linear layer."""

    dimensions = 2


class Convolution1dValues(Values):
    """Those of a convolution along one dimension, transposed or not, and so on."""

    dimensions = 3


class Convolution2dValues(Values):
    dimensions = 4


class Convolution3dValues(Values):
    dimensions = 5


KINDS: dict[int, type[Values]] = {
    kind.dimensions: kind for kind in (MatrixValues, Convolution1dValues, Convolution2dValues, Convolution3dValues)
}

# Optimizers choose their fast path by the exact class of each parameter.
_fast: list[type] = getattr(import_module("torch.optim.optimizer"), "_foreach_supported_types", [])
_fast.extend(kind for kind in KINDS.values() if kind not in _fast)


def values_parameter(values: Tensor, dimensions: int) -> Values:
    """`values` [nnz] as the parameter of a layer whose dense weight has so many dimensions."""
    return KINDS[dimensions](values)


def recognised(parameter: Tensor | None, dimensions: int) -> None:
    """Give a plain parameter its kind. It stays the same object, so that whoever holds it, as optimizers do, holds it still."""
    if type(parameter) is nn.Parameter:
        parameter.__class__ = KINDS[dimensions]


def as_plain(values: Tensor) -> Tensor:
    """The same as a tensor of no class of its own, which is all that those who record programs take. Differentiable."""
    kind = type(values)
    if not issubclass(kind, Values):
        return values
    values.__class__ = nn.Parameter
    try:
        return values.view_as(values)
    finally:
        values.__class__ = kind
