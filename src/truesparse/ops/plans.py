"""What do the CPU kernels hold of a topology, and how are they called? Tensors here are checked already, and contiguous.

A plan is made of a topology once, the part that a verb needs when that verb is first asked for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _core
from ..topology import Topology
from ..topology.geometry import Convolution
from ..topology.merge import threads_for
from .blocked import Blocked, core_convolution, forward_channel_blocks, transposed_channel_blocks
from .verbs import Gradients

COLUMNS_PER_BLOCK = 160  # 40 KB of a packed tile, most of the nearest cache
CONNECTIONS_PER_RUN = 8  # at least, on average: fewer would not pay for the sums that a run fetches and stores
WIDEST_BLOCK = 1 << 16  # places have 16 bits
ROWS_PER_PART = 512  # 128 KB of the sums of a tile
ROWS_PER_THREAD = 64  # at least
FEW_SAMPLES = 4  # fewer go one by one: a tile would be mostly empty

# By the dtype of x, y and their gradients. Beside bfloat16, values and biases are float32, and so is the arithmetic: the kernels
# widen what they read and round what they write, to nearest, ties to even.
MATRIX_SPMV = {
    torch.float32: _core.matrix_spmv_float32,
    torch.float64: _core.matrix_spmv_float64,
    torch.bfloat16: _core.matrix_spmv_bfloat16,
}
MATRIX_SPMM = {
    torch.float32: _core.matrix_spmm_float32,
    torch.float64: _core.matrix_spmm_float64,
    torch.bfloat16: _core.matrix_spmm_bfloat16,
}
MATRIX_BACKWARD = {
    torch.float32: _core.matrix_backward_float32,
    torch.float64: _core.matrix_backward_float64,
    torch.bfloat16: _core.matrix_backward_bfloat16,
}
CONVOLUTION_SPMM = {
    torch.float32: _core.convolution_spmm_float32,
    torch.float64: _core.convolution_spmm_float64,
    torch.bfloat16: _core.convolution_spmm_bfloat16,
}
CONVOLUTION_BACKWARD = {
    torch.float32: _core.convolution_backward_float32,
    torch.float64: _core.convolution_backward_float64,
    torch.bfloat16: _core.convolution_backward_bfloat16,
}
DTYPES = tuple(MATRIX_SPMM)


class MatrixPlan:
    """Of y [batch, rows] = x [batch, columns] W^T, or of the pixels of images: a pixel is a sample of a convolution of 1 x 1.

    Its runs, those of the transposed matrix as well, take 2 to 3 and 6 to 7 bytes a connection.
    """

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._matrix = _core.Matrix(*topology.shape, topology.indptr.data_ptr(), topology.indices.data_ptr())
        self._runs: _core.Runs | None = None
        self._transposed: _core.Runs | None = None

    @property
    def nbytes(self) -> int:
        return sum(runs.nbytes for runs in (self._runs, self._transposed) if runs)

    def runs(self) -> _core.Runs:
        """The connections by row, made when first asked for."""
        if self._runs is None:
            topology = self._topology
            self._runs = _runs(topology, topology.shape, topology.indptr, topology.indices, None)
        return self._runs

    def transposed(self) -> _core.Runs:
        """The connections by column, made when first asked for."""
        if self._transposed is None:
            topology = self._topology
            self._transposed = _runs(topology, topology.shape[::-1], *transpose(topology))
        return self._transposed

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None, y: Tensor, threads: int) -> None:
        pixels = x.shape[2:].numel()
        batch = x.shape[0] * pixels
        if batch < FEW_SAMPLES and x.ndim == 2:
            MATRIX_SPMV[x.dtype](self._matrix, values.data_ptr(), address(bias), x.data_ptr(), y.data_ptr(), batch, threads)
        else:
            MATRIX_SPMM[x.dtype](self.runs(), values.data_ptr(), address(bias), x.data_ptr(), y.data_ptr(), batch, pixels, threads)

    def backward(self, values: Tensor, x: Tensor, dy: Tensor, gradients: Gradients, threads: int) -> None:
        dvalues, dx, dbias = gradients
        pixels = dy.shape[2:].numel()
        MATRIX_BACKWARD[dy.dtype](
            None if dvalues is None else self.runs(),
            None if dx is None else self.transposed(),
            values.data_ptr(),
            dy.data_ptr(),
            x.data_ptr(),
            address(dvalues),
            address(dx),
            address(dbias),
            self._topology.shape[0],
            dy.shape[0] * pixels,
            pixels,
            threads,
        )


class ConvolutionPlan:
    """Of a 2-D convolution of x [batch, in_channels, height, width]."""

    def __init__(self, topology: Topology, geometry: Convolution) -> None:
        self._topology, self._geometry = topology, geometry
        self._convolution = core_convolution(geometry)
        self._forward = forward_channel_blocks(topology, geometry)
        self._transposed: Blocked | None = None  # made when a dx is first asked for

    @property
    def nbytes(self) -> int:
        return self._forward.nbytes + (self._transposed.nbytes if self._transposed else 0)

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None, y: Tensor, threads: int) -> None:
        CONVOLUTION_SPMM[x.dtype](
            self._convolution,
            self._forward.layout,
            values.data_ptr(),
            address(bias),
            x.data_ptr(),
            y.data_ptr(),
            x.shape[0],
            x.shape[2],
            x.shape[3],
            threads,
        )

    def backward(self, values: Tensor, x: Tensor, dy: Tensor, gradients: Gradients, threads: int) -> None:
        dvalues, dx, dbias = gradients
        if dx is not None and self._transposed is None:
            self._transposed = transposed_channel_blocks(self._topology, self._geometry)
        CONVOLUTION_BACKWARD[dy.dtype](
            self._convolution,
            self._forward.layout,
            self._transposed.layout if self._transposed else None,
            values.data_ptr(),
            dy.data_ptr(),
            x.data_ptr(),
            address(dvalues),
            address(dx),
            address(dbias),
            x.shape[0],
            x.shape[2],
            x.shape[3],
            threads,
        )


def transpose(topology: Topology) -> tuple[Tensor, Tensor, Tensor]:
    """The connections by column: (indptr [columns + 1], rows [nnz], where in the values each of them is [nnz]), all int32."""
    rows, columns = topology.shape
    indptr, indices, permutation = (torch.empty(size, dtype=torch.int32) for size in (columns + 1, topology.nnz, topology.nnz))
    _core.transpose(
        rows,
        columns,
        topology.indptr.data_ptr(),
        topology.indices.data_ptr(),
        indptr.data_ptr(),
        indices.data_ptr(),
        permutation.data_ptr(),
        threads_for(topology.nnz),
    )
    return indptr, indices, permutation


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data is; 0 stands for none, so an empty tensor, which nothing reads, may have 0 too."""
    return 0 if tensor is None else tensor.data_ptr()


def _runs(topology: Topology, shape: tuple[int, ...], indptr: Tensor, indices: Tensor, permutation: Tensor | None) -> _core.Runs:
    rows, columns = shape
    density = topology.nnz / max(topology.size, 1)
    width = max(COLUMNS_PER_BLOCK, math.ceil(CONNECTIONS_PER_RUN / density) if density else columns)
    parts = max(math.ceil(rows / ROWS_PER_PART), min(torch.get_num_threads(), rows // ROWS_PER_THREAD), 1)
    return _core.Runs(
        rows,
        columns,
        indptr.data_ptr(),
        indices.data_ptr(),
        address(permutation),
        max(min(width, columns, WIDEST_BLOCK), 1),
        parts,
        threads_for(topology.nnz),
    )
