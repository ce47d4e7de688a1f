"""The largest gradients of absent connections, found by a Triton kernel, in its interpreter: beside a list of all, sorted."""

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from truesparse import Topology, ops
from truesparse.topology.geometry import Convolution, Matrix

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

from truesparse.ops.triton import search

F32, F64, F16 = torch.float32, torch.float64, torch.float16


@pytest.fixture
def passes(monkeypatch):
    """What each pass over dW did, in order: the task and the shift."""
    seen, launch = [], search.launch

    def watched(kernel, pixels, programs, *arguments, **options):
        settled, task, shift = arguments[-10:-7]
        if task == search.COLLECT or not int(settled):
            seen.append((task, shift))
        launch(kernel, pixels, programs, *arguments, **options)

    monkeypatch.setattr(search, "launch", watched)
    return seen


def largest(gradient, kept, k):
    """By a sorted list of all: greater magnitudes first, NaN last, then smaller positions."""
    absent = sorted(set(range(kept.size)) - set(kept.keys.tolist()))
    magnitudes = gradient.abs().flatten().tolist()
    absent.sort(key=lambda position: -1.0 if math.isnan(magnitudes[position]) else magnitudes[position], reverse=True)
    return sorted(absent[:k])


def found(kept, k, *samples, geometry=None):
    with ops.use("triton"):
        verbs = ops.verbs_for(kept if kept.nnz < kept.size else kept.keep(torch.arange(kept.nnz) > 0), geometry or Matrix(*kept.shape), F64)
    result = verbs.top_gradients(list(samples), kept, k)
    assert result.dtype == torch.int64
    return result.tolist()


def exactly(gradient):
    """Samples whose gradient is that, to the bit: each row of x is a row of it."""
    return torch.eye(len(gradient), dtype=gradient.dtype), gradient


def some(shape, density):
    return Topology.from_mask(torch.rand(shape) < density)


@pytest.mark.parametrize(("density", "dtype"), [(0.0, F32), (0.3, F32), (0.9, F64), (0.1, F16)])
@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (70, 9), (33, 66)], ids=str)
def test_any_shape_and_count(shape, density, dtype):
    kept, gradient = some(shape, density), torch.randn(shape).to(dtype)
    for k in (0, 5, kept.size // 5, kept.size + 1):
        assert found(kept, k, exactly(gradient)) == largest(gradient, kept, k)


@pytest.mark.parametrize("level", [0.0, 1.5, -2.0, 1e-41, 3e38])
def test_ties_go_to_the_smaller_position(level, passes):
    """All alike, among them zeros, subnormal numbers and huge ones: bits say nothing, and rows decide."""
    kept = some((33, 60), 0.3)
    gradient = torch.full(kept.shape, level)
    for k in (1, 400):
        assert found(kept, k, exactly(gradient)) == largest(gradient, kept, k)
    assert passes[:4] == [(search.COUNT_MAGNITUDES, 16), (search.COUNT_MAGNITUDES, 0), (search.COUNT_ROWS, 0), (search.COLLECT, 0)]


def test_few_levels():
    kept = some((30, 60), 0.2)
    for values in ((0.0, 1.0), (-1.0, 0.0, 1.0), (1.0, 1.0 + 2**-23), (0.0, 1e-45)):
        gradient = torch.tensor(values)[torch.randint(len(values), kept.shape)]
        for k in (100, 700):
            assert found(kept, k, exactly(gradient)) == largest(gradient, kept, k)


@pytest.mark.parametrize(("dtype", "shifts"), [(F32, [16, 0]), (F64, [48, 32, 16, 0])], ids=str)
def test_as_many_passes_as_bits_are_alike(dtype, shifts, passes):
    """Numbers that differ in their last bits alone are told apart; those that differ in the first ones are in two passes."""
    kept = some((32, 64), 0.1)
    gradient = 1 + torch.randperm(2048).view(32, 64).to(dtype) * torch.finfo(dtype).eps
    assert found(kept, 20, exactly(gradient)) == largest(gradient, kept, 20)
    assert passes == [*((search.COUNT_MAGNITUDES, shift) for shift in shifts), (search.COLLECT, 0)]
    passes.clear()
    gradient = torch.randn(32, 64, dtype=dtype)
    assert found(kept, 20, exactly(gradient)) == largest(gradient, kept, 20)
    assert passes == [(search.COUNT_MAGNITUDES, shifts[0]), (search.COLLECT, 0)]


def test_one_pass_where_nearly_all_are_chosen(passes):
    kept, gradient = some((30, 20), 0.5), torch.randn(30, 20)
    assert found(kept, 200, exactly(gradient)) == largest(gradient, kept, 200)
    assert passes == [(search.COLLECT, 0)]


@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_infinity_comes_first_and_nan_last(dtype):
    dy = torch.tensor([[1.0, math.nan, 2.0, math.inf, -math.inf, 0.0] * 4], dtype=dtype)
    x = torch.tensor([[1.0, -3.0, 0.5, 7.0] * 5], dtype=dtype)
    kept = some((24, 20), 0.3)
    gradient = dy.T * x
    assert gradient.isnan().any()
    assert gradient.isinf().any()
    for k in (1, 100, 200, 290):
        assert found(kept, k, (dy, x)) == largest(gradient, kept, k)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_numbers_of_all_sizes(dtype):
    bits = torch.randint(0, 0x7F800000, (30, 41), dtype=torch.int32)
    gradient = bits.view(F32).to(dtype) * torch.randint(0, 2, bits.shape).mul(2).sub(1)
    for density in (0.0, 0.5):
        kept = some(bits.shape, density)
        assert found(kept, 100, exactly(gradient)) == largest(gradient, kept, 100)


def test_what_several_samples_add_up_to():
    kept = some((20, 30), 0.4)
    samples = [(torch.randint(-4, 5, (batch, 20)).float(), torch.randint(-4, 5, (batch, 30)).float()) for batch in (1, 40, 0, 3)]
    gradient = sum(dy.T @ x for dy, x in samples)
    assert found(kept, 77, *samples) == largest(gradient, kept, 77)
    other = [(dy.T.contiguous().T, x.repeat_interleave(2, 1)[:, ::2]) for dy, x in samples]  # however they lie in memory
    assert found(kept, 77, *other) == largest(gradient, kept, 77)


@pytest.mark.parametrize("k", [1, 5, 30, 400])
@pytest.mark.parametrize(
    ("geometry", "size"),
    [
        (Convolution(5, 7, (1, 1)), (3, 4)),
        (Convolution(5, 7, (1, 1)), (1, 1)),
        (Convolution(4, 6, (3, 2), padding=(1, 1)), (5, 4)),
        (Convolution(3, 5, (3, 3), stride=(2, 1), dilation=(1, 2), padding=(0, 2)), (7, 6)),
        (Convolution(4, 6, (2, 2), groups=2), (4, 4)),
    ],
    ids=str,
)
def test_convolutions(geometry, size, k, passes):
    kept = some(geometry.shape, 0.2)
    samples = [torch.randint(-3, 4, (batch, geometry.in_channels, *size)).double() for batch in (2, 1)]
    weight = torch.zeros(geometry.weight_shape, dtype=F64, requires_grad=True)
    outputs = [geometry.dense(x, weight, None) for x in samples]
    dys = [torch.randint(-3, 4, y.shape).double() for y in outputs]
    gradient = sum(torch.autograd.grad(y, weight, dy)[0] for y, dy in zip(outputs, dys, strict=True)).flatten(1)
    assert found(kept, k, *zip(dys, samples, strict=True), geometry=geometry) == largest(gradient, kept, k)
    assert bool(passes) == (geometry.groups == 1), "slab by slab for groups"


def test_images_of_several_sizes():
    geometry = Convolution(3, 5, (2, 2))
    kept = some(geometry.shape, 0.3)
    samples = [(torch.ones(1, 5, size, size, dtype=F64), torch.randn(1, 3, size + 1, size + 1, dtype=F64)) for size in (2, 4)]
    weight = torch.zeros(geometry.weight_shape, dtype=F64, requires_grad=True)
    gradient = sum(torch.autograd.grad(geometry.dense(x, weight, None), weight, dy)[0] for dy, x in samples).flatten(1)
    assert found(kept, 9, *samples, geometry=geometry) == largest(gradient, kept, 9)


@settings(max_examples=8)
@given(st.data())
def test_as_a_sorted_list_of_all(data):
    rows, columns = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 80))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    levels = data.draw(st.sampled_from([1, 2, 3, 17, 2**20]))
    exponent = data.draw(st.sampled_from([-140, -126, 0, 90]))
    kept = Topology.from_mask(torch.rand(rows, columns, generator=generator) < data.draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])))
    gradient = torch.randint(-levels, levels + 1, (rows, columns), generator=generator).float() * 2.0**exponent
    k = data.draw(st.integers(0, rows * columns + 3))
    assert found(kept, k, exactly(gradient)) == largest(gradient, kept, k)


