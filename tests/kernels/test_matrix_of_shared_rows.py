"""Where neighbouring rows share their columns, other kernels run: against float64 dense algebra, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_close, check_matrix, rows_together
from torch import Tensor

from truesparse import _core
from truesparse.ops import plans, values_dtype
from truesparse.ops.cpu import ConvolutionKernels, MatrixKernels
from truesparse.ops.plans import MatrixPlan, SharedRowsPlan
from truesparse.topology import Topology
from truesparse.topology.geometry import Convolution, Matrix
from truesparse.topology.patterns import Block, SharedFanIn

ALIKE = [8, 16, 24, 32, 64]  # where 24 rows share their columns, kernels are told of 8
BATCHES = [0, 1, 3, 16, 17, 65, 255]


@pytest.fixture(autouse=True)
def _small_groups_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "LEAST_VALUES_OF_GROUP", 0)


def test_groups_of_few_values_are_left_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "LEAST_VALUES_OF_GROUP", 512)
    for columns, kind in ((15, MatrixPlan), (16, SharedRowsPlan)):
        topology = SharedFanIn(32).random((64, 99), 64 * columns, torch.Generator().manual_seed(0))
        assert type(MatrixKernels(topology, Matrix(64, 99)).plan) is kind


@pytest.mark.parametrize(
    ("rows", "alike", "shared"), [(128, 64, True), (32, 8, True), (48, 24, True), (32, 4, False), (60, 12, False), (9, 9, False)]
)
def test_the_topology_decides(rows: int, alike: int, shared: bool) -> None:
    plan = MatrixKernels(rows_together(rows, 50, alike, 0.4), Matrix(rows, 50)).plan
    assert type(plan) is (SharedRowsPlan if shared else MatrixPlan)


def test_blocks_are_rows_that_share_their_columns() -> None:
    topology = Block(16).random((64, 96), 16 * 16 * 5, torch.Generator().manual_seed(0))
    assert type(MatrixKernels(topology, Matrix(64, 96)).plan) is SharedRowsPlan
    check_matrix(topology, 33, torch.float32)


@pytest.mark.parametrize("density", [0.05, 0.8, 1.0])
@pytest.mark.parametrize("alike", ALIKE)
def test_against_dense(isa: str, threads: int, dtype: torch.dtype, alike: int, density: float) -> None:
    """Odd columns, more than stay near. Unless all are there, the first group is empty and the others differ in their counts."""
    topology = rows_together(2 * alike if alike > 24 else 48, 131, alike, density)
    for batch in BATCHES:
        check_matrix(topology, batch, dtype)


@pytest.mark.parametrize("shape", [(16, 1), (64, 5), (16, 3_000), (520, 7)])
def test_thin_and_wide(isa: str, threads: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    topology = rows_together(*shape, 8, 0.6, seed=1)
    for batch in (3, 70):
        check_matrix(topology, batch, dtype)


def test_empty_groups_between_others(isa: str, dtype: torch.dtype) -> None:
    of_group = torch.tensor([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]]) > 0
    for batch in (1, 20):
        check_matrix(Topology.from_mask(of_group.repeat_interleave(16, 0)), batch, dtype)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 6), alike=st.sampled_from([8, 16, 32]), columns=st.integers(1, 250), batch=st.integers(0, 300),
    density=st.floats(0, 1), seed=st.integers(0, 99), which=st.sampled_from(_core.supported_isas()), threads=st.sampled_from([1, 2, 3]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_any_shape(
    groups: int, alike: int, columns: int, batch: int, density: float, seed: int, which: str, threads: int, dtype: torch.dtype
) -> None:
    _core.use_isa(which)
    torch.set_num_threads(threads)
    check_matrix(rows_together(groups * alike, columns, alike, density, seed), batch, dtype)


def results(kernels: MatrixKernels, values: Tensor, x: Tensor, dy: Tensor) -> list[Tensor]:
    every = [kernels.spmm(values, x), *kernels.backward(values, x, dy, (True, True, True))]
    return [one for one in every if one is not None]


def drawn(topology: Topology, batch: int, dtype: torch.dtype) -> tuple[MatrixKernels, Tensor, Tensor, Tensor]:
    (rows, columns), values = topology.shape, torch.randn(topology.nnz, dtype=values_dtype(dtype))
    kernels = MatrixKernels(topology, Matrix(rows, columns))
    assert isinstance(kernels.plan, SharedRowsPlan)
    return kernels, values, torch.randn(batch, columns, dtype=dtype), torch.randn(batch, rows, dtype=dtype)


@pytest.mark.parametrize("alike", [8, 32])
@pytest.mark.parametrize("batch", [1, 2, 17, 64, 130, 500])
def test_the_same_bits_for_any_number_of_threads(isa: str, dtype: torch.dtype, batch: int, alike: int) -> None:
    arguments = drawn(rows_together(96, 301, alike, 0.2), batch, dtype)
    torch.set_num_threads(1)
    expected = results(*arguments)
    for threads in (1, 2, 2, 3, 5):
        torch.set_num_threads(threads)
        for first, again in zip(expected, results(*arguments), strict=True):
            assert torch.equal(first, again)


@pytest.mark.parametrize("batch", [2, 40, 130])
def test_nan_and_infinity_stay_in_their_sample(isa: str, dtype: torch.dtype, batch: int) -> None:
    topology = rows_together(64, 70, 16, 0.3)
    kernels, values, x, dy = drawn(topology, batch, dtype)
    clean, clean_dx = kernels.spmm(values, x), kernels.spmm_t(values, dy, x.shape)
    for number in (float("nan"), float("inf")):
        x[0] = dy[0] = number
        assert torch.equal(kernels.spmm(values, x)[1:], clean[1:])
        assert not kernels.spmm(values, x)[0][topology.fan_in > 0].isfinite().any()
        assert torch.equal(kernels.spmm_t(values, dy, x.shape)[1:], clean_dx[1:])
        assert not kernels.spmm_t(values, dy, x.shape)[0][topology.fan_out > 0].isfinite().any()


@pytest.mark.parametrize("batch", [1, 15, 130])
def test_bfloat16_is_float32_until_it_is_written(isa: str, batch: int) -> None:
    kernels, values, x, dy = drawn(rows_together(64, 83, 8, 0.3), batch, torch.bfloat16)
    wide = results(kernels, values, x.float(), dy.float())
    for found, expected in zip(results(kernels, values, x, dy), wide, strict=True):
        assert torch.equal(found, expected.to(found.dtype))


@pytest.mark.parametrize(("batch", "size"), [(1, (1, 1)), (3, (5, 5)), (20, (3, 7)), (2, (12, 13))])
def test_pixels_are_samples(isa: str, threads: int, dtype: torch.dtype, batch: int, size: tuple[int, int]) -> None:
    topology = rows_together(48, 21, 16, 0.4)
    kernels = ConvolutionKernels(topology, Convolution(21, 48, (1, 1)))
    assert isinstance(kernels.plan, SharedRowsPlan)
    values, bias = (torch.randn(count, dtype=values_dtype(dtype)) for count in (topology.nnz, 48))
    x, dy = torch.randn(batch, 21, *size, dtype=dtype), torch.randn(batch, 48, *size, dtype=dtype)
    dense = topology.scatter(values.double())
    positions = x[:, 0].numel()
    assert_close(kernels.spmm(values, x, bias), torch.einsum("rc,bchw->brhw", dense, x.double()) + bias.double()[:, None, None], 21)
    dvalues, dx, dbias = kernels.backward(values, x, dy, (True, True, True))
    assert_close(dx, torch.einsum("rc,brhw->bchw", dense, dy.double()), 48)
    assert_close(dvalues, torch.einsum("brhw,bchw->rc", dy.double(), x.double()).flatten()[topology.keys], positions)
    assert_close(dbias, dy.double().sum((0, 2, 3)), positions)


def test_nothing_is_laid_out() -> None:
    kernels, values, x, dy = drawn(rows_together(64, 83, 8, 0.3), 5, torch.float32)
    results(kernels, values, x, dy)
    assert kernels.nbytes == 0
