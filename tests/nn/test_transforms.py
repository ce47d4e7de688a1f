"""What records or transforms programs sees the verbs as operators, and what cannot is refused in a line that says what to do."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import truesparse as ts

# Of the exporters themselves.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]

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


DENSIFY = r"ts\.densify\(copy\.deepcopy\(model\)\)"
EXPORTS = rf"{DENSIFY}.*ts\.export_onnx.*ts\.pack"
REFUSED = {
    "jit.trace": (lambda network, x: torch.jit.trace(network, x), rf"torch\.jit\.trace cannot follow: .*{EXPORTS}"),
    "jit.script": (lambda network, x: torch.jit.script(network), rf"torch\.jit\.script cannot follow: .*{EXPORTS}"),
    "symbolic_trace": (lambda network, x: symbolic(network), rf"torch\.fx\.symbolic_trace cannot follow: .*is_leaf_module.*{DENSIFY}"),
}


def symbolic(network):
    return torch.fx.symbolic_trace(nn.Sequential(network))


@networks
@pytest.mark.parametrize(("transform", "says"), REFUSED.values(), ids=REFUSED)
def test_a_transform_is_refused_by_name_and_with_a_way_out(make, shape, transform, says):
    network, x = make().eval(), torch.randn(shape)
    expected = network(x)
    with pytest.raises(TypeError, match=r"truesparse: Sparse(Linear|Conv2d) runs kernels of its own, which " + says):
        transform(network, x)
    assert torch.equal(network(x), expected), "and it runs as before"


def dense_function(network):
    """The same function of parameters and input in dense maths, and the parameters; made outside of what transforms it."""
    parameters = dict(network.named_parameters())
    places = {name: (layer, layer.topology.keys) for name, layer in ts.nn.topology_layers(network).items()}
    twin = ts.densify(copy.deepcopy(network))

    def run(parameters, x):
        parameters = dict(parameters)
        for name, (layer, keys) in places.items():
            prefix = f"{name}." if name else ""
            values = parameters.pop(prefix + "values")
            weight = values.new_zeros(layer.topology.size).index_put((keys,), values)
            parameters[prefix + "weight"] = weight.view(layer.geometry.weight_shape)
        return torch.func.functional_call(twin, parameters, (x,))

    return run, parameters


@pytest.mark.parametrize(("which", "strict"), [("linear", False), ("convolution", False), ("inside", True)])
def test_an_exported_network_computes_the_same_for_any_batch(which, strict):
    make, shape = NETWORKS[which]
    network, x, other = make().eval(), torch.randn(shape), torch.randn(7, *shape[1:])
    program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=strict)
    assert torch.equal(program.module()(other), network(other))
    assert torch.equal(program.run_decompositions().module()(other), network(other))


def test_an_exported_program_runs_in_another_process(tmp_path):
    network, x = ts.sparsify(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(36, 5)), 0.5).eval(), torch.randn(3, 2, 5, 5)
    torch.export.save(torch.export.export(network, (x,)), tmp_path / "program.pt2")
    torch.save((x, network(x)), tmp_path / "expected.pt")
    code = "import torch, truesparse; x, y = torch.load('expected.pt'); assert torch.equal(torch.export.load('program.pt2').module()(x), y)"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@networks
def test_an_exported_network_can_be_trained(make, shape):
    network, x = make(), torch.randn(shape)
    program, twin = torch.export.export(copy.deepcopy(network), (x,)).module(), network
    for one in (program, twin):
        one(x).sin().sum().backward()
    gradients = {name: one.grad for name, one in program.named_parameters()}
    for name, one in twin.named_parameters():
        torch.testing.assert_close(gradients[name], one.grad)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@networks
def test_make_fx_records_operators(make, shape, mode):
    network, x, other = make().eval(), torch.randn(shape), torch.randn(shape)
    recorded = make_fx(lambda t: network(t), tracing_mode=mode, _allow_non_fake_inputs=True)(x)
    assert "truesparse.spmm" in recorded.code
    assert torch.equal(recorded(other), network(other))


@networks
@pytest.mark.parametrize("run", [faked, faked_around])
def test_shapes_without_numbers(make, shape, run):
    network, x = make(), torch.randn(shape)
    found, expected = run(network, x), network(x)
    assert isinstance(found, FakeTensor)
    assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())


@networks
def test_functions_of_functions_are_those_of_the_dense_network(make, shape):
    network, x = make().double(), torch.randn(shape, dtype=torch.float64)
    dense, parameters = dense_function(network)

    def sparse(parameters, x):
        return torch.func.functional_call(network, parameters, (x,))

    def loss(run):
        return lambda parameters, x: run(parameters, x).sin().sum()

    func = torch.func
    for of in (
        lambda run: func.grad(loss(run), (0, 1))(parameters, x),
        lambda run: make_fx(func.grad(loss(run)))(parameters, x)(parameters, x + 1),
        lambda run: func.vmap(func.grad(loss(run)), (None, 0))(parameters, x),
        lambda run: func.jacrev(run, 1)(parameters, x),
        lambda run: func.jacfwd(run, 1)(parameters, x),
        lambda run: func.hessian(loss(run))(parameters, x[:1]),
        lambda run: func.vmap(run, (0, None))({name: torch.stack([one, one.cos()]) for name, one in parameters.items()}, x),
    ):
        torch.testing.assert_close(of(sparse), of(dense))


def test_an_ensemble_of_layers_with_other_connections():
    layers, x = [ts.SparseLinear(6, 4, sparsity=0.5) for _ in range(3)], torch.randn(3, 5, 6)
    parameters, buffers = torch.func.stack_module_state(layers)
    found = torch.func.vmap(lambda p, b, t: torch.func.functional_call(layers[0], (p, b), (t,)))(parameters, buffers, x)
    torch.testing.assert_close(found, torch.stack([layer(t) for layer, t in zip(layers, x, strict=True)]))


@pytest.mark.parametrize(
    "run",
    [lambda layer, x: torch.export.export(layer, (x,)), lambda layer, x: torch.func.vmap(layer)(x), lambda layer, x: make_fx(layer)(x)],
    ids=["export", "vmap", "make_fx"],
)
def test_an_average_of_topologies_is_refused_by_all(run):
    averaged = torch.optim.swa_utils.AveragedModel(ts.SparseLinear(6, 4, sparsity=0.5), use_buffers=True)
    for _ in range(2):
        averaged.update_parameters(ts.SparseLinear(6, 4, sparsity=0.5))
    with pytest.raises(RuntimeError, match="something wrote another topology, or none, into the buffers of a SparseLinear"):
        run(averaged.module, torch.randn(3, 6))


def test_gradients_that_go_to_no_parameter_are_heard_by_nobody():
    layer, x, parts = ts.SparseLinear(6, 4, sparsity=0.5), torch.randn(3, 6), []
    layer.register_gradient_hook(parts.append)
    torch.func.grad(lambda p: torch.func.functional_call(layer, p, (x,)).sum())(dict(layer.named_parameters()))
    torch.compile(torch.func.grad(lambda t: layer(t).sum()), backend="aot_eager")(x)
    assert not parts
    with FlopCounterMode(display=False):
        layer(x).sum().backward()
    (part,) = parts
    assert part.of is layer.values
    torch.testing.assert_close(part.present, layer.values.grad)


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