class Watched(TorchDispatchMode):
    """Of which kinds the operations were, and what floats they made."""

    def __init__(self):
        super().__init__()
        self.called, self.floats = set(), 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        result = call(*args, **(kwargs or {}))
        self.called.add(call.overloadpacket.__name__)
        if isinstance(result, torch.Tensor) and result.is_floating_point():
            self.floats = max(self.floats, result.numel())
        return result


def test_nothing_waits_for_the_device_and_no_dense_gradient_is_made():
    kept, gradient = some((33, 60), 0.2), torch.ones(33, 60)
    samples = [(torch.ones(2, 33), torch.ones(2, 60)), (torch.ones(1, 33), torch.ones(1, 60))]
    with ops.use("triton"):
        verbs = ops.verbs_for(kept, Matrix(33, 60), F32)
    with Watched() as watched:
        positions = verbs.top_gradients(samples, kept, 50)
    assert positions.tolist() == largest(gradient, kept, 50)
    assert "sort" in watched.called
    assert not watched.called & {
        "_local_scalar_dense",
        "item",
        "nonzero",
        "masked_select",
        "equal",
        "unique",
        "_unique2",
        "repeat_interleave",
    }
    assert watched.floats <= 3 * 60, "more than both samples, side by side"


def test_the_same_from_run_to_run():
    kept, (dy, x) = some((40, 70), 0.1), (torch.randn(9, 40), torch.randn(9, 70))
    assert len({tuple(found(kept, 500, (dy, x))) for _ in range(2)}) == 1


def test_what_does_not_fit_is_refused():
    kept = some((6, 9), 0.3)
    with pytest.raises(ValueError, match=r"expected dy of shape \(2, 6\) beside x of shape \(2, 9\), got \(2, 5\)"):
        found(kept, 3, (torch.zeros(2, 5), torch.zeros(2, 9)))
    with pytest.raises(TypeError, match=r"got samples\[0\] torch.float64 on cpu, samples\[1\] torch.float32 on cpu"):
        found(kept, 3, (torch.zeros(2, 6, dtype=F64), torch.zeros(2, 9, dtype=F64)), (torch.zeros(2, 6), torch.zeros(2, 9)))
