"""No kernel reads or writes beside the tensors that it is given: each address that the interpreter uses is looked at."""

import os

import numpy as np
import pytest
import torch

from truesparse import Topology, ops
from truesparse.topology.geometry import Convolution, Matrix

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime import interpreter

from truesparse.ops.triton import kernels, search
from truesparse.ops.triton import verbs as built
from truesparse.ops.triton.configurations import TABLES

F16, F32, F64 = torch.float16, torch.float32, torch.float64


class Guard:
    """What the kernel under way may touch: from the first to the last element of each tensor it is given, whatever lies around it."""

    def __init__(self):
        self.given = []  # (start, end) addresses of each tensor
        self.touched = 0

    def enter(self, *arguments, **_):
        self.given = [extent(one) for one in arguments if isinstance(one, torch.Tensor) and one.numel()]

    def check(self, pointers, mask):
        """The addresses of one access are those of one tensor: they come of one pointer, and numbers that are added to it."""
        size = np.dtype(interpreter._get_np_dtype(pointers.get_element_ty())).itemsize
        active = pointers.data.astype(np.uint64)[np.broadcast_to(mask, pointers.data.shape).astype(bool)]
        self.touched += active.size
        if not active.size:
            return
        low, high = int(active.min()), int(active.max()) + size
        inside = [(start, end) for start, end in self.given if start <= low and high <= end]
        if not inside or any((int(one) - inside[0][0]) % size for one in active):
            raise IndexError(f"out of bounds: bytes {low} to {high} are in none of {self.given}")


def extent(tensor):
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.itemsize


@pytest.fixture
def guard(monkeypatch):
    """All kernels are guarded, and those that have run can be asked for."""
    guard, builder = Guard(), interpreter.InterpreterBuilder
    load, store, atomic = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_rmw

    def guarded_load(self, pointers, mask, *rest):
        guard.check(pointers, mask.data)
        return load(self, pointers, mask, *rest)

    def guarded_store(self, pointers, value, mask, *rest):
        guard.check(pointers, mask.data)
        return store(self, pointers, value, mask, *rest)

    def guarded_atomic(self, operation, pointers, value, mask, *rest):
        guard.check(pointers, mask.data)
        return atomic(self, operation, pointers, value, mask, *rest)

    monkeypatch.setattr(builder, "create_masked_load", guarded_load)
    monkeypatch.setattr(builder, "create_masked_store", guarded_store)
    monkeypatch.setattr(builder, "create_atomic_rmw", guarded_atomic)
    guard.run = []
    for name in TABLES:
        entering = [lambda *arguments, name=name, **fixed: (guard.run.append(name), guard.enter(*arguments, **fixed))]
        monkeypatch.setattr(getattr(kernels, name), "pre_run_hooks", entering)
    return guard


def some(shape, density):
    mask = torch.rand(shape) < density
    mask[-1, -1] = density > 0  # the last place of all, too
    return Topology.from_mask(mask)


def blocks(shape, height, width):
    grid = torch.rand(shape[0] // height, shape[1] // width) < 0.5
    grid[-1, -1] = True
    return Topology.from_mask(grid.repeat_interleave(height, 0).repeat_interleave(width, 1))


def run(build, topology, geometry, shape, dtype):
    """All verbs, on tensors of which none is longer than it must be."""
    verbs = build(topology, geometry)
    x, values = torch.randn(shape).to(dtype), torch.randn(topology.nnz).to(ops.values_dtype(dtype))
    y = verbs.spmm(values, x, torch.randn(geometry.shape[0]).to(values.dtype))
    verbs.backward(values, x, torch.randn(y.shape).to(dtype), (True, True, False))


BATCHES = [1, 7, 40, 131]  # a line of each table of tiles
CONVOLUTIONS = [
    (Convolution(4, 6, (3, 3), padding=(1, 1)), (2, 4, 5, 4)),
    (Convolution(4, 6, (2, 3), stride=(2, 1), padding=(0, 2), groups=2), (3, 4, 6, 5)),
    (Convolution(2, 3, (3, 2), dilation=(2, 1), stride=(2, 3)), (2, 2, 8, 7)),
    (Convolution(5, 7, (1, 1)), (3, 5, 3, 7)),
    (Convolution(5, 7, (1, 1)), (3, 5, 1, 1)),
]
SHARING = [
    (Convolution(4, 32, (3, 3), padding=(1, 1)), (2, 4, 5, 4)),
    (Convolution(4, 32, (2, 3), stride=(2, 1), padding=(0, 2), groups=2), (3, 4, 6, 5)),
    (Convolution(2, 16, (3, 2), dilation=(2, 1), stride=(2, 3)), (2, 2, 8, 7)),
]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("shape", "density"), [((5, 9), 0.4), ((1, 1), 1.0), ((13, 3), 0.0)], ids=str)
def test_rows(guard, shape, density, batch):
    run(built.rows_matrix, some(shape, density), Matrix(*shape), (batch, shape[1]), F64 if batch == 7 else F32)
    assert guard.touched
    assert {"rows_product"} <= set(guard.run) <= {"rows_product", "rows_sampled"}


