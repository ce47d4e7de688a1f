"""How are the verbs of `reference.py` computed by Triton's kernels? Inputs are checked, and laid out as a form wants them.

Results are the same from run to run. Tensors may lie in memory as they like; what a kernel reads feature by feature is copied to that order
where a batch is large.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from ...topology import Topology
from ...topology.geometry import Convolution, Matrix
from ...topology.select import highest
from ..dense import gradient_rows_of_convolution
from ..verbs import Gradients, Need, Sample, slabs, summed_rows, values_dtype, widened
from .forms import Bitmap, Blocks, Connections, Form, Images, Rows, Shared, Side, Tables, parts_dtype
from .loading import interpreted, kernels_for
from .search import largest

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
TILE_DTYPES = (torch.float16, torch.bfloat16)
SMALL_BATCH = 16  # up to which samples are read where they lie


class _Kernels(ABC):
    """What both geometries share: checks, and the verbs that are parts of `backward`."""

    kind: str

    def __init__(self, topology: Topology, shape: tuple[int, int], form: Form) -> None:
        if topology.shape != shape:
            raise ValueError(f"expected a topology of shape {shape}, got {topology.shape}")
        kernels_for(topology.device)
        # Of the topology only its form is kept: what the kernels do not read takes no memory beside a packed layer.
        self.shape, self.nnz, self.device, self.form = shape, topology.nnz, topology.device, form

    @property
    def name(self) -> str:
        """Which kernels run, in which form they read the connections: "triton.matrix[rows]"."""
        return f"triton.{self.kind}[{self.form.name}{', interpreted' if interpreted() else ''}]"

    @property
    def nbytes(self) -> int:
        """Bytes held beyond the topology; some grow with the first forward and the first backward."""
        return self.form.nbytes

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        """dx of shape `like`."""
        self._check({"values": values}, dy=dy)
        self._check_dy(dy, like)
        return self._spmm_t(values.contiguous(), dy, like)

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        """dW on the connections only, [nnz]."""
        self._check({}, x=x, dy=dy)
        self._check_dy(dy, x.shape)
        return self._sddmm(dy, x)

    def backward(self, values: Tensor, x: Tensor, dy: Tensor, need: Need) -> Gradients:
        """(dvalues [nnz], dx like x, dbias [rows]), None for each that is not needed.

        Raises:
            TypeError: unless samples have one dtype, values that one or that of their sums, and all the device of the topology.
            ValueError: on shapes that do not fit.
        """
        self._check({"values": values}, x=x, dy=dy)
        self._check_dy(dy, x.shape)
        dy = self._laid_out(dy, "dy")  # once for all of them
        return (
            self._sddmm(dy, x) if need[0] else None,
            self._spmm_t(values.contiguous(), dy, x.shape) if need[1] else None,
            dy.sum([axis for axis in range(dy.ndim) if axis != 1], dtype=values_dtype(dy.dtype)) if need[2] else None,
        )

    def top_gradients(self, samples: Sequence[Sample], kept: Topology, k: int) -> Tensor:
        """Positions of the k largest |dW| where `kept` has no connection, found in tiles, or slab by slab, never held whole.

        Args:
            samples: pairs (dy, x) whose gradients add up, such as those of several micro-batches.
            kept: the connections that are not candidates.
            k: how many; fewer are returned when fewer positions are empty.

        Returns:
            Linear positions `row * columns + column`, [min(k, empty positions)] int64, ascending. Ties go to the smaller position.

        Raises:
            TypeError, ValueError: on dtypes, devices and shapes that do not fit.
        """
        self._check({}, **{f"samples[{i}]": tensor for i, pair in enumerate(samples) for tensor in pair})
        for dy, x in samples:
            self._check_dy(dy, x.shape)
        k = min(k, kept.size - kept.nnz)
        dy, x = samples[0]
        if not self._one_for_all_rows() or any(other.shape[2:] != x.shape[2:] for _, other in samples):
            return self._largest_of_slabs(samples, kept, k)
        if len(samples) > 1:
            dy, x = (torch.cat(parts) for parts in zip(*samples, strict=True))
        return largest(self._x(self._in_order(x)), self._y(self._in_order(dy)), self._images(x.shape), kept, k)

    def _largest_of_slabs(self, samples: Sequence[Sample], kept: Topology, k: int) -> Tensor:
        columns = kept.shape[1]
        best, keys = torch.empty(0, device=kept.device), torch.empty(0, dtype=torch.int64, device=kept.device)
        parts = list(slabs(kept.shape))
        places, present = kept.indptr[[*(start for start, _ in parts), kept.shape[0]]].tolist(), kept.keys
        for (start, stop), first, last in zip(parts, places, places[1:], strict=False):
            slab = summed_rows(self.gradient_rows, samples, start, stop).abs().flatten()
            absent = torch.ones(slab.shape, dtype=torch.bool, device=slab.device)
            absent[present[first:last] - start * columns] = False
            here = absent.nonzero().squeeze(1)
            best, keys = torch.cat([best.to(slab), slab[here]]), torch.cat([keys, here + start * columns])
            chosen = highest(best[None], torch.tensor([min(k, best.numel())], device=best.device))[0]
            best, keys = best[chosen], keys[chosen]
        return keys

    def _spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        dx, dy = torch.empty(like, dtype=dy.dtype, device=dy.device), self._laid_out(dy, "dy")
        some = self.form.samples_at_once(prod(dy.shape[2:]), dy.dtype) if isinstance(self.form, Shared) else like[0]
        for part, dx_part in zip(dy.split(max(some, 1)), dx.split(max(some, 1)), strict=True):
            self._transposed(values, part, dx_part)
        return dx

    def _transposed(self, values: Tensor, dy: Tensor, dx: Tensor) -> None:
        """Sets dx."""
        self.form.transposed(values, self._y(dy), self._x(dx), self._images(dx.shape))

    def _sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        dvalues = torch.empty(self.nnz, dtype=values_dtype(dy.dtype), device=dy.device)
        self.form.sampled(dvalues, self._x(self._laid_out(x, "x")), self._y(self._laid_out(dy, "dy")), self._images(x.shape))
        return dvalues

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y = W x + bias [rows].

        Raises:
            TypeError: unless values and bias have the dtype of x or of its sums, and all the device of the topology.
            ValueError: on shapes that do not fit.
        """
        self._check({"values": values, "bias": bias}, x=x)
        y = torch.empty(self._output_shape(x.shape), dtype=x.dtype, device=x.device)
        x, bias = self._laid_out(x, "x"), None if bias is None else bias.contiguous()
        self.form.product(values.contiguous(), self._x(x), bias, self._y(y), self._images(x.shape))
        return y

    @abstractmethod
    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor: ...

    @abstractmethod
    def _output_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Of y for an x of that shape, which is checked."""

    @abstractmethod
    def _images(self, shape: torch.Size) -> Images:
        """Of an x of that shape."""

    def _one_for_all_rows(self) -> bool:
        """Whether all rows share the features of x."""
        return True

    def _in_order(self, tensor: Tensor) -> Tensor:
        """x or dy as sides can be made of it."""
        return tensor

    @abstractmethod
    def _laid_out(self, tensor: Tensor, which: str) -> Tensor:
        """The numbers of "x" or "dy" in the order in which the form reads them."""

    @abstractmethod
    def _x(self, x: Tensor) -> Side: ...

    @abstractmethod
    def _y(self, y: Tensor) -> Side: ...

    def _check(self, values: dict[str, Tensor | None], **samples: Tensor) -> None:
        """Dtypes and devices, and the shapes of values and bias."""
        dtype, device = next(iter(samples.values())).dtype, self.device
        # Values that only multiply may be as narrow as the samples: those of a packed layer are.
        given = [
            (name, tensor, wanted)
            for kind, wanted in ((samples, (dtype,)), (values, (values_dtype(dtype), dtype)))
            for name, tensor in kind.items()
        ]
        fits = dtype in DTYPES
        for _, tensor, wanted in given:
            fits = fits and (tensor is None or (tensor.device == device and tensor.dtype in wanted))
        if not fits:
            came = ", ".join(f"{name} {tensor.dtype} on {tensor.device}" for name, tensor, _ in given if tensor is not None)
            raise TypeError(
                f"expected samples of one dtype, values and bias of that of their sums, all on {device} as the topology; got {came}; "
                "move and convert with .to(...)"
            )
        for name, tensor in values.items():
            count = self.nnz if name == "values" else self.shape[0]
            if tensor is not None and tensor.shape != (count,):
                per = "connection" if name == "values" else "row"
                raise ValueError(f"expected {name} of shape ({count},), one per {per}, got {tuple(tensor.shape)}")

    def _check_dy(self, dy: Tensor, like: torch.Size) -> None:
        expected = self._output_shape(like)
        if dy.shape != expected:
            raise ValueError(f"expected dy of shape {expected} beside x of shape {tuple(like)}, got {tuple(dy.shape)}")


class MatrixKernels(_Kernels):
    """The verbs of y [batch, rows] = x [batch, columns] W^T."""

    kind = "matrix"

    def __init__(self, topology: Topology, geometry: Matrix, form: Form) -> None:
        super().__init__(topology, geometry.shape, form)

    def gradient_rows(self, dy: Tensor, x: Tensor, start: int, stop: int) -> Tensor:
        """Rows `start` to `stop` of the dense dW, [stop - start, columns]."""
        return widened(dy[:, start:stop]).T @ widened(x)

    def _output_shape(self, shape: torch.Size) -> tuple[int, ...]:
        rows, columns = self.shape
        if len(shape) != 2 or shape[1] != columns:
            raise ValueError(f"expected x of shape (batch, {columns}), got {tuple(shape)}")
        return shape[0], rows

    def _images(self, shape: torch.Size) -> Images:
        return Images(1, shape[0])

    def _laid_out(self, tensor: Tensor, which: str) -> Tensor:
        # What reads feature by feature reads all samples of one, which should be side by side.
        return tensor.T.contiguous().T if which in self.form.gathered and tensor.shape[0] > SMALL_BATCH else tensor

    def _x(self, x: Tensor) -> Side:
        return Side(x, stride=x.stride(1), image=0, step=x.stride(0))

    def _y(self, y: Tensor) -> Side:
        return self._x(y)


class ConvolutionKernels(_Kernels):
    """The verbs of a 2-D convolution of x [batch, in_channels, height, width]: those of a matrix over its shifted planes."""

    kind = "convolution"

    def __init__(self, topology: Topology, geometry: Convolution, form: Form) -> None:
        super().__init__(topology, geometry.shape, form)
        self.geometry, self._tables = geometry, Tables()

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._tables.nbytes

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

    def _images(self, shape: torch.Size) -> Images:
        batch, _, height, width = self._output_shape(shape)
        return Images(1, batch) if self._alone(shape) else Images(batch, height * width, None if self.geometry.pointwise else width)

    def _alone(self, shape: torch.Size) -> bool:
        """Whether images of that shape are samples of a matrix: pixels alone."""
        return self.geometry.pointwise and shape[2] == shape[3] == 1

    def _one_for_all_rows(self) -> bool:
        return self.geometry.groups == 1

    def _in_order(self, tensor: Tensor) -> Tensor:
        return tensor.contiguous()

    def _laid_out(self, tensor: Tensor, which: str) -> Tensor:
        return tensor.contiguous()

    def _x(self, x: Tensor) -> Side:
        if self.geometry.pointwise:
            return self._y(x)
        g = self.geometry
        padded = F.pad(x, (g.padding[1], g.padding[1], g.padding[0], g.padding[0])) if any(g.padding) else x
        _, channels, height, width = padded.shape
        steps = g.dilation[0] * width, g.dilation[1]
        return Side(
            padded,
            stride=0,
            image=channels * height * width,
            line=g.stride[0] * width,
            step=g.stride[1],
            starts=self._tables.get((height, width), lambda: starts(g.in_channels // g.groups, g.kernel, height * width, steps, x.device)),
            group=None if g.groups == 1 else channels // g.groups * height * width,
        )

    def _y(self, y: Tensor) -> Side:
        _, channels, height, width = y.shape
        image = channels * height * width
        if self._alone(y.shape):
            return Side(y, stride=1, image=0, step=image)
        return Side(y, stride=height * width, image=image, line=width, step=1)

    def _transposed(self, values: Tensor, dy: Tensor, dx: Tensor) -> None:
        if self.geometry.pointwise:
            super()._transposed(values, dy, dx)
        else:
            assert isinstance(self.form, (PlaneRows, PlaneShared))
            self.form.input_gradient(values, dy, dx)


class Phases:
    """How the gradient of the input of a convolution is a product of rows: phase by phase.

    Its pixels, padded, that stand at one remainder of the stride see the same taps. A tap reads the pixel of dy that lies a few strides
    before: so zeros stand around dy.

    Args:
        geometry: of the convolution.
        dy: shape of the gradient of the output.
        dx: shape of that of the input.
        tables: of the places that were made before.
    """

    def __init__(self, geometry: Convolution, dy: torch.Size, dx: torch.Size, tables: Tables) -> None:
        g = self.geometry = geometry
        self.like, self.tables, self.key = dx, tables, (dy[2:], dx[2:])
        self.height, self.width = (
            -(-(extent + 2 * padding) // stride) for extent, padding, stride in zip(dx[2:], g.padding, g.stride, strict=True)
        )
        self.reach = [(extent - 1) * dilation // stride for extent, dilation, stride in zip(g.kernel, g.dilation, g.stride, strict=True)]
        self.more = (max(self.height - dy[2], 0), max(self.width - dy[3], 0))
        self.lines, self.columns = dy[2] + self.reach[0] + self.more[0], dy[3] + self.reach[1] + self.more[1]

    @property
    def plane(self) -> int:
        """Pixels of dy with the zeros around it."""
        return self.lines * self.columns

    def padded(self, dy: Tensor) -> Tensor:
        return F.pad(dy, (self.reach[1], self.more[1], self.reach[0], self.more[0]))

    def within(self, taps: Tensor) -> Tensor:
        """Where in a plane the first pixel is that each of the `taps` int64 reads."""
        g = self.geometry
        down, right = taps // g.kernel[1] * g.dilation[0] // g.stride[0], taps % g.kernel[1] * g.dilation[1] // g.stride[1]
        return (self.reach[0] - down) * self.columns + self.reach[1] - right

    def side(self, planes: Tensor, starts: Callable[[], Tensor], features: int) -> Side:
        """`planes` [images, features, lines, columns], read from `starts` on."""
        return Side(planes, 0, features * self.plane, self.columns, 1, self.tables.get(("dy", *self.key), starts))

    def sum(self, product: Callable[[Side, None, Side, Images], None], planes: Side, dx: Tensor) -> None:
        """Sets `dx` to the `product` of the connections of its channels and phases with `planes`."""
        g, like = self.geometry, self.like
        shape = (like[0], like[1], self.height * g.stride[0], self.width * g.stride[1])
        whole = dx if dx.shape == shape else torch.empty(shape, dtype=dx.dtype, device=dx.device)
        pixels = whole.shape[2] * whole.shape[3]
        places = self.tables.get(("dx", *self.key), lambda: starts(like[1], g.stride, pixels, (whole.shape[3], 1), dx.device))
        target = Side(whole, 0, like[1] * pixels, g.stride[0] * whole.shape[3], g.stride[1], places)
        product(planes, None, target, Images(like[0], self.height * self.width, self.width))
        if whole is not dx:
            dx.copy_(whole[:, :, g.padding[0] : g.padding[0] + like[2], g.padding[1] : g.padding[1] + like[3]])


def by_phase(geometry: Convolution, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """(in channel and phase of the stride, tap) of the places (row, column) of W, [n] int64 each."""
    g = geometry
    tap, width = columns % g.taps, g.kernel[1]
    channel = columns // g.taps + rows // max(g.out_channels // g.groups, 1) * (g.in_channels // g.groups)
    phase = (tap // width * g.dilation[0] % g.stride[0]) * g.stride[1] + tap % width * g.dilation[1] % g.stride[1]
    return channel * g.stride[0] * g.stride[1] + phase, tap


class PlaneRows(Rows):
    """Connections one by one, of a convolution that is no matrix."""

    def __init__(self, topology: Topology, geometry: Convolution) -> None:
        super().__init__(topology, max(geometry.out_channels // geometry.groups, 1))
        self.geometry, self._tables = geometry, Tables()

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._tables.nbytes

    def _by_column(self) -> Connections | Bitmap:
        """Rows are (in channel, phase of the stride), columns (out channel, position of the kernel)."""
        g, rows = self.geometry, self.topology.rows.to(torch.int64)
        target, tap = by_phase(g, rows, self.topology.indices.to(torch.int64))
        return Connections.sorted(g.in_channels * prod(g.stride), target, rows * g.taps + tap)

    def input_gradient(self, values: Tensor, dy: Tensor, dx: Tensor) -> None:
        """Sets dx."""
        phases, g = Phases(self.geometry, dy.shape, dx.shape, self._tables), self.geometry
        if self._of_columns is None:
            self._of_columns = self._by_column()

        def places() -> Tensor:
            channels, taps = (torch.arange(count, device=dy.device) for count in (g.out_channels, g.taps))
            return (channels[:, None] * phases.plane + phases.within(taps)).flatten()

        phases.sum(partial(self._of_columns.product, values), phases.side(phases.padded(dy), places, g.out_channels), dx)


class PlaneShared(Shared):
    """Groups of rows that share their columns, of a convolution that is no matrix."""

    def __init__(self, topology: Topology, geometry: Convolution) -> None:
        super().__init__(topology, geometry.out_channels // geometry.groups)
        self.geometry, self._tables = geometry, Tables()

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._tables.nbytes

    def _by_column(self) -> Connections:
        """From the columns of the groups, one by one, to (in channel, phase of the stride)."""
        g, numbers = self.geometry, torch.arange(self.columns, device=self.topology.device)
        target, _ = by_phase(g, *self.columns_of_groups())
        return Connections.sorted(g.in_channels * prod(g.stride), target, numbers)._replace(permutation=None)

    def input_gradient(self, values: Tensor, dy: Tensor, dx: Tensor) -> None:
        """Sets dx."""
        phases, (batch, channels, height, width) = Phases(self.geometry, dy.shape, dx.shape, self._tables), dy.shape
        if self._of_columns is None:
            self._of_columns = self._by_column()
        planes = torch.zeros(batch, self.columns, phases.lines, phases.columns, dtype=parts_dtype(dy.dtype), device=dy.device)
        parts = Side(planes[:, :, phases.reach[0] :, phases.reach[1] :], phases.plane, self.columns * phases.plane, phases.columns, 1)
        pixels = height * width
        self.parts(values, Side(dy, pixels, channels * pixels, width, 1), parts, Images(batch, pixels, width))

        def places() -> Tensor:
            taps = self.columns_of_groups()[1] % self.geometry.taps
            return torch.arange(self.columns, device=dy.device) * phases.plane + phases.within(taps)

        phases.sum(partial(self._of_columns.product, None), phases.side(planes, places, self.columns), dx)


class PlaneBitmap(PlaneRows):
    """Tiles of a convolution that is no matrix and has no groups, in 16 bits. It holds a second bitmap for dx, and 4 bytes a connection."""

    name = "bitmap"

    def __init__(self, topology: Topology, geometry: Convolution) -> None:
        super().__init__(topology, geometry)
        self._bitmap = Bitmap(topology)

    @property
    def nbytes(self) -> int:
        return self._bitmap.nbytes + super().nbytes

    def product(self, values: Tensor, x: Side, bias: Tensor | None, y: Side, images: Images) -> None:
        self._bitmap.product(values, x, bias, y, images)

    def sampled(self, dvalues: Tensor, x: Side, dy: Side, images: Images) -> None:
        self._bitmap.sampled(dvalues, x, dy, images)

    def _by_column(self) -> Bitmap:
        g, found = self.geometry, super()._by_column()
        assert isinstance(found, Connections)
        shape = (found.indptr.numel() - 1, g.out_channels * g.taps)
        return Bitmap(Topology._trusted(shape, found.indptr, found.indices), found.permutation)


def starts(channels: int, kernel: Sequence[int], plane: int, steps: tuple[int, int], device: torch.device) -> Tensor:
    """Where the plane of each (channel, line, column of a kernel) starts, [channels * taps] int64."""
    extents = (channels, plane), (kernel[0], steps[0]), (kernel[1], steps[1])
    channel, line, column = (torch.arange(count, device=device) * step for count, step in extents)
    return (channel[:, None, None] + line[:, None] + column).flatten()


# What the table of kernels builds.


def rows_matrix(topology: Topology, geometry: Matrix) -> MatrixKernels:
    return MatrixKernels(topology, geometry, Rows(topology))


def bitmap_matrix(topology: Topology, geometry: Matrix) -> MatrixKernels:
    return MatrixKernels(topology, geometry, Bitmap(topology))


def shared_matrix(topology: Topology, geometry: Matrix) -> MatrixKernels:
    return MatrixKernels(topology, geometry, Shared(topology))


def blocks_matrix(topology: Topology, geometry: Matrix) -> MatrixKernels:
    return MatrixKernels(topology, geometry, Blocks(topology))


def rows_convolution(topology: Topology, geometry: Convolution) -> ConvolutionKernels:
    return ConvolutionKernels(topology, geometry, Rows(topology) if geometry.pointwise else PlaneRows(topology, geometry))


def bitmap_convolution(topology: Topology, geometry: Convolution) -> ConvolutionKernels:
    return ConvolutionKernels(topology, geometry, Bitmap(topology) if geometry.pointwise else PlaneBitmap(topology, geometry))


def shared_convolution(topology: Topology, geometry: Convolution) -> ConvolutionKernels:
    return ConvolutionKernels(topology, geometry, Shared(topology) if geometry.pointwise else PlaneShared(topology, geometry))


def blocks_convolution(topology: Topology, geometry: Convolution) -> ConvolutionKernels:
    return ConvolutionKernels(topology, geometry, Blocks(topology))
