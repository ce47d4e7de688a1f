"""The verbs as operators of torch: what operators promise, and derivatives of every kind, against dense maths in float64."""

import gc
import weakref

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

from truesparse import Topology, ops
from truesparse.ops import operators
from truesparse.ops.known import geometry_in, topology_in
from truesparse.topology.geometry import Convolution, Matrix

GEOMETRIES = {
    "matrix": (Matrix(4, 6), (3, 6)),
    "convolution": (Convolution(4, 6, (2, 3), stride=(2, 1), padding=(1, 0), groups=2), (2, 4, 3, 4)),
}
geometries = pytest.mark.parametrize(("geometry", "shape"), GEOMETRIES.values(), ids=GEOMETRIES)


class Case:
    """A product by operators, and the dense one: the same function of values, x and bias."""

    def __init__(self, geometry, shape, dtype=torch.float64, mask=None, bias=True):
        self.geometry = geometry
        self.topology = Topology.from_mask(torch.rand(geometry.shape) < 0.5 if mask is None else mask)
        self.keys = self.topology.keys
        self.where = self.topology.indptr, self.topology.indices, repr(geometry), 0
        wide = ops.values_dtype(dtype)
        self.values = torch.randn(self.topology.nnz, dtype=wide)
        self.x = torch.randn(shape).to(dtype)
        self.bias = torch.randn(geometry.shape[0], dtype=wide) if bias else None
        self.y = torch.randn(geometry.output_shape(shape)).to(dtype)

    def sparse(self, values, x, bias):
        return operators.spmm(values, x, bias, *self.where)

    def dense(self, values, x, bias):
        rows, columns = self.geometry.shape
        weight = values.new_zeros(rows * columns).index_put((self.keys,), values)
        return self.geometry.dense(x, weight.view(self.geometry.weight_shape), bias)

    @property
    def inputs(self):
        return self.values, self.x, self.bias


def masks(geometry):
    empty = torch.zeros(geometry.shape, dtype=torch.bool)
    rows = torch.rand(geometry.shape) < 0.5
    rows[1] = False
    return {"some": rows, "none": empty, "one": empty.clone().index_put((torch.tensor(1), torch.tensor(2)), torch.tensor(True)), "all": ~empty}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("which", ["some", "none", "one", "all"])
@geometries
def test_operators_keep_what_operators_promise(geometry, shape, which, dtype):
    case = Case(geometry, shape, dtype, masks(geometry)[which])
    values, x, bias = (one.requires_grad_() for one in case.inputs)
    dy = case.y.requires_grad_()
    calls = [(operators.spmm, (values, x, bias)), (operators.spmm, (values, x.detach(), None)), (operators.spmm_t, (values, dy, shape))]
    calls += [(operators.sddmm, (dy, x)), (operators.gradients, (values, x, dy, (True, True, True)))]
    calls += [(operators.gradients, (values, x, dy, (False, True, False)))]
    for operator, inputs in calls:
        torch.library.opcheck(operator, (*inputs, *case.where))
