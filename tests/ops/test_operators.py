"""The verbs as operators of torch: what operators promise, and derivatives of every kind, against dense maths in float64."""

import gc
import weakref

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from truesparse import Topology, ops
from truesparse.ops import operators
from truesparse.ops.known import geometry_in, topology_in
from truesparse.topology.geometry import Convolution, Matrix

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own forward mode

GEOMETRIES = {
    "matrix": (Matrix(4, 6), (3, 6)),
    "convolution": (Convolution(4, 6, (2, 3), stride=(2, 1), padding=(1, 0), groups=2), (2, 4, 3, 4)),
}
geometries = pytest.mark.parametrize(("geometry", "shape"), GEOMETRIES.values(), ids=GEOMETRIES)


class Case:
    """A product by operators and the dense one, of values, x and bias."""

    def __init__(self, geometry, shape, dtype=torch.float64, mask=None):
        self.geometry = geometry
        self.topology = Topology.from_mask(torch.rand(geometry.shape) < 0.5 if mask is None else mask)
        self.keys = self.topology.keys
        self.where = self.topology.indptr, self.topology.indices, repr(geometry), 0
        wide = ops.values_dtype(dtype)
        self.values = torch.randn(self.topology.nnz, dtype=wide)
        self.x = torch.randn(shape).to(dtype)
        self.bias = torch.randn(geometry.shape[0], dtype=wide)
        self.dy = torch.randn(geometry.output_shape(shape)).to(dtype)

    @property
    def inputs(self):
        return self.values, self.x, self.bias

    def weight(self, values):
        return values.new_zeros(self.topology.size).index_put((self.keys,), values).view(self.geometry.weight_shape)

    def sparse(self, values, x, bias):
        return operators.spmm(values, x, bias, *self.where)

    def dense(self, values, x, bias):
        return self.geometry.dense(x, self.weight(values), bias)

    def sparse_gradients(self, values, x, dy):
        return operators.gradients(values, x, dy, (True, True, True), *self.where)

    def dense_gradients(self, values, x, dy):
        return torch.func.vjp(self.dense, values, x, self.bias)[1](dy)

    def sparse_transposed(self, values, dy):
        return operators.spmm_t(values, dy, self.x.shape, *self.where), operators.sddmm(dy, self.x, *self.where)

    def dense_transposed(self, values, dy):
        return self.dense_gradients(values, self.x, dy)[1::-1]


def masks(geometry):
    empty = torch.zeros(geometry.shape, dtype=torch.bool)
    some, one = torch.rand(geometry.shape) < 0.5, empty.clone()
    some[1], one[1, 2] = False, True
    return {"an empty row": some, "none": empty, "one": one, "all": ~empty}


ALL = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
CASES = [("an empty row", torch.float64), ("one", torch.float64), ("all", torch.bfloat16), ("none", torch.float32)]
CASES += [("an empty row", torch.bfloat16)]


@pytest.mark.parametrize(("which", "dtype"), CASES)
@geometries
def test_operators_keep_what_operators_promise(geometry, shape, which, dtype):
    case = Case(geometry, shape, dtype, masks(geometry)[which])
    values, x, bias, dy = (one.requires_grad_() for one in (*case.inputs, case.dy))
    calls = [(operators.spmm, (values, x, bias)), (operators.spmm, (values, x.detach(), None)), (operators.spmm_t, (values, dy, shape))]
    calls += [(operators.sddmm, (dy, x)), (operators.gradients, (values, x, dy, (True, True, True)))]
    calls += [(operators.gradients, (values, x, dy, (False, True, False)))]
    for place, (operator, inputs) in enumerate(calls):
        slow = (which, dtype, place) == ("an empty row", torch.float64, 0 if geometry.sample_ndim == 1 else 4)
        torch.library.opcheck(operator, (*inputs, *case.where), test_utils=ALL if slow else ALL[:3])


