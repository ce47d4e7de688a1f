"""What records or transforms programs cannot follow the kernels: each is refused in a line that says what to do, and that way works."""

import copy
import re

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import truesparse as ts

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the exporters themselves

NETWORKS = {
    "linear": (lambda: ts.SparseLinear(6, 4, sparsity=0.5), (3, 6)),
    "convolution": (lambda: ts.SparseConv2d(2, 4, 3, sparsity=0.5, padding=1, padding_mode="reflect"), (2, 2, 5, 5)),
    "inside": (lambda: ts.sparsify(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), 0.5), (3, 6)),
}
networks = pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)


def faked(network, x):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return network(mode.from_tensor(x))


def faked_around(network, x):
    with FakeTensorMode(allow_non_fake_inputs=True):
        return network(x)


def gradient(network, x):
    parameters = dict(network.named_parameters())
    return torch.func.grad(lambda p: torch.func.functional_call(network, p, (x,)).sum())(parameters)


DENSIFY = r"ts\.densify\(copy\.deepcopy\(model\)\)"
EXPORTS = rf"{DENSIFY}.*ts\.export_onnx.*ts\.pack"
TRANSFORMS = {
    "jit.trace": (lambda network, x: torch.jit.trace(network, x), rf"torch\.jit\.trace cannot follow: .*{EXPORTS}"),
    "jit.script": (lambda network, x: torch.jit.script(network), rf"torch\.jit\.script cannot follow: .*{EXPORTS}"),
    "make_fx": (lambda network, x: make_fx(lambda t: network(t))(x), rf"make_fx cannot follow: .*{EXPORTS}"),
    "make_fx symbolic": (
        lambda network, x: make_fx(lambda t: network(t), tracing_mode="symbolic")(x),
        rf"make_fx cannot follow: .*{EXPORTS}",
    ),
    "export": (lambda network, x: torch.export.export(network, (x,)), rf"torch\.export cannot follow: .*{EXPORTS}"),
    "fake tensors": (faked, rf"torch\.export cannot follow: .*{EXPORTS}"),
    "fake outputs": (faked_around, rf"torch\.export cannot follow: .*{EXPORTS}"),
    "symbolic_trace": (lambda network, x: symbolic(network), rf"torch\.fx\.symbolic_trace cannot follow: .*is_leaf_module.*{DENSIFY}"),
    "func.grad": (gradient, rf"torch\.func \(grad, vmap, jacrev and others\) cannot follow: transform {DENSIFY}"),
    "func.vmap": (lambda network, x: torch.func.vmap(network)(x), r"torch\.func .* cannot follow"),
    "func.jacrev": (lambda network, x: torch.func.jacrev(network)(x), r"torch\.func .* cannot follow"),
    "func.jvp": (lambda network, x: torch.func.jvp(network, (x,), (x,)), r"torch\.func .* cannot follow"),
}


def symbolic(network):
    return torch.fx.symbolic_trace(nn.Sequential(network))


@networks
@pytest.mark.parametrize(("transform", "says"), TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_is_refused_by_name_and_with_a_way_out(make, shape, transform, says):
    network, x = make().eval(), torch.randn(shape)
    expected = network(x)
    with pytest.raises(TypeError, match=r"truesparse: Sparse(Linear|Conv2d) runs kernels of its own, which " + says):
        transform(network, x)
    assert torch.equal(network(x), expected), "and it runs as before"


def test_strict_export_names_the_way_out():
    torch.compiler.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported) as caught:
        torch.export.export(ts.SparseLinear(6, 4, sparsity=0.5), (torch.randn(3, 6),), strict=True)
    assert re.search(r"truesparse: .*ts\.densify\(", str(caught.value))
    torch.compiler.reset()


