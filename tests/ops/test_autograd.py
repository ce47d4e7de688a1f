"""Gradients of gradients, for whichever of the inputs wants them: against dense layers by torch's own autograd."""

from itertools import chain, combinations

import pytest
import torch

from truesparse import Topology, ops
from truesparse.topology.geometry import Convolution, Matrix

GEOMETRIES = {
    "matrix": (Matrix(4, 6), (3, 6)),
    "convolution": (Convolution(4, 6, (2, 3), stride=(2, 1), padding=(1, 0), groups=2), (2, 4, 3, 4)),
}
NAMES = ("values", "x", "bias", "dy")
SOME = list(chain.from_iterable(combinations(NAMES, count) for count in range(1, 5)))


def derivatives(product, tensors, wanted, order):
    """The gradients of weighted sums of gradients, each order with respect to all that is `wanted`; zeros where nothing depends on it."""
    leaves = {name: tensor.detach().clone().requires_grad_(name in wanted) for name, tensor in tensors.items()}
    inputs = [leaves[name] for name in wanted]
    total = (product(leaves) * leaves["dy"]).sum()  # linear in y: what reaches the product is dy itself, which may want no gradient
    for _ in range(order):
        if not total.requires_grad:
            return [torch.zeros_like(leaf) for leaf in inputs]
        found = torch.autograd.grad(total, inputs, create_graph=True, allow_unused=True, materialize_grads=True)
        # Weights that differ from place to place: no sum of products can vanish by symmetry.
        total = torch.stack([(one * torch.linspace(0.1, 0.3, one.numel()).view(one.shape)).sin().sum() for one in found]).sum()
    return found


@pytest.mark.parametrize(("geometry", "shape"), GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("wanted", SOME, ids=", ".join)
def test_derivatives_of_any_order_for_those_who_ask(family, geometry, shape, wanted):
    topology = Topology.from_mask(torch.rand(geometry.shape) < 0.5)
    verbs = ops.verbs_for(topology, geometry, torch.float64)
    x, values, bias = (torch.randn(size, dtype=torch.float64) for size in (shape, topology.nnz, geometry.shape[0]))

    def dense(of):
        return geometry.dense(of["x"], topology.scatter(of["values"]).view(geometry.weight_shape), of["bias"])

    def sparse(of):
        return ops.product(of["values"], of["x"], of["bias"], verbs)

    tensors = {"values": values, "x": x, "bias": bias}
    tensors["dy"] = torch.randn_like(dense(tensors))
    for order in (1, 2, 3):
        for name, found, expected in zip(wanted, *(derivatives(run, tensors, wanted, order) for run in (sparse, dense)), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9, msg=lambda text, o=order, n=name: f"order {o}, {n}: {text}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("geometry", "shape"), [(Matrix(4, 6), (700, 6)), (Convolution(3, 4, (1, 2)), (60, 3, 4, 4))], ids=["matrix", "convolution"]
)
def test_a_gradient_that_can_be_derived_is_the_same_gradient(family, geometry, shape, dtype):
    """Sums over a batch are long: rounded to bfloat16 on the way, they would stop growing."""
    topology = Topology.from_mask(torch.rand(geometry.shape) < 0.5)
    verbs = ops.verbs_for(topology, geometry, dtype)
    wide = ops.values_dtype(dtype)
    values, bias = (torch.randn(size, dtype=wide).requires_grad_() for size in (topology.nnz, geometry.shape[0]))
    x = torch.rand(shape).to(dtype).requires_grad_()
    y = ops.product(values, x, bias, verbs)
    dy = torch.rand(y.shape).to(dtype)
    plain = torch.autograd.grad(y, (values, x, bias), dy, retain_graph=True)
    derivable = torch.autograd.grad(y, (values, x, bias), dy, create_graph=True)
    for one, other in zip(plain, derivable, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other.detach(), rtol=1e-5 if dtype != torch.float64 else 1e-12, atol=1e-5)
    exact = dy.double().movedim(1, 0).flatten(1).sum(1)
    torch.testing.assert_close(derivable[2].double(), exact, rtol=1e-5, atol=0)
