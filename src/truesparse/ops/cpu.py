"""How are the verbs of `reference.py` computed on a CPU? By the C++ kernels, for float32, float64 and bfloat16.

Inputs may be non-contiguous; they are made contiguous. Results are the same from run to run and for any number of
threads (`torch.get_num_threads()`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NoReturn

import torch
from torch import Tensor

from .. import _core
from ..topology import Topology
from ..topology.geometry import Convolution, Geometry, Matrix
from ..topology.merge import sort_, threads_for
from .dense import gradient_rows_of_convolution
from .plans import DTYPES, ConvolutionPlan, MatrixPlan, SharedRowsPlan, matrix_plan
from .verbs import Gradients, Need, Sample, slabs, summed_rows, values_dtype, widened

WORK_OF_A_THREAD = 200_000  # multiply-adds, some 20 microseconds: less is not worth another thread

BESIDE = {dtype: values_dtype(dtype) for dtype in DTYPES}


class _Kernels(ABC):
    """What both geometries share: the checks, and the verbs that are parts of `backward`."""

    kind: str
    plan: MatrixPlan | SharedRowsPlan | ConvolutionPlan

    def __init__(self, topology: Topology, geometry: Geometry) -> None:
        if topology.shape != geometry.shape:
            raise ValueError(f"expected a topology of shape {geometry.shape}, got {topology.shape}")
        self.topology = topology
        # A call of a small layer takes a few microseconds: what every call needs is counted once.
        (self._rows, self._columns), self._nnz = topology.shape, topology.nnz
        self._work = self._nnz + self._rows + self._columns

    @property
    def name(self) -> str:
        """Which kernels run, with the instruction set in force, such as "cpu.matrix[avx512]"."""
        return f"cpu.{self.kind}[{_core.isa()}]"

    @property
    def nbytes(self) -> int:
        """Bytes held beyond the topology; grows with the first forward and the first backward."""
        return self.plan.nbytes

    @abstractmethod
    def backward(self, values: Tensor, x: Tensor, dy: Tensor, need: Need) -> Gradients: ...

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        """dW on the connections only, [nnz]."""
        dvalues = self.backward(dy.new_empty(self.topology.nnz, dtype=values_dtype(dy.dtype)), x, dy, (True, False, False))[0]
        assert dvalues is not None
        return dvalues

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        """dx of shape `like`."""
        dx = self.backward(values, dy.new_empty(like), dy, (False, True, False))[1]
        assert dx is not None
        return dx

    @abstractmethod
    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor: ...

    def top_gradients(self, samples: Sequence[Sample], kept: Topology, k: int) -> Tensor:
        """Positions of the k largest |dW| where `kept` has no connection, found slab by slab, never held whole.

        Args:
            samples: pairs (dy, x) whose gradients add up, such as those of several micro-batches.
            kept: the connections that are not candidates.
            k: how many; fewer are returned when fewer positions are empty.

        Returns:
            Linear positions `row * columns + column`, [min(k, empty positions)] int64, ascending. Ties go to the smaller position.
        """
        columns, dtype = kept.shape[1], samples[0][1].dtype
        if not all(one.dtype is dtype and one.is_cpu for pair in samples for one in pair) or dtype not in DTYPES:
            _refuse(**{f"samples[{i}]": tensor for i, pair in enumerate(samples) for tensor in pair})
        k = min(k, kept.size - kept.nnz)
        best = _core.TopK(k)
        push = best.push_float64 if dtype == torch.float64 else best.push_float32
        for start, stop in slabs(kept.shape):
            slab = summed_rows(self.gradient_rows, samples, start, stop).contiguous()
            push(slab.data_ptr(), start, stop - start, columns, kept.indptr.data_ptr(), kept.indices.data_ptr(), threads_for(slab.numel()))
            del slab  # before the next is made
        keys = torch.empty(k, dtype=torch.int64, device="cpu")
        return sort_(keys[: best.result(keys.data_ptr())])

    def _threads(self, positions: int) -> int:
        """As many of torch's threads as the work can keep busy: waking one up costs more than a small product."""
        work = positions * self._work
        return 1 if work < 2 * WORK_OF_A_THREAD else threads_for(work, WORK_OF_A_THREAD)

    def _checked(self, values: Tensor, x: Tensor, bias: Tensor | None = None, dy: Tensor | None = None) -> None:
        """Dtypes, devices, values and bias fit. In one place: it is part of every call.

        Raises:
            TypeError, ValueError: if they do not.
        """
        dtype = x.dtype
        held = BESIDE.get(dtype)
        if (
            held is None
            or not x.is_cpu
            or values.dtype is not held
            or not values.is_cpu
            or (bias is not None and (bias.dtype is not held or not bias.is_cpu))
            or (dy is not None and (dy.dtype is not dtype or not dy.is_cpu))
        ):
            _refuse(values=values, bias=bias, x=x, dy=dy)
        if values.shape != (self._nnz,):
            raise ValueError(f"expected values of shape ({self._nnz},), one per connection, got {tuple(values.shape)}")
        if bias is not None and bias.shape != (self._rows,):
            raise ValueError(f"expected a bias of shape ({self._rows},), one per row, got {tuple(bias.shape)}")


