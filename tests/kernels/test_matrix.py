"""The verbs of a matrix against float64 dense algebra: every instruction set, thread count and dtype."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import assert_close, check_matrix, random_topology, rows_together
from torch import Tensor

from truesparse import _core
from truesparse.ops import values_dtype
from truesparse.ops.cpu import MatrixKernels
from truesparse.topology import Topology
from truesparse.topology.geometry import Matrix

SHAPES = [(1, 1), (7, 5), (33, 130), (130, 33), (96, 300)]
BATCHES = [0, 1, 2, 15, 16, 17, 64, 65, 130]


@pytest.mark.parametrize("density", [0.0, 0.03, 0.3, 1.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_dense(isa: str, threads: int, dtype: torch.dtype, shape: tuple[int, int], density: float) -> None:
    topology = random_topology(*shape, density)
    for batch in BATCHES:
        check_matrix(topology, batch, dtype)


@pytest.mark.parametrize("shape", [(5, 70_000), (70_000, 5)])
def test_blocks_wider_than_16_bits(isa: str, threads: int, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    topology = random_topology(*shape, 20 / 350_000)
    for batch in (3, 17, 70):
        check_matrix(topology, batch, dtype)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 80), columns=st.integers(1, 200), batch=st.integers(0, 300), density=st.floats(0, 1), seed=st.integers(0, 99),
    which=st.sampled_from(_core.supported_isas()), threads=st.sampled_from([1, 2, 3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_any_shape(rows: int, columns: int, batch: int, density: float, seed: int, which: str, threads: int, dtype: torch.dtype) -> None:
    _core.use_isa(which)
    torch.set_num_threads(threads)
    check_matrix(random_topology(rows, columns, density, seed), batch, dtype)


@pytest.mark.parametrize("alike", [2, 3, 4, 8])
@pytest.mark.parametrize("rows", [4, 31, 96])
def test_rows_that_share_their_columns(isa: str, threads: int, dtype: torch.dtype, rows: int, alike: int) -> None:
    for batch in BATCHES:
        check_matrix(rows_together(rows, 130, alike, 0.3), batch, dtype)


@pytest.mark.parametrize(
    ("rows", "alike", "per_group", "expected"),
    [
        (8, 8, 8, 4), (8, 4, 8, 4), (8, 2, 8, 2), (6, 2, 6, 2), (7, 4, 7, 1), (8, 1, 8, 1),
        (8, 4, 2, 2), (9, 3, 9, 1), (8, 4, 1, 1), (12, 6, 12, 2), (0, 4, 1, 1),
    ],
)  # fmt: skip
def test_how_many_rows_share_their_columns(rows: int, alike: int, per_group: int, expected: int) -> None:
    topology = rows_together(rows, 50, alike, 0.4) if rows else Topology.from_mask(torch.ones(0, 5) > 0)
    arrays = topology.indptr.data_ptr(), topology.indices.data_ptr()
    assert _core.Runs(*topology.shape, *arrays, 0, 50, 1, per_group, 1).alike == expected


def test_rows_of_one_length_are_not_alike() -> None:
    topology = Topology.from_mask(torch.tensor([[1, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1]]) > 0)
    assert _core.Runs(4, 3, topology.indptr.data_ptr(), topology.indices.data_ptr(), 0, 3, 1, 4, 1).alike == 1


def results(topology: Topology, x: Tensor, dy: Tensor, values: Tensor) -> list[Tensor | None]:
    kernels = MatrixKernels(topology, Matrix(*topology.shape))
    return [kernels.spmm(values, x), *kernels.backward(values, x, dy, (True, True, True))]


@pytest.mark.parametrize("alike", [1, 4])
@pytest.mark.parametrize("batch", [1, 2, 17, 64, 130, 500])
def test_the_same_bits_for_any_number_of_threads(isa: str, dtype: torch.dtype, batch: int, alike: int) -> None:
    topology = rows_together(148, 700, alike, 0.2)
    x, dy = torch.randn(batch, 700, dtype=dtype), torch.randn(batch, 148, dtype=dtype)
    values = torch.randn(topology.nnz, dtype=values_dtype(dtype))
    torch.set_num_threads(1)
    expected = results(topology, x, dy, values)
    for threads in (1, 2, 2, 3, 5):
        torch.set_num_threads(threads)
        for first, again in zip(expected, results(topology, x, dy, values), strict=True):
            assert first is not None
            assert again is not None
            assert torch.equal(first, again)


def test_no_row_or_column_at_all(isa: str, dtype: torch.dtype) -> None:
    for rows, columns in ((0, 5), (5, 0), (0, 0)):
        empty = Topology((rows, columns), torch.zeros(rows + 1, dtype=torch.int32), torch.zeros(0, dtype=torch.int32))
        kernels, none = MatrixKernels(empty, Matrix(rows, columns)), torch.zeros(0, dtype=values_dtype(dtype))
        for batch in (0, 1, 3):
            assert torch.equal(kernels.spmm(none, torch.ones(batch, columns, dtype=dtype)), torch.zeros(batch, rows, dtype=dtype))
            dx = kernels.spmm_t(none, torch.ones(batch, rows, dtype=dtype), torch.Size((batch, columns)))
            assert torch.equal(dx, torch.zeros(batch, columns, dtype=dtype))


def test_inputs_may_be_strided_or_expanded(isa: str) -> None:
    topology = random_topology(20, 30, 0.3)
    kernels, values = MatrixKernels(topology, Matrix(20, 30)), torch.randn(topology.nnz)
    x, dy = torch.randn(30, 40).T, torch.randn(()).expand(40, 20)
    for given_, plain in zip(
        kernels.backward(values, x, dy, (True, True, True)),
        kernels.backward(values, x.clone(), dy.clone(), (True, True, True)),
        strict=True,
    ):
        assert given_ is not None
        assert plain is not None
        assert torch.equal(given_, plain)
    assert torch.equal(kernels.spmm(values, x), kernels.spmm(values, x.clone()))


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_nan_and_infinity_stay_in_their_sample(isa: str, dtype: torch.dtype, batch: int) -> None:
    topology = random_topology(40, 70, 0.3)
    kernels, values = MatrixKernels(topology, Matrix(40, 70)), torch.rand(topology.nnz, dtype=values_dtype(dtype))
    x, reached = torch.rand(batch, 70, dtype=dtype), topology.fan_in > 0
    clean = kernels.spmm(values, x)
    for number in (float("nan"), float("inf"), float("-inf")):
        x[0] = number
        spoilt = kernels.spmm(values, x)
        torch.testing.assert_close(spoilt[0][reached], torch.full((int(reached.sum()),), number, dtype=dtype), equal_nan=True)
        assert torch.equal(spoilt[1:], clean[1:])


@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("size", [9, 75])
def test_bfloat16_is_rounded_as_torch_does(isa: str, batch: int, size: int) -> None:
    """Any bits a float can have, ties, the largest, the smallest: each row of the identity gives its own value."""
    edges = [
        0x3F808000,
        0x3F818000,
        0x3F807FFF,
        0x3F808001,
        0x7F7FFFFF,
        0x7F800000,
        0x7F800001,
        0x7FFFFFFF,
        0x00000001,
        0x00008000,
        0x00018000,
    ]
    bits = torch.cat([torch.tensor(edges, dtype=torch.int64), torch.randint(0, 2**31, (size,))])[:size]
    identity = Topology.from_mask(torch.eye(size))
    for sign in (0, 2**31):
        values = (bits + sign).to(torch.uint32).view(torch.float32)
        kernels, ones = MatrixKernels(identity, Matrix(size, size)), torch.ones(batch, size, dtype=torch.bfloat16)
        expected = values.to(torch.bfloat16).expand(batch, size)
        for y in (kernels.spmm(values, ones), kernels.spmm_t(values, ones, ones.shape)):
            torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("batch", [1, 2, 15, 17, 130])
def test_bfloat16_is_float32_until_it_is_written(isa: str, batch: int) -> None:
    topology = random_topology(61, 83, 0.3)
    kernels, values, bias = MatrixKernels(topology, Matrix(61, 83)), torch.randn(topology.nnz), torch.randn(61)
    x, dy = torch.randn(batch, 83, dtype=torch.bfloat16), torch.randn(batch, 61, dtype=torch.bfloat16)
    assert torch.equal(kernels.spmm(values, x, bias), kernels.spmm(values, x.float(), bias).bfloat16())
    dvalues, dx, dbias = kernels.backward(values, x, dy, (True, True, True))
    wide = kernels.backward(values, x.float(), dy.float(), (True, True, True))
    assert wide[1] is not None
    for found, expected in ((dvalues, wide[0]), (dx, wide[1].bfloat16()), (dbias, wide[2])):
        assert found is not None
        assert expected is not None
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_a_large_layer_costs_its_connections_only() -> None:
    size = 1 << 16  # rows x columns = 2^32
    keys = torch.randint(0, size * size, (200_000,)).unique()
    topology = Topology.from_keys((size, size), keys)
    kernels = MatrixKernels(topology, Matrix(size, size))
    values, x = torch.randn(topology.nnz), torch.randn(2, size)
    y = kernels.spmm(values, x)
    expected = torch.zeros(2, size, dtype=torch.float64).index_add(1, topology.rows, (values * x[:, topology.indices]).double())
    assert_close(y, expected, 8)
    kernels.backward(values, x, y, (True, True, True))
    assert kernels.nbytes < 8 * topology.nnz + 32 * size


def test_bytes_per_connection() -> None:
    topology = random_topology(768, 3072, 0.1)
    kernels = MatrixKernels(topology, Matrix(768, 3072))
    kernels.spmm_t(torch.ones(topology.nnz), torch.ones(1, 768), torch.Size((1, 3072)))
    assert topology.indices.nbytes + topology.indptr.nbytes + kernels.nbytes <= 16 * topology.nnz


def test_what_does_not_fit_is_an_error() -> None:
    topology = random_topology(20, 30, 0.3)
    kernels, values, x = MatrixKernels(topology, Matrix(20, 30)), torch.randn(topology.nnz), torch.randn(4, 30)
    with pytest.raises(TypeError, match=r"float32 or float64.*got values torch.float32 on cpu, x torch.float64 on cpu; move and convert"):
        kernels.spmm(values, x.double())
    with pytest.raises(TypeError, match="float16"):
        kernels.spmm(values.half(), x.half())
    with pytest.raises(TypeError, match=r"bfloat16 samples with float32 values.*got values torch.bfloat16 on cpu, x torch.bfloat16 on cpu"):
        kernels.spmm(values.bfloat16(), x.bfloat16())
    with pytest.raises(TypeError, match=r"got values torch.float32 on cpu, x torch.bfloat16 on cpu, dy torch.float32 on cpu"):
        kernels.backward(values, x.bfloat16(), torch.randn(4, 20), (True, True, True))
    with pytest.raises(ValueError, match=r"expected x of shape \(batch, 30\), got \(4, 20\)"):
        kernels.spmm(values, torch.randn(4, 20))
    with pytest.raises(ValueError, match="one per connection"):
        kernels.spmm(values[1:], x)
    with pytest.raises(ValueError, match="one per row"):
        kernels.spmm(values, x, torch.zeros(3))
    with pytest.raises(ValueError, match="one batch, got 4 and 3"):
        kernels.backward(values, x, torch.randn(3, 20), (True, True, True))
    with pytest.raises(ValueError, match="expected a topology of shape"):
        MatrixKernels(topology, Matrix(30, 20))