@pytest.mark.parametrize(("geometry", "shape"), CONVOLUTIONS, ids=str)
def test_convolutions(guard, geometry, shape):
    run(built.rows_convolution, some(geometry.shape, 0.5), geometry, shape, F32)
    assert set(guard.run) == {"rows_product", "rows_sampled"}


@pytest.mark.parametrize(("geometry", "shape"), [one for one in CONVOLUTIONS if one[0].groups == 1], ids=str)
def test_bitmaps_of_convolutions(guard, geometry, shape):
    run(built.bitmap_convolution, some(geometry.shape, 0.5), geometry, shape, F16)
    assert set(guard.run) == {"bitmap_product", "bitmap_sampled"} | ({"bitmap_transposed"} if geometry.pointwise else set())


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("shape", "density"), [((33, 70), 0.3), ((1, 1), 1.0), ((3, 129), 0.9), ((65, 31), 0.05)], ids=str)
def test_bitmaps(guard, shape, density, batch):
    run(built.bitmap_matrix, some(shape, density), Matrix(*shape), (batch, shape[1]), F16)
    assert set(guard.run) == {"bitmap_product", "bitmap_transposed", "bitmap_sampled"}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("size", [16, 32, 64])
def test_blocks(guard, size, batch):
    geometry = Matrix(2 * size, 3 * size)
    run(built.blocks_matrix, blocks(geometry.shape, size, size), geometry, (batch, geometry.columns), F16)
    assert set(guard.run) == {"blocks_product", "blocks_transposed", "blocks_sampled"}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("rows", [16, 32, 64])
def test_rows_that_share_columns(guard, rows, batch):
    geometry = Matrix(2 * rows, 37)
    run(built.shared_matrix, blocks(geometry.shape, rows, 1), geometry, (batch, geometry.columns), F16 if batch == 7 else F32)
    assert set(guard.run) == {"shared_product", "shared_transposed", "shared_sampled", "rows_product"}


@pytest.mark.parametrize(("geometry", "shape"), SHARING, ids=str)
def test_rows_of_convolutions_that_share_columns(guard, geometry, shape):
    run(built.shared_convolution, blocks(geometry.shape, 16, 1), geometry, shape, F32)
    assert set(guard.run) == {"shared_product", "shared_transposed", "shared_sampled", "rows_product"}


@pytest.mark.parametrize("form", ["bitmap", "blocks", "shared"])
def test_tiles_of_images(guard, form):
    geometry = Convolution(16, 32, (1, 1))
    topology = some(geometry.shape, 0.3) if form == "bitmap" else blocks(geometry.shape, 16, 16 if form == "blocks" else 1)
    run(getattr(built, f"{form}_convolution"), topology, geometry, (2, 16, 3, 5), F16)
    assert guard.touched


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize(("shape", "density"), [((33, 65), 0.4), ((1, 1), 0.0), ((3, 129), 0.9), ((5, 9), 1.0)], ids=str)
def test_the_search(guard, shape, density, alike):
    kept = some(shape, density)
    dy, x = (torch.ones(7, extent) if alike else torch.randn(7, extent) for extent in shape)
    for k in (1, kept.size // 3, kept.size):
        k = min(k, kept.size - kept.nnz)
        sides = built.MatrixKernels(kept, Matrix(*shape), built.Rows(kept))
        assert search.largest(sides._x(x), sides._y(dy), sides._images(x.shape), kept, k).numel() == k
    assert set(guard.run) == ({"gradients_searched"} if kept.nnz < kept.size else set())


def test_the_search_of_a_convolution(guard):
    geometry = Convolution(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    kept = some(geometry.shape, 0.4)
    verbs = built.rows_convolution(kept, geometry)
    x = torch.randn(2, 4, 6, 5)
    verbs.top_gradients([(torch.randn(verbs._output_shape(x.shape)), x)], kept, 20)
    assert set(guard.run) == {"gradients_searched"}


@triton.jit
def copied(x, y, count, read, SIZE: tl.constexpr):
    """Of `count` numbers, of which `read` are read."""
    place = tl.arange(0, SIZE)
    tl.store(y + place, tl.load(x + place, mask=place < read, other=0.0), mask=place < count)


def test_one_number_too_many_is_seen(guard):
    """Also where memory beside the tensor is somebody's, or the tensor's own storage goes on."""
    copied.pre_run_hooks = [guard.enter]
    around = torch.zeros(64)
    copied[(1,)](around[8:13], torch.empty(5), 5, 5, SIZE=16)
    for count, read in ((5, 6), (6, 5)):
        with pytest.raises(interpreter.InterpreterError, match="out of bounds"):
            copied[(1,)](around[8:13], torch.empty(8)[:5], count, read, SIZE=16)
    for strided in (around[::4][:5], around[8:14].as_strided((2, 3), (3, 1))):
        copied[(1,)](strided, torch.empty(6), 6, 6, SIZE=16)
