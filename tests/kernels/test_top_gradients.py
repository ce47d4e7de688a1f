"""The selection of the largest gradients against sorting them all."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import random_topology
from torch import Tensor

from truesparse import _core
from truesparse.ops.cpu import ConvolutionKernels, MatrixKernels
from truesparse.topology import Topology, patterns
from truesparse.topology.geometry import Convolution, Matrix


def ordered(gradient: Tensor, kept: Topology) -> Tensor:
    """Positions without a connection: larger magnitude first, NaN last, then the smaller position."""
    magnitude = gradient.abs().double().nan_to_num(-1.0, posinf=float("inf")).flatten()
    empty = (~kept.mask().flatten()).nonzero().squeeze(1)
    return empty[magnitude[empty].sort(descending=True, stable=True).indices]


def by_sorting(gradient: Tensor, kept: Topology, k: int) -> Tensor:
    return ordered(gradient, kept)[:k].sort().values


def pushed(gradient: Tensor, kept: Topology, k: int, height: int) -> Tensor:
    rows, columns = kept.shape
    best = _core.TopK(k)
    push = best.push_float32 if gradient.dtype == torch.float32 else best.push_float64
    for start in range(0, rows, height):
        slab = gradient[start : start + height].contiguous()
        push(slab.data_ptr(), start, slab.shape[0], columns, kept.indptr.data_ptr(), kept.indices.data_ptr(), torch.get_num_threads())
    return result_of(best, k)


def result_of(best: _core.TopK, k: int) -> Tensor:
    keys = torch.full((k,), -1, dtype=torch.int64)
    return keys[: best.result(keys.data_ptr())].sort().values


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "some NaN", "mostly NaN", "infinite"])
@pytest.mark.parametrize("density", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_against_sorting(isa: str, dtype: torch.dtype, density: float, kind: str) -> None:
    kept = random_topology(60, 117, density)
    gradient = torch.randn(60, 117, dtype=dtype)
    chance = torch.rand(60, 117)
    if kind == "ties":
        gradient = gradient.round()
    elif kind == "zeros":
        gradient.zero_()
    elif kind == "some NaN":
        gradient[chance < 0.1] = float("nan")
    elif kind == "mostly NaN":
        gradient[chance < 0.99] = float("nan")
    elif kind == "infinite":
        gradient[chance < 0.01] = float("-inf")
    for k in (0, 1, 50, 1500, 10_000):
        expected = by_sorting(gradient, kept, k)
        for height in (1, 7, 60):
            assert torch.equal(pushed(gradient, kept, k, height), expected)


@pytest.mark.parametrize("slab", [100, 1 << 22])
def test_several_samples_of_a_matrix_add_up(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, slab: int) -> None:
    monkeypatch.setattr(patterns, "SLAB_ENTRIES", slab)
    kept = random_topology(40, 90, 0.1)
    kernels = MatrixKernels(kept, Matrix(40, 90))
    samples = [(torch.randint(-99, 99, (8, 40)).to(dtype), torch.randint(-99, 99, (8, 90)).to(dtype)) for _ in range(3)]
    gradient = torch.stack([dy.double().T @ x.double() for dy, x in samples]).sum(0)  # more than bfloat16 holds, in whole numbers
    assert torch.equal(kernels.top_gradients(samples, kept, 200), by_sorting(gradient, kept, 200))


@pytest.mark.parametrize("slab", [100, 1 << 22])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_convolution(isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, slab: int, groups: int) -> None:
    monkeypatch.setattr(patterns, "SLAB_ENTRIES", slab)
    geometry = Convolution(6, 9, (3, 3), stride=(2, 1), padding=(1, 0), groups=groups)
    kept = random_topology(*geometry.shape, 0.2)
    x = torch.randint(-99, 99, (4, 6, 9, 8)).double()
    weight = torch.zeros(geometry.weight_shape, dtype=torch.float64, requires_grad=True)
    y = geometry.dense(x, weight, None)
    dy = torch.randint(-99, 99, y.shape).double()
    (gradient,) = torch.autograd.grad(y, weight, dy)
    found = ConvolutionKernels(kept, geometry).top_gradients([(dy.to(dtype), x.to(dtype))], kept, 60)
    assert torch.equal(found, by_sorting(gradient.flatten(1), kept, 60))


def test_positions_beyond_32_bits() -> None:
    rows, columns = 3, 2**31 - 1
    kept = Topology.from_keys((rows, columns), torch.tensor([2 * columns]))
    best, slab = _core.TopK(2), torch.tensor([5.0, 1.0])
    best.push_float32(slab.data_ptr(), 2, 1, 2, kept.indptr.data_ptr(), kept.indices.data_ptr(), 1)
    assert result_of(best, 2).tolist() == [5]  # the row's own width counts, here 2: position 2 * 2 + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "rising", "ties", "zeros", "near", "wide", "NaN", "late"])
def test_many_more_than_are_held_at_once(kind: str, dtype: torch.dtype, threads: int) -> None:
    kept = random_topology(1500, 1000, 0.05)
    gradient = torch.randn(1500, 1000, dtype=dtype)
    if kind == "rising":  # every entry is better than all before
        gradient = torch.arange(1500 * 1000).view(1500, 1000).to(dtype)
    elif kind == "ties":
        gradient = gradient.round()
    elif kind == "zeros":
        gradient[:, 5:] = 0
    elif kind == "near":  # all in one bucket of magnitudes
        gradient = 1 + gradient * 1e-5
    elif kind == "wide":
        gradient = gradient.sign() * torch.pow(torch.tensor(10, dtype=dtype), gradient * 15)
    elif kind == "NaN":
        gradient[100:] = float("nan")
    elif kind == "late":  # when the list has been thinned out, a few come that are among the last to be taken
        gradient[530:] = 0
        best = gradient.masked_fill(kept.mask(), 0).abs().flatten().sort(descending=True).values
        gradient[1400, ::10] = best[4980]
    order = ordered(gradient, kept)
    for k in (1, 5000, 200_000):
        assert torch.equal(pushed(gradient, kept, k, 1500), order[:k].sort().values)
