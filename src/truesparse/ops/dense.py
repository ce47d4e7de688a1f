"""How is a layer computed that has all its connections? As what it is: its values, row by row, are the dense weight.

Budgets give small layers everything (ERK, a dense first layer). They stay layers with a topology, so that a model's state has
the same form at every sparsity, and run on dense PyTorch, on any device and dtype. In a 16-bit one they are what nn.Linear and nn.Conv2d
are under autocast: the weight is rounded for each product, and its gradient before it is widened.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..topology import Topology
from ..topology.geometry import Convolution, Matrix
from .reference import Composed
from .verbs import widened


class MatrixDense(Composed):
    """The verbs of y [batch, rows] = x [batch, columns] W^T where no weight is absent."""

    name = "dense"

    def __init__(self, topology: Topology, geometry: Matrix) -> None:
        self.geometry = geometry

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x, values.view(self.geometry.shape).to(x.dtype), _rounded(bias, x))

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        return dy @ values.view(self.geometry.shape).to(dy.dtype)

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        return widened(dy.T @ x).flatten()

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        return widened(dy[:, start:stop].T @ x)


class ConvolutionDense(Composed):
    """The verbs of a convolution where no weight is absent."""

    name = "dense"

    def __init__(self, topology: Topology, geometry: Convolution) -> None:
        self.geometry = geometry

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.geometry.dense(x, values.view(self.geometry.weight_shape).to(x.dtype), _rounded(bias, x))

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        dx = self.backward(values, dy.new_empty(1).expand(like), dy, (False, True, False))[1]
        assert dx is not None
        return dx

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        dvalues = self.backward(dy.new_empty(self.geometry.weight_shape).flatten(), x, dy, (True, False, False))[0]
        assert dvalues is not None
        return dvalues

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        return self.sddmm(dy, x).view(self.geometry.shape)[start:stop]

    def backward(
        self, values: Tensor, x: Tensor, dy: Tensor, need: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        g = self.geometry
        settings = (g.stride, g.padding, g.dilation, False, (0,) * len(g.kernel), g.groups)
        weight, dx_weight_bias = values.view(g.weight_shape).to(dy.dtype), (need[1], need[0], need[2])
        dx, dweight, dbias = torch.ops.aten.convolution_backward(dy, x, weight, [g.out_channels], *settings, dx_weight_bias)
        return widened(dweight).flatten() if need[0] else None, dx if need[1] else None, widened(dbias) if need[2] else None


def gradient_rows_of_convolution(geometry: Convolution, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the dense dW of a convolution of images, [stop - start, columns]."""
    rows, inputs = geometry.out_channels // geometry.groups, geometry.in_channels // geometry.groups
    dy, x = widened(dy), widened(x)
    slab = x.new_empty((stop - start, geometry.shape[1]))
    for group in range(start // rows, (stop - 1) // rows + 1 if stop > start else 0):
        first, last = max(start, group * rows), min(stop, (group + 1) * rows)
        shape = (last - first, inputs, *geometry.kernel)
        inside, weight = x[:, group * inputs : (group + 1) * inputs], x.new_empty(1).expand(shape)  # only the shape of it is read
        settings = (geometry.stride, geometry.padding, geometry.dilation, False, (0, 0), 1, (False, True, False))
        part = torch.ops.aten.convolution_backward(dy[:, first:last], inside, weight, None, *settings)[1]
        slab[first - start : last - start] = part.flatten(1)
    return slab


def _rounded(bias: Tensor | None, x: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(x.dtype)
