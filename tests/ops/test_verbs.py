"""Each verb of each family of kernels against dense algebra by torch, in float64."""

from itertools import product

import pytest
import torch
from oracles import drawn

from truesparse import Topology, ops
from truesparse.topology.geometry import Convolution, Matrix

NAN = float("nan")
GEOMETRIES = {
    "matrix": (Matrix(6, 9), (4, 9)),
    "matrix of one": (Matrix(1, 1), (3, 1)),
    "batch of none": (Matrix(6, 9), (0, 9)),
    "convolution": (Convolution(4, 6, (3, 3), padding=(1, 1)), (2, 4, 5, 4)),
    "strided groups": (Convolution(4, 6, (2, 3), stride=(2, 1), padding=(0, 2), groups=2), (3, 4, 6, 5)),
    "dilated": (Convolution(2, 3, (3, 2), dilation=(2, 1)), (2, 2, 7, 4)),
    "depthwise": (Convolution(4, 4, (3, 3), groups=4), (2, 4, 4, 4)),
}
DENSITIES = [0.0, 0.1, 0.5, 1.0]
geometries = pytest.mark.parametrize(("geometry", "shape"), GEOMETRIES.values(), ids=GEOMETRIES)
densities = pytest.mark.parametrize("density", DENSITIES)


def example(geometry, shape, density):
    """(topology, values, bias, x, dy, dense gradients of y = W x + b at them by torch's autograd)."""
    topology = Topology.from_mask(torch.rand(geometry.shape) < density)
    values = torch.randn(topology.nnz, dtype=torch.float64)
    weight = topology.scatter(values).view(geometry.weight_shape).requires_grad_()
    bias = torch.randn(geometry.shape[0], dtype=torch.float64, requires_grad=True)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    y = geometry.dense(x, weight, bias)
    dy = torch.randn_like(y)
    gradients = torch.autograd.grad(y, (weight, x, bias), dy)
    return topology, values, bias.detach(), x.detach(), dy, y.detach(), gradients


@geometries
@densities
def test_products_and_gradients(family, geometry, shape, density):
    topology, values, bias, x, dy, y, (dweight, dx, dbias) = example(geometry, shape, density)
    verbs = ops.verbs_for(topology, geometry, torch.float64)
    torch.testing.assert_close(verbs.spmm(values, x, bias), y)
    torch.testing.assert_close(verbs.spmm(values, x), geometry.dense(x, topology.scatter(values).view(geometry.weight_shape), None))
    torch.testing.assert_close(verbs.spmm_t(values, dy, x.shape), dx)
    torch.testing.assert_close(verbs.sddmm(dy, x), dweight.flatten()[topology.keys])
    for need in ((True, True, True), (True, False, False), (False, True, False), (False, False, True), (False, False, False)):
        found = verbs.backward(values, x, dy, need)
        assert tuple(part is not None for part in found) == need
        for part, expected in zip(found, (dweight.flatten()[topology.keys], dx, dbias), strict=True):
            if part is not None:
                torch.testing.assert_close(part, expected)