@networks
def test_the_way_out_works(make, shape):
    network, x = make().eval(), torch.randn(shape)
    dense = ts.densify(copy.deepcopy(network))
    other = torch.randn(shape)
    expected = network(other).detach()
    for program in (torch.jit.trace(dense, x), make_fx(dense)(x), torch.fx.symbolic_trace(nn.Sequential(dense))):
        torch.testing.assert_close(program(other).detach(), expected)
    torch.testing.assert_close(torch.func.vmap(dense)(x), network(x))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of the check of the input's shape
def test_masked_twins_are_dense_programs_and_can_be_traced():
    network, x = ts.MaskedLinear(6, 4, sparsity=0.5).eval(), torch.randn(3, 6)
    other = torch.randn(3, 6)
    for program in (torch.jit.trace(network, x), make_fx(network)(x), torch.export.export(network, (x,)).module()):
        torch.testing.assert_close(program(other).detach(), network(other).detach())
    torch.testing.assert_close(torch.func.vmap(network)(x), network(x))


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
def test_sparse_inputs_are_refused(layout):
    layer, x = ts.SparseLinear(6, 4, sparsity=0.5), torch.randn(3, 6)
    with pytest.raises(TypeError, match=rf"SparseLinear takes dense inputs, got one of layout {layout}: convert it with \.to_dense\(\)"):
        layer(x.to_sparse(layout=layout))


def test_inputs_that_are_tensors_of_another_class_run():
    class Image(torch.Tensor):
        pass

    layer, x = ts.SparseLinear(6, 4, sparsity=0.5), torch.randn(3, 6)
    for kind in (x.as_subclass(Image), nn.Parameter(x)):
        assert torch.equal(torch.Tensor(layer(kind)), layer(x))


def operations(network, x, backward=False):
    """(of the forward pass, of both passes) as torch's counter sees them."""
    with FlopCounterMode(display=False) as counter:
        y = network(x)
        forward = counter.get_total_flops()
        if backward:
            y.sum().backward()
    return forward, counter.get_total_flops()


@pytest.mark.parametrize("sparsity", [0.7, 0.0])
def test_products_are_counted_forward_and_backward(sparsity):
    layer = ts.SparseLinear(16, 12, sparsity=sparsity)
    product = 2 * layer.topology.nnz * 5 * 3
    assert operations(layer, torch.randn(5, 3, 16)) == (product, product)
    assert operations(layer, torch.randn(5, 3, 16), backward=True) == (product, 2 * product)
    assert operations(layer, torch.randn(5, 3, 16, requires_grad=True), backward=True) == (product, 3 * product)
    layer.values.requires_grad_(False)
    assert operations(layer, torch.randn(5, 3, 16, requires_grad=True), backward=True) == (product, 2 * product)


@pytest.mark.parametrize("family", ["native", "reference"])
def test_each_position_of_a_convolution_is_counted(family):
    layer = ts.SparseConv2d(4, 6, 3, stride=2, padding=1, groups=2, sparsity=0.5)
    product = 2 * layer.topology.nnz * 3 * 4 * 5
    with ts.ops.use(family):
        assert operations(layer, torch.randn(3, 4, 7, 9, requires_grad=True), backward=True) == (product, 3 * product)


def test_second_derivatives_are_counted():
    layer, x = ts.SparseLinear(16, 12, sparsity=0.7), torch.randn(5, 16, requires_grad=True)
    layer.values.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        first = torch.autograd.grad(layer.forward(x).pow(2).sum(), x, create_graph=True)[0]
        before = counter.get_total_flops()
        first.pow(2).sum().backward()
    product = 2 * layer.topology.nnz * 5
    assert before == 2 * product
    assert counter.get_total_flops() >= 4 * product


def test_a_network_counts_as_the_dense_one_does_times_its_density():
    dense = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    sparse = ts.sparsify(copy.deepcopy(dense), 0.9)
    x = torch.randn(4, 64)
    assert operations(sparse, x)[0] == operations(dense, x)[0] * ts.summary(sparse).connections // ts.summary(sparse).size