class MatrixKernels(_Kernels):
    """The verbs of y [batch, rows] = x [batch, columns] W^T."""

    kind = "matrix"

    def __init__(self, topology: Topology, geometry: Matrix) -> None:
        super().__init__(topology, geometry)
        self.plan = matrix_plan(topology)

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y [batch, rows] = x [batch, columns] W^T + bias [rows].

        Raises:
            TypeError: unless all are float32, all float64, or float32 beside bfloat16 samples, on the CPU.
            ValueError: on shapes that do not fit.
        """
        self._checked(values, x, bias)
        batch = self._batch("x", x, self._columns)
        x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
        y = x.new_empty((batch, self._rows))
        self.plan.spmm(values, x, bias, y, self._threads(batch))
        return y

    def backward(self, values: Tensor, x: Tensor, dy: Tensor, need: Need) -> Gradients:
        """(dvalues [nnz], dx like x, dbias [rows]), None for each that is not needed.

        Raises:
            TypeError: unless all are float32, all float64, or float32 beside bfloat16 samples, on the CPU.
            ValueError: on shapes that do not fit.
        """
        self._checked(values, x, dy=dy)
        batch = self._batch("dy", dy, self._rows)
        if self._batch("x", x, self._columns) != batch:
            raise ValueError(f"expected x and dy of one batch, got {x.shape[0]} and {batch}")
        values, dy = values.contiguous(), dy.contiguous()
        x = x.contiguous() if need[0] else x
        gradients = _empty_gradients(need, values, x, self._rows)
        self.plan.backward(values, x, dy, gradients, self._threads(2 * batch))
        return gradients

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the dense dW, [stop - start, columns]."""
        return widened(dy[:, start:stop]).T @ widened(x)

    def _batch(self, name: str, tensor: Tensor, width: int) -> int:
        shape = tensor.shape
        if len(shape) != 2 or shape[1] != width:
            raise ValueError(f"expected {name} of shape (batch, {width}), got {tuple(shape)}")
        return shape[0]


class ConvolutionKernels(_Kernels):
    """The verbs of a 2-D convolution of x [batch, in_channels, height, width]."""

    kind = "convolution"

    def __init__(self, topology: Topology, geometry: Convolution) -> None:
        super().__init__(topology, geometry)
        self.geometry = geometry
        self.plan = matrix_plan(topology) if geometry.pointwise else ConvolutionPlan(topology, geometry)

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y [batch, out_channels, output height, output width], as `F.conv2d`.

        Raises:
            TypeError: unless all are float32, all float64, or float32 beside bfloat16 samples, on the CPU.
            ValueError: on shapes that do not fit.
        """
        self._checked(values, x, bias)
        shape = self._output_shape(x.shape)
        x, values, bias = x.contiguous(), values.contiguous(), None if bias is None else bias.contiguous()
        y = x.new_empty(shape)
        self.plan.spmm(values, x, bias, y, self._threads(_positions(shape)))
        return y

    def backward(self, values: Tensor, x: Tensor, dy: Tensor, need: Need) -> Gradients:
        """(dvalues [nnz], dx like x, dbias [out_channels]), None for each that is not needed.

        Raises:
            TypeError: unless all are float32, all float64, or float32 beside bfloat16 samples, on the CPU.
            ValueError: on shapes that do not fit.
        """
        self._checked(values, x, dy=dy)
        if dy.shape != self._output_shape(x.shape):
            raise ValueError(f"expected dy of shape {self._output_shape(x.shape)}, got {tuple(dy.shape)}")
        values, dy = values.contiguous(), dy.contiguous()
        x = x.contiguous() if need[0] else x
        gradients = _empty_gradients(need, values, x, self._rows)
        self.plan.backward(values, x, dy, gradients, self._threads(2 * _positions(dy.shape)))
        return gradients

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the dense dW, [stop - start, columns]."""
        return gradient_rows_of_convolution(self.geometry, dy, x, start, stop)

    def _output_shape(self, shape: torch.Size) -> tuple[int, ...]:
        if len(shape) != 4 or shape[1] != self.geometry.in_channels:
            raise ValueError(f"expected x of shape (batch, {self.geometry.in_channels}, height, width), got {tuple(shape)}")
        height, width = self.geometry.output_size((shape[2], shape[3]))
        if height < 1 or width < 1:
            raise ValueError(f"an input of {shape[2]} x {shape[3]} is too small for {self.geometry}")
        return shape[0], self.geometry.out_channels, height, width


def _refuse(**tensors: Tensor | None) -> NoReturn:
    came = ", ".join(f"{name} {tensor.dtype} on {tensor.device}" for name, tensor in tensors.items() if tensor is not None)
    raise TypeError(
        "the CPU kernels take float32 or float64, one dtype for all, or bfloat16 samples with float32 values, on the CPU; "
        f"got {came}; move and convert with .to(...)"
    )


def _positions(shape: Sequence[int]) -> int:
    """Output positions of all samples, which one channel of an output has, also where there is no channel."""
    return shape[0] * shape[2] * shape[3]


def _empty_gradients(need: Need, values: Tensor, x: Tensor, rows: int) -> Gradients:
    # Like another tensor: that takes half the time, which is that of a small product.
    return (
        torch.empty_like(values) if need[0] else None,
        torch.empty_like(x, memory_format=torch.contiguous_format) if need[1] else None,
        values.new_empty(rows) if need[2] else None,
    )