def total(function):
    """A number that depends on all that `function` gives, and differently on each entry."""

    def of(*inputs):
        outputs = function(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return torch.stack([(one * torch.linspace(0.1, 0.3, one.numel()).view(one.shape)).sin().sum() for one in outputs]).sum()

    return of


EVERY = (0, 1, 2)
DERIVATIVES = {
    "grad": lambda f, inputs: grad(total(f), EVERY)(*inputs),
    "grad of grad": lambda f, inputs: grad(total(grad(total(f), EVERY)), EVERY)(*inputs),
    "jacrev": lambda f, inputs: jacrev(f, EVERY)(*inputs),
    "jacfwd": lambda f, inputs: jacfwd(f, EVERY)(*inputs),
    "jvp": lambda f, inputs: jvp(f, inputs, tuple(one.cos() for one in inputs)),
    "hessian": lambda f, inputs: hessian(total(f), EVERY)(*inputs),
    "jacrev of jacfwd": lambda f, inputs: jacrev(jacfwd(total(f), EVERY), EVERY)(*inputs),
}


@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
@geometries
def test_functions_of_functions_go_through(geometry, shape, derivative):
    case = Case(geometry, shape, mask=masks(geometry)["an empty row"])
    torch.testing.assert_close(derivative(case.sparse, case.inputs), derivative(case.dense, case.inputs))


@pytest.mark.parametrize("derivative", ["grad", "jvp", "hessian"])
@geometries
def test_each_operator_has_derivatives_of_its_own(geometry, shape, derivative):
    case = Case(geometry, shape)
    of, inputs = DERIVATIVES[derivative], (case.values, case.x, case.dy)
    torch.testing.assert_close(of(case.sparse_gradients, inputs), of(case.dense_gradients, inputs))

    def two(product):  # of values and dy
        return lambda values, dy, _: product(values, dy)

    inputs = (case.values, case.dy, case.bias)
    torch.testing.assert_close(of(two(case.sparse_transposed), inputs), of(two(case.dense_transposed), inputs))


@geometries
@pytest.mark.parametrize("mapped", [(None, 0, None), (0, None, None), (0, 1, None), (None, None, 0), (1, 2, 0)])
def test_maps_over_samples_and_over_values(geometry, shape, mapped):
    case = Case(geometry, shape)
    stacked = [
        one if dim is None else torch.randn(5, *one.shape, dtype=one.dtype).movedim(0, dim)
        for one, dim in zip(case.inputs, mapped, strict=True)
    ]
    for derivative in (lambda f: f, lambda f: grad(total(f), EVERY), lambda f: jacrev(f, 1)):
        found, expected = (vmap(derivative(run), mapped)(*stacked) for run in (case.sparse, case.dense))
        torch.testing.assert_close(found, expected)


@geometries
def test_maps_of_the_other_operators(geometry, shape):
    case = Case(geometry, shape)
    values, x, dy = (torch.randn(3, *one.shape, dtype=one.dtype) for one in (case.values, case.x, case.dy))
    for dims, inputs in (((None, 0), (case.values, dy)), ((0, 0), (values, dy)), ((0, None), (values, case.dy))):
        found, expected = (vmap(run, dims)(*inputs) for run in (case.sparse_transposed, case.dense_transposed))
        torch.testing.assert_close(found, expected)
    for dims, inputs in (((None, 0, 0), (case.values, x, dy)), ((0, 0, None), (values, x, case.dy))):
        found, expected = (vmap(run, dims)(*inputs) for run in (case.sparse_gradients, case.dense_gradients))
        torch.testing.assert_close(found, expected)


def test_forward_mode_of_torch_autograd():
    case = Case(*GEOMETRIES["matrix"])
    with torch.autograd.forward_ad.dual_level():
        dual = [torch.autograd.forward_ad.make_dual(one, one.sin()) for one in case.inputs]
        found, expected = (torch.autograd.forward_ad.unpack_dual(run(*dual)).tangent for run in (case.sparse, case.dense))
    torch.testing.assert_close(found, expected)


@geometries
def test_values_and_bias_of_16_bits_have_such_gradients(geometry, shape):
    case = Case(geometry, shape, torch.bfloat16)
    wide = [one.clone().requires_grad_() for one in case.inputs]
    narrow = [one.detach().bfloat16().requires_grad_() for one in case.inputs]
    for one, other in zip(wide, narrow, strict=True):
        one.data.copy_(other.data)
    found, expected = (case.sparse(*inputs) for inputs in (narrow, wide))
    assert torch.equal(found, expected)
    for y in (found, expected):
        y.backward(case.dy)
    for one, other in zip(narrow, wide, strict=True):
        assert torch.equal(one.grad, other.grad.bfloat16())


def test_the_topology_of_two_tensors_is_kept_for_them_and_no_longer():
    first = Topology.from_mask(torch.rand(4, 6) < 0.5)
    indptr, indices = first.indptr.clone(), first.indices.clone()
    kept = topology_in((4, 6), indptr, indices)
    assert kept.equal(first)
    assert topology_in((4, 6), indptr, indices) is kept
    assert topology_in((4, 6), indptr.clone(), indices) is not kept
    gone = weakref.ref(topology_in((4, 6), indptr, indices).indices)
    indices.copy_(indices.flip(0))
    with pytest.raises(ValueError, match="columns must ascend"):
        topology_in((4, 6), indptr, indices)
    del kept, indices
    gc.collect()
    assert gone() is None


def test_writing_into_the_arrays_is_seen():
    case = Case(Matrix(2, 3), (4, 3), mask=torch.tensor([[True, False, False], [False, True, False]]))
    values, x, _ = case.inputs
    assert torch.equal(case.sparse(values, x, None), x[:, [0, 1]] * values)
    case.topology.indices.copy_(torch.tensor([2, 0]))
    assert torch.equal(case.sparse(values, x, None), x[:, [2, 0]] * values)


@geometries
def test_a_geometry_is_what_its_repr_says(geometry, shape):
    assert geometry_in(repr(geometry)) == geometry


@pytest.mark.parametrize("text", ["", "Matrix", "Tensor(rows=1)", "Matrix(rows=4)", "Matrix(rows=open('x'), columns=2)", "__builtins__()"])
def test_what_is_no_geometry_is_refused(text):
    with pytest.raises(ValueError, match=r"expected the repr of a geometry, such as 'Matrix\(rows=4, columns=6\)', got"):
        geometry_in(text)


@geometries
def test_operations_are_those_of_the_connections(geometry, shape):
    case = Case(geometry, shape, mask=masks(geometry)["an empty row"])
    product = 2 * case.topology.nnz * case.dy.numel() // geometry.shape[0]
    calls = {
        1: lambda: case.sparse(*case.inputs),
        2: lambda: case.sparse_transposed(case.values, case.dy),
        3: lambda: (case.sparse(*case.inputs), case.sparse_gradients(case.values, case.x, case.dy)),
    }
    for products, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == products * product