@geometries
def test_rows_of_the_dense_gradient(family, geometry, shape):
    topology, _, _, x, dy, _, (dweight, _, _) = example(geometry, shape, 0.3)
    verbs = ops.verbs_for(topology, geometry, torch.float64)
    rows = geometry.shape[0]
    for start, stop in ((0, rows), (0, 1), (rows - 1, rows), (rows // 3, rows // 2 + 1), (0, 0)):
        torch.testing.assert_close(verbs.gradient_rows(dy, x, start, stop), dweight.flatten(1)[start:stop])


def largest_by_hand(dense, kept, count):
    """Positions outside `kept` from the largest |gradient| down; ties to the lower position, NaN after every number."""
    scores, taken = dense.abs().flatten().tolist(), set(kept.keys.tolist())
    empty = sorted(set(range(len(scores))) - taken, key=lambda key: (scores[key] != scores[key], -scores[key], key))
    return sorted(empty[:count])


@geometries
@densities
@pytest.mark.parametrize("samples", [1, 3])
def test_largest_absent_gradients(family, geometry, shape, density, samples):
    passes = [example(geometry, shape, density) for _ in range(samples)]
    topology = passes[0][0]
    dense = sum(gradients[0] for *_, gradients in passes).flatten(1)
    verbs = ops.verbs_for(topology, geometry, torch.float64)
    pairs = [(dy, x) for _, _, _, x, dy, _, _ in passes]
    for kept in (topology, topology.keep(torch.arange(topology.nnz) % 2 == 0), Topology.from_mask(torch.ones(geometry.shape))):
        for count in {0, 1, (topology.size - kept.nnz) // 2, topology.size - kept.nnz, topology.size + 3}:
            found = verbs.top_gradients(pairs, kept, count)
            assert found.dtype == torch.int64
            assert found.tolist() == largest_by_hand(dense, kept, count)


def test_ties_go_to_the_lowest_position_and_nan_comes_last(family):
    kept = Topology.from_mask(drawn("x.. .x."))
    verbs = ops.verbs_for(kept, Matrix(2, 3), torch.float64)

    def found(count, *pairs):
        return verbs.top_gradients(
            [(torch.tensor([dy], dtype=torch.float64), torch.tensor([x], dtype=torch.float64)) for dy, x in pairs], kept, count
        )

    level = ([1.0, -1.0], [2.0, 2.0, -2.0])
    assert found(2, level).tolist() == [1, 2]
    assert found(3, level).tolist() == [1, 2, 3]
    assert found(2, ([1.0, 1.0], [3.0, NAN, 2.0])).tolist() == [2, 3]
    assert found(3, ([1.0, 1.0], [3.0, NAN, 2.0])).tolist() == [2, 3, 5]
    assert found(4, ([1.0, 1.0], [3.0, NAN, 2.0])).tolist() == [1, 2, 3, 5]
    assert found(1, ([1.0, 0.0], [0.0, 3.0, 1.0]), ([1.0, 0.0], [0.0, -3.0, 0.5])).tolist() == [2], "samples sum before they are ranked"
    assert found(2, ([0.0, 0.0], [0.0, 0.0, 0.0])).tolist() == [1, 2]


def test_float32_and_results_from_run_to_run(family):
    topology = Topology.from_mask(torch.rand(64, 96) < 0.2)
    verbs = ops.verbs_for(topology, Matrix(64, 96), torch.float32)
    values, x, dy = torch.randn(topology.nnz), torch.randn(32, 96), torch.randn(32, 64)
    y = verbs.spmm(values, x)
    torch.testing.assert_close(y, x @ topology.scatter(values).T, rtol=1e-4, atol=1e-4)
    assert torch.equal(y, verbs.spmm(values, x))
    once, again = (verbs.backward(values, x, dy, (True, True, True)) for _ in range(2))
    assert all(torch.equal(first, second) for first, second in zip(once, again, strict=True))
    torch.testing.assert_close(once[0], (dy.T @ x).flatten()[topology.keys], rtol=1e-4, atol=1e-4)


def strided(tensor):
    """The same numbers, each two places from the next in memory and the first dimension innermost."""
    room = torch.full((*tensor.shape[::-1], 2), NAN, dtype=tensor.dtype)
    view = room[..., 0].permute(*reversed(range(tensor.ndim)))
    view.copy_(tensor)
    return view


@geometries
def test_tensors_may_lie_in_memory_as_they_like(family, geometry, shape):
    """For whichever of the gradients is asked for: a kernel is given addresses."""
    topology, values, bias, x, dy, y, (dweight, dx, dbias) = example(geometry, shape, 0.5)
    verbs = ops.verbs_for(topology, geometry, torch.float64)
    expected = dweight.flatten()[topology.keys], dx, dbias
    torch.testing.assert_close(verbs.spmm(strided(values), strided(x), strided(bias)), y)
    for need in product((False, True), repeat=3):
        for part, wanted in zip(verbs.backward(strided(values), strided(x), strided(dy), need), expected, strict=True):
            if part is not None:
                torch.testing.assert_close(part, wanted)
    torch.testing.assert_close(verbs.gradient_rows(strided(dy), strided(x), 0, geometry.shape[0]), dweight.flatten(1))
    dense, samples = dweight.flatten(1), [(strided(dy), strided(x))]
    assert verbs.top_gradients(samples, topology, 2).tolist() == largest_by_hand(dense, topology, 2)


@geometries
@pytest.mark.parametrize("density", [0.5, 1.0])
def test_gradients_of_values_are_as_wide_as_values(family, geometry, shape, density):
    """Beside bfloat16 samples: float32, from each verb that gives them."""
    topology, values, _, x, dy, _, _ = example(geometry, shape, density)
    verbs = ops.verbs_for(topology, geometry, torch.bfloat16)
    x, dy = x.bfloat16(), dy.bfloat16()
    dvalues, dx, dbias = verbs.backward(values.float(), x, dy, (True, True, True))
    assert (dvalues.dtype, dx.dtype, dbias.dtype) == (torch.float32, torch.bfloat16, torch.float32)
    assert verbs.sddmm(dy, x).dtype == torch.float32
    assert verbs.gradient_rows(dy, x, 0, geometry.shape[0]).dtype == torch.float32
    assert verbs.spmm_t(values.float(), dy, x.shape).dtype == verbs.spmm(values.float(), x).dtype == torch.bfloat16
