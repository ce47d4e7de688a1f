"""What does each verb mean? This file says it in plain torch: any device, any floating dtype, slow, right.

Every kernel is tested against these, and these against dense algebra. A class holds one (topology, geometry);
its methods take and return whole tensors:

    spmm(values [nnz], x, bias) -> y        y  = W x + bias
    spmm_t(values [nnz], dy, like) -> dx    dx = W^T dy, of shape `like`
    sddmm(dy, x) -> dvalues [nnz]           dW on the connections only
    gradient_rows(dy, x, start, stop)       rows start to stop of the dense dW
    top_gradients(samples, kept, k)         positions outside `kept` of the k largest |dW|, summed over the samples (dy, x)
    backward(values, x, dy, need)           (dvalues, dx, dbias), those that are needed

x, y, dy and dx have one dtype. Beside a 16-bit one, values, bias and their gradients are float32, and so are all sums: y and dx are
rounded once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from ..topology import Topology
from ..topology.geometry import Convolution, Matrix
from ..topology.select import highest
from .verbs import Sample, summed_rows, values_dtype, widened


class Composed(ABC):
    """The verbs that are made of others, for every geometry."""

    name = "reference"
    nbytes = 0

    def backward(
        self, values: Tensor, x: Tensor, dy: Tensor, need: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        return (
            self.sddmm(dy, x) if need[0] else None,
            self.spmm_t(values, dy, x.shape) if need[1] else None,
            dy.movedim(1, 0).flatten(1).sum(1, dtype=values_dtype(dy.dtype)) if need[2] else None,
        )

    def top_gradients(self, samples: list[Sample], kept: Topology, k: int) -> Tensor:
        dense = summed_rows(self.gradient_rows, samples, 0, kept.shape[0])
        dense = dense.abs().masked_fill(kept.mask(), -torch.inf)
        return highest(dense.view(1, -1), torch.tensor([min(k, kept.size - kept.nnz)], device="cpu"))[0].nonzero().squeeze(1)

    @abstractmethod
    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor: ...

    @abstractmethod
    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor: ...

    @abstractmethod
    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor: ...


class MatrixReference(Composed):
    """The verbs of y [batch, rows] = x [batch, columns] W^T."""

    def __init__(self, topology: Topology, geometry: Matrix) -> None:
        self.topology, self.geometry = topology, geometry

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        products = x[:, self.topology.indices] * values
        y = products.new_zeros(x.shape[0], self.topology.shape[0]).index_add(1, self.topology.rows, products)
        return (y if bias is None else y + bias).to(x.dtype)

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        products = dy[:, self.topology.rows] * values
        return products.new_zeros(like).index_add(1, self.topology.indices, products).to(dy.dtype)

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        return (widened(dy)[:, self.topology.rows] * widened(x)[:, self.topology.indices]).sum(0)

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        return widened(dy[:, start:stop]).T @ widened(x)


class ConvolutionReference(Composed):
    """The verbs of a convolution: those of the matrix, over every patch of the input.

    x [batch, in_channels, height, width], y [batch, out_channels, output height, output width].
    """

    def __init__(self, topology: Topology, geometry: Convolution) -> None:
        rows, columns = geometry.shape
        group = topology.rows.to(torch.int64) // max(rows // geometry.groups, 1)
        # With the groups side by side, a grouped convolution is one matrix over all patches.
        keys = topology.rows.to(torch.int64) * (columns * geometry.groups) + group * columns + topology.indices
        patches = Matrix(rows, columns * geometry.groups)
        self.matrix = MatrixReference(Topology.from_keys(patches.shape, keys), patches)
        self.topology, self.geometry = topology, geometry

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        height, width = self.geometry.output_size((x.shape[2], x.shape[3]))
        y = self.matrix.spmm(values, self._patches(x), bias)
        return y.view(x.shape[0], height, width, self.geometry.out_channels).permute(0, 3, 1, 2).contiguous()

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        columns = self.matrix.spmm_t(
            values, self._flat(widened(dy)), torch.Size((dy.shape[0] * dy.shape[2] * dy.shape[3], self.matrix.geometry.columns))
        )
        g = self.geometry
        columns = columns.view(dy.shape[0], dy.shape[2] * dy.shape[3], self.matrix.geometry.columns).transpose(1, 2)
        return F.fold(columns, (like[2], like[3]), g.kernel, g.dilation, g.padding, g.stride).to(dy.dtype)

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        return self.matrix.sddmm(self._flat(dy), self._patches(x))

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        g = self.geometry
        per_group, columns = g.out_channels // g.groups, g.shape[1]
        dense = self.matrix.gradient_rows(self._flat(dy), self._patches(x), start, stop)
        own = (torch.arange(start, stop, device=x.device) // per_group)[:, None] * columns + torch.arange(columns, device=x.device)
        return dense.gather(1, own)

    def _patches(self, x: Tensor) -> Tensor:
        g = self.geometry
        return F.unfold(x, g.kernel, g.dilation, g.padding, g.stride).transpose(1, 2).flatten(0, 1)

    @staticmethod
    def _flat(dy: Tensor) -> Tensor:
        return dy.permute(0, 2, 3, 1).flatten(0, 2)
