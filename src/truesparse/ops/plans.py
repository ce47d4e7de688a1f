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
from ..topology.shared import shared_rows
from .verbs import Gradients

BYTES_PER_BLOCK = 40 << 10  # of a packed tile: most of the nearest cache
COLUMNS_PER_BLOCK = 160  # of a matrix: tiles have 256 bytes a column
CONNECTIONS_PER_RUN = 8  # at least, on average: fewer would not pay for the sums that a run fetches and stores
WIDEST_BLOCK = (1 << 16) - 1  # of a convolution: places have 16 bits
TILE_BYTES, VECTOR_BYTES = 512, 64  # of a convolution: a tile of positions, and samples side by side in it
ROWS_PER_PART = 512  # 128 KB of the sums of a tile
ROWS_PER_THREAD = 64  # at least
LEAST_SHARED_ROWS = 8  # of which one load of x serves all
LEAST_VALUES_OF_GROUP = 512  # on average: smaller matrices are mostly edges
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
SHARED_ROWS_SPMM = {
    torch.float32: _core.shared_rows_spmm_float32,
    torch.float64: _core.shared_rows_spmm_float64,
    torch.bfloat16: _core.shared_rows_spmm_bfloat16,
}
SHARED_ROWS_BACKWARD = {
    torch.float32: _core.shared_rows_backward_float32,
    torch.float64: _core.shared_rows_backward_float64,
    torch.bfloat16: _core.shared_rows_backward_bfloat16,
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
            self._runs = self._made(self._topology.shape, self._topology.indptr, self._topology.indices, None)
        return self._runs

    def transposed(self) -> _core.Runs:
        """The connections by column, made when first asked for."""
        if self._transposed is None:
            self._transposed = self._made(self._topology.shape[::-1], *transpose(self._topology))
        return self._transposed

    def _made(self, shape: tuple[int, ...], indptr: Tensor, indices: Tensor, permutation: Tensor | None) -> _core.Runs:
        rows, columns = shape
        parts = max(math.ceil(rows / ROWS_PER_PART), min(torch.get_num_threads(), rows // ROWS_PER_THREAD), 1)
        width = _width(self._topology, columns, 1, COLUMNS_PER_BLOCK)
        return _runs(rows, columns, indptr, indices, permutation, width, parts, rows)

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


class SharedRowsPlan:
    """Of the same, where so many neighbouring rows share their columns that their values are small dense matrices: nothing is laid out."""

    nbytes = 0

    def __init__(self, topology: Topology) -> None:
        self._topology = topology
        self._shared = _core.SharedRows(*topology.shape, topology.indptr.data_ptr(), topology.indices.data_ptr(), shared_rows(topology))

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None, y: Tensor, threads: int) -> None:
        pixels = x.shape[2:].numel()
        addresses = values.data_ptr(), address(bias), x.data_ptr(), y.data_ptr()
        SHARED_ROWS_SPMM[x.dtype](self._shared, *addresses, x.shape[0] * pixels, pixels, threads)

    def backward(self, values: Tensor, x: Tensor, dy: Tensor, gradients: Gradients, threads: int) -> None:
        pixels = dy.shape[2:].numel()
        dvalues, dx, dbias = gradients
        inputs, outputs = (values.data_ptr(), dy.data_ptr(), x.data_ptr()), (address(dvalues), address(dx), address(dbias))
        SHARED_ROWS_BACKWARD[dy.dtype](self._shared, *inputs, *outputs, dy.shape[0] * pixels, pixels, threads)


def matrix_plan(topology: Topology) -> MatrixPlan | SharedRowsPlan:
    """Of y = x W^T: the topology decides, whatever pattern it came from."""
    shared = shared_rows(topology)
    large = shared * topology.nnz >= LEAST_VALUES_OF_GROUP * topology.shape[0]
    return SharedRowsPlan(topology) if shared >= LEAST_SHARED_ROWS and large else MatrixPlan(topology)


class ConvolutionPlan:
    """Of a 2-D convolution of x [batch, in_channels, height, width]. Blocks are of whole channels."""

    def __init__(self, topology: Topology, geometry: Convolution) -> None:
        if geometry.taps > WIDEST_BLOCK:
            raise ValueError(
                f"expected a kernel of at most {WIDEST_BLOCK} positions, got {geometry.kernel}; leave this layer dense (exclude=)"
            )
        self._topology, self._geometry = topology, geometry
        self._convolution = core_convolution(geometry)
        self._runs: _core.Runs | None = None
        self._transposed: _core.Runs | None = None

    @property
    def nbytes(self) -> int:
        return sum(runs.nbytes for runs in (self._runs, self._transposed) if runs)

    def runs(self) -> _core.Runs:
        """The connections by output channel, made when first asked for."""
        if self._runs is None:
            topology, g = self._topology, self._geometry
            self._runs = self._made(topology.shape, topology.indptr, topology.indices, None, g.out_channels // g.groups)
        return self._runs

    def transposed(self) -> _core.Runs:
        """Rows are (in channel, phase of the stride), columns (out channel, tap). Made when first asked for."""
        if self._transposed is None:
            topology, g = self._topology, self._geometry
            targets = g.in_channels * g.stride[0] * g.stride[1]
            arrays = _empty_transpose(topology, targets)
            _core.transpose_convolution(self._convolution, topology.indptr.data_ptr(), topology.indices.data_ptr(), *map(address, arrays))
            self._transposed = self._made((targets, g.out_channels * g.taps), *arrays, targets)
        return self._transposed

    def _made(self, shape: tuple[int, ...], indptr: Tensor, indices: Tensor, permutation: Tensor | None, rows_per_group: int) -> _core.Runs:
        rows, columns = shape
        height, width = self._geometry.kernel
        touched = height * (TILE_BYTES + (width - 1) * VECTOR_BYTES)  # of a channel, by one tile
        taps = self._geometry.taps
        block = min(_width(self._topology, columns, taps, max(BYTES_PER_BLOCK // touched, 1) * taps), WIDEST_BLOCK // taps * taps)
        return _runs(rows, columns, indptr, indices, permutation, block, 1, rows_per_group)

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None, y: Tensor, threads: int) -> None:
        CONVOLUTION_SPMM[x.dtype](
            self._convolution,
            self.runs(),
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
        CONVOLUTION_BACKWARD[dy.dtype](
            self._convolution,
            None if dvalues is None else self.runs(),
            None if dx is None else self.transposed(),
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
    arrays = _empty_transpose(topology, topology.shape[1])
    indptr, indices, permutation = (array.data_ptr() for array in arrays)
    rows, columns = topology.shape
    own = topology.indptr.data_ptr(), topology.indices.data_ptr()
    _core.transpose(rows, columns, *own, indptr, indices, permutation, threads_for(topology.nnz))
    return arrays


def core_convolution(geometry: Convolution) -> _core.Convolution:
    """The geometry as the kernels want it."""
    g = geometry
    return _core.Convolution(g.in_channels, g.out_channels, g.kernel, g.stride, g.padding, g.dilation, g.groups)


def address(tensor: Tensor | None) -> int:
    """Where a tensor's data is; 0 stands for none, so an empty tensor, which nothing reads, may have 0 too."""
    return 0 if tensor is None else tensor.data_ptr()


def _empty_transpose(topology: Topology, targets: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty(targets + 1, dtype=torch.int32, device="cpu"),
        torch.empty(topology.nnz, dtype=torch.int32, device="cpu"),
        torch.empty(topology.nnz, dtype=torch.int32, device="cpu"),
    )


def _width(topology: Topology, columns: int, whole: int, wanted: int) -> int:
    """Columns of a block: a multiple of `whole`, `wanted` of them; or, so that runs are long enough, more, alike in all blocks."""
    density = topology.nnz / max(topology.size, 1)
    least = CONNECTIONS_PER_RUN / density if density else columns
    if least > wanted:
        wanted = math.ceil(columns / max(int(columns // least), 1) / whole) * whole
    return max(min(wanted, columns), 1)


def _runs(
    rows: int,
    columns: int,
    indptr: Tensor,
    indices: Tensor,
    permutation: Tensor | None,
    width: int,
    parts: int,
    rows_per_group: int,
) -> _core.Runs:
    """Rows of different groups of `rows_per_group` read different sources for one column."""
    threads = threads_for(indices.numel())
    return _core.Runs(rows, columns, indptr.data_ptr(), indices.data_ptr(), address(permutation), width, parts, rows_per_group, threads)
