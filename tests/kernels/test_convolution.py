"""The verbs of a convolution against float64 dense algebra, over strides, padding, dilation, groups and odd planes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_close, random_topology, rows_together

from truesparse import _core
from truesparse.ops import values_dtype
from truesparse.ops.cpu import ConvolutionKernels
from truesparse.topology.geometry import Convolution

CASES = {
    "3x3": (Convolution(5, 6, (3, 3), padding=(1, 1)), (9, 7)),
    "no padding": (Convolution(4, 3, (3, 3)), (8, 11)),
    "1x1": (Convolution(7, 9, (1, 1)), (5, 5)),
    "1x1 stride": (Convolution(4, 5, (1, 1), stride=(2, 2)), (7, 8)),
    "1x1 padded": (Convolution(4, 5, (1, 1), padding=(2, 1)), (4, 3)),
    "stride": (Convolution(3, 8, (3, 3), stride=(2, 2), padding=(1, 1)), (13, 10)),
    "uneven": (Convolution(3, 4, (2, 5), stride=(3, 1), padding=(0, 2), dilation=(2, 1)), (11, 9)),
    "dilation": (Convolution(4, 4, (3, 3), padding=(2, 2), dilation=(2, 2)), (10, 10)),
    "groups": (Convolution(6, 9, (3, 3), padding=(1, 1), groups=3), (6, 6)),
    "depthwise": (Convolution(8, 16, (3, 3), stride=(2, 1), padding=(1, 1), groups=8), (9, 9)),
    "one pixel": (Convolution(20, 10, (3, 3), padding=(1, 1)), (1, 1)),
    "wide padding": (Convolution(2, 3, (3, 3), padding=(4, 4)), (3, 5)),
    "large kernel": (Convolution(2, 3, (7, 7), stride=(2, 2), padding=(3, 3)), (20, 17)),
}


def check(
    geometry: Convolution, batch: int, size: tuple[int, int], density: float, dtype: torch.dtype, seed: int = 0, alike: int = 1
) -> None:
    topology = rows_together(*geometry.shape, alike, density, seed)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(topology.nnz, generator=generator, dtype=values_dtype(dtype))
    x = torch.randn(batch, geometry.in_channels, *size, generator=generator, dtype=dtype)
    bias = torch.randn(geometry.out_channels, generator=generator, dtype=values_dtype(dtype))
    kernels = ConvolutionKernels(topology, geometry)

    dense = topology.scatter(values.double()).view(geometry.weight_shape).requires_grad_()
    dense_x, dense_bias = x.double().requires_grad_(), bias.double().requires_grad_()
    y = geometry.dense(dense_x, dense, dense_bias)
    dy = torch.randn(y.shape, generator=generator, dtype=dtype)
    dw, dx, dbias = torch.autograd.grad(y, (dense, dense_x, dense_bias), dy.double()) if batch else (dense * 0, dense_x * 0, dense_bias * 0)
    y, dvalues = y.detach(), dw.detach().flatten()[topology.keys]
    positions = y[:, 0].numel()

    assert_close(kernels.spmm(values, x), y - bias[:, None, None], geometry.shape[1])
    assert_close(kernels.spmm(values, x, bias), y, geometry.shape[1])
    assert_close(kernels.spmm_t(values, dy, x.shape), dx.detach(), topology.nnz)
    assert_close(kernels.sddmm(dy, x), dvalues, positions)
    for actual, expected, terms in zip(
        kernels.backward(values, x, dy, (True, True, True)),
        (dvalues, dx.detach(), dbias.detach()),
        (positions, topology.nnz, positions),
        strict=True,
    ):
        assert_close(actual, expected, terms)
    assert kernels.backward(values, x, dy, (False, False, False)) == (None, None, None)
    if batch:
        slab = kernels.gradient_rows(dy, x, 1, geometry.out_channels)
        assert_close(slab, dw.detach().flatten(1)[1:], positions)


@pytest.mark.parametrize("name", CASES)
def test_against_dense(isa: str, threads: int, dtype: torch.dtype, name: str) -> None:
    for batch in (0, 1, 3, 20):
        check(*CASES[name][:1], batch, CASES[name][1], 0.3, dtype)


@pytest.mark.parametrize("alike", [2, 4])
@pytest.mark.parametrize("name", ["3x3", "1x1", "stride", "groups", "depthwise"])
def test_rows_that_share_their_columns(isa: str, dtype: torch.dtype, name: str, alike: int) -> None:
    for batch in (1, 3, 20):
        check(*CASES[name][:1], batch, CASES[name][1], 0.3, dtype, alike=alike)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("batch", [2, 63, 65])
def test_extreme_density(isa: str, dtype: torch.dtype, batch: int, density: float) -> None:
    check(Convolution(3, 4, (3, 3), padding=(1, 1)), batch, (7, 7), density, dtype)


def test_many_channels(isa: str, dtype: torch.dtype) -> None:
    """Several blocks of channels, several bands of rows."""
    check(Convolution(160, 24, (3, 3), padding=(1, 1)), 17, (24, 24), 0.05, dtype)


pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@settings(max_examples=120, deadline=None)
@given(
    inputs=st.integers(1, 5), outputs=st.integers(1, 5), kernel=pairs, stride=pairs, dilation=pairs,
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    groups=st.integers(1, 3), height=st.integers(1, 12), width=st.integers(1, 12),
    batch=st.integers(0, 40), density=st.floats(0, 1), seed=st.integers(0, 99),
    which=st.sampled_from(_core.supported_isas()), threads=st.sampled_from([1, 2, 3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_any_shape(
    inputs: int, outputs: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], padding: tuple[int, int],
    groups: int, height: int, width: int, batch: int, density: float, seed: int, which: str, threads: int, dtype: torch.dtype,
) -> None:  # fmt: skip
    _core.use_isa(which)
    torch.set_num_threads(threads)
    geometry = Convolution(inputs * groups, outputs * groups, kernel, stride, padding, dilation, groups)
    if min(geometry.output_size((height, width))) < 1:
        with pytest.raises(ValueError, match="too small"):
            ConvolutionKernels(random_topology(*geometry.shape, 0), geometry).spmm(
                torch.zeros(0), torch.zeros(1, geometry.in_channels, height, width)
            )
        return
    check(geometry, batch, (height, width), density, dtype, seed)


@pytest.mark.parametrize(("batch", "size"), [(1, (30, 30)), (3, (8, 8)), (40, (14, 14))])
def test_the_same_bits_for_any_number_of_threads(isa: str, dtype: torch.dtype, batch: int, size: tuple[int, int]) -> None:
    geometry = Convolution(16, 24, (3, 3), stride=(1, 1), padding=(1, 1))
    topology = random_topology(*geometry.shape, 0.2)
    kernels, values = ConvolutionKernels(topology, geometry), torch.randn(topology.nnz, dtype=values_dtype(dtype))
    x, dy = torch.randn(batch, 16, *size, dtype=dtype), torch.randn(batch, 24, *size, dtype=dtype)
    torch.set_num_threads(1)
    expected = [kernels.spmm(values, x), *kernels.backward(values, x, dy, (True, True, True))]
    for threads in (1, 2, 2, 3, 5):
        torch.set_num_threads(threads)
        for first, again in zip(expected, [kernels.spmm(values, x), *kernels.backward(values, x, dy, (True, True, True))], strict=True):
            assert first is not None
            assert again is not None
            assert torch.equal(first, again)


def test_inputs_may_be_strided(isa: str) -> None:
    geometry = Convolution(4, 6, (3, 3), padding=(1, 1))
    topology = random_topology(*geometry.shape, 0.4)
    kernels, values = ConvolutionKernels(topology, geometry), torch.randn(topology.nnz)
    x = torch.randn(3, 4, 9, 9).to(memory_format=torch.channels_last)
    dy = torch.randn(()).expand(3, 6, 9, 9)
    for one, two in zip(
        kernels.backward(values, x, dy, (True, True, True)),
        kernels.backward(values, x.contiguous(), dy.clone(), (True, True, True)),
        strict=True,
    ):
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)


def test_what_does_not_fit_is_an_error() -> None:
    geometry = Convolution(4, 6, (3, 3))
    topology = random_topology(*geometry.shape, 0.4)
    kernels, values = ConvolutionKernels(topology, geometry), torch.randn(topology.nnz)
    with pytest.raises(ValueError, match="expected x of shape"):
        kernels.spmm(values, torch.randn(1, 5, 8, 8))
    with pytest.raises(ValueError, match="too small"):
        kernels.spmm(values, torch.randn(1, 4, 2, 8))
    with pytest.raises(ValueError, match="expected dy of shape"):
        kernels.backward(values, torch.randn(1, 4, 8, 8), torch.randn(1, 6, 8, 8), (True, True, True))
    with pytest.raises(TypeError, match="float32 or float64"):
        kernels.spmm(values, torch.randn(1, 4, 8, 8).double())
