"""torch.compile: sparse layers are operators of the graph; training is that of the network as it is."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.nn import topology_layers

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the compiler itself
    pytest.mark.filterwarnings("ignore:Reliance on distutils:UserWarning"),
    pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning"),
]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.hidden, self.out = nn.Linear(6 * 16, 24), nn.Linear(24, 5)

    def forward(self, x):
        return self.out(F.gelu(self.hidden(F.relu(self.norm(self.convolution(x))).flatten(1))))


def trained(model, network, steps=9, algorithm=None):
    """Losses of a training with rewirings, `network` being `model` or what it was compiled to."""
    generator = torch.Generator().manual_seed(2)
    x, labels = torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 5
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = ts.Rewirer(model, optimizer, algorithm or ts.RigL(), every=3, until=20, generator=generator)
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(network(x), labels)
        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Graphs:
    """A backend that counts what it is given."""

    def __init__(self, backend="aot_eager"):
        self.count, self.backend = 0, torch._dynamo.lookup_backend(backend)

    def __call__(self, module, example):
        self.count += 1
        return self.backend(module, example)


def sequential():
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(96, 24), nn.GELU(), nn.Linear(24, 5))


def reflecting():
    """Padding that happens before the kernel, a full layer, one without a bias."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, padding_mode="reflect", bias=False), nn.Flatten(), nn.Linear(216, 12), nn.Linear(12, 5)
    )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("make", [Network, sequential, reflecting])
def test_a_compiled_network_is_one_graph_and_trains_as_it_would_otherwise(make, backend):
    settings = {"sparsities": {"3": 0.0}} if make is reflecting else {}
    model = ts.sparsify(make(), 0.7, generator=torch.Generator().manual_seed(1), **settings)
    twin, graphs = copy.deepcopy(model), Graphs(backend)
    assert trained(twin, torch.compile(twin, backend=graphs, fullgraph=True)) == pytest.approx(trained(model, model), rel=1e-6)
    for one, other in zip(topology_layers(model).values(), topology_layers(twin).values(), strict=True):
        assert torch.equal(one.topology.keys, other.topology.keys)
        torch.testing.assert_close(one.values, other.values)
    assert graphs.count == 1, "a rewiring compiles nothing again"


def test_it_is_the_same_under_autocast():
    model = ts.sparsify(sequential(), 0.7)
    twin, x = copy.deepcopy(model), torch.randn(4, 1, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = model(x), torch.compile(twin, backend="aot_eager", fullgraph=True)(x)
    assert torch.equal(found, expected)
    expected.float().sum().backward()
    found.float().sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad)


def test_copies_compute_with_their_own_connections():
    layer, x = ts.SparseLinear(12, 7, sparsity=0.5), torch.randn(3, 12)
    for copied in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        ts.rewire(copied, None, copied.pattern.random((7, 12), 20, torch.Generator().manual_seed(3)))
        for one in (layer, copied):
            torch.compiler.reset()
            assert torch.equal(torch.compile(one, backend="aot_eager")(x), one(x))


CHANGING = [(sequential, ts.SET()), (Network, ts.GMP(0.9)), (sequential, ts.GraNet(0.9))]


@pytest.mark.parametrize(("make", "algorithm"), CHANGING, ids=[type(one).__name__ for _, one in CHANGING])
def test_numbers_of_connections_change_and_nothing_is_compiled_again(make, algorithm):
    model = ts.sparsify(make(), 0.5, generator=torch.Generator().manual_seed(1))
    twin, graphs = copy.deepcopy(model), Graphs()
    before = [layer.topology.nnz for layer in topology_layers(model).values()]
    found = trained(twin, torch.compile(twin, backend=graphs, fullgraph=True), algorithm=copy.deepcopy(algorithm), steps=15)
    assert found == pytest.approx(trained(model, model, algorithm=algorithm, steps=15), rel=1e-5)
    after = [layer.topology.nnz for layer in topology_layers(twin).values()]
    assert (before == after) == isinstance(algorithm, ts.SET)
    assert graphs.count == 1


def test_a_layer_that_is_called_twice_on_one_input_hears_of_both_gradients():
    """To a compiler the two products are equal calls, and one is enough."""
    layer, heard = ts.SparseLinear(8, 6, sparsity=0.5), []
    layer.register_gradient_hook(heard.append)
    twice = torch.compile(lambda x: layer(x) + layer(x), backend="aot_eager", fullgraph=True)
    twice(torch.randn(4, 8)).pow(2).sum().backward()
    assert len(heard) == 2
    torch.testing.assert_close(sum(part.present for part in heard), layer.values.grad)


def test_inductor_compiles_it():
    model = ts.sparsify(nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)), 0.5)
    twin, x = copy.deepcopy(model), torch.randn(5, 6)
    compiled = torch.compile(twin, fullgraph=True)
    for _ in range(2):
        expected, found = model(x), compiled(x)
        torch.testing.assert_close(found, expected)
        for y, network in ((expected, model), (found, twin)):
            y.pow(2).sum().backward()
            ts.rewire(network[0], None, network[0].pattern.random((8, 6), 11, torch.Generator().manual_seed(3)))
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rewiring_between_forward_and_backward_is_an_error(dtype):
    layer = ts.SparseLinear(12, 7, sparsity=0.5).to(dtype)
    y = torch.compile(layer, backend="aot_eager")(torch.randn(3, 12, dtype=dtype))
    ts.rewire(layer, None, layer.pattern.random((7, 12), layer.topology.nnz, torch.Generator().manual_seed(3)))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_it_is_an_error_too_where_the_values_were_computed():
    """Then nothing that torch has saved was written to: the layer knows which topologies it has left."""
    layer = ts.SparseLinear(12, 7, sparsity=0.5)
    layer.acting = torch.rand(layer.topology.nnz) < 0.5
    y = torch.compile(layer, backend="aot_eager")(torch.randn(3, 12))
    ts.rewire(layer, None, layer.pattern.random((7, 12), layer.topology.nnz, torch.Generator().manual_seed(3)))
    with pytest.raises(RuntimeError, match="a sparse layer changed between a forward pass and its backward pass"):
        y.sum().backward()


def test_second_derivatives_are_right_or_an_error():
    layer, x = ts.SparseLinear(12, 7, sparsity=0.5).double(), torch.randn(3, 12, dtype=torch.float64, requires_grad=True)

    def penalty(network):
        (gradient,) = torch.autograd.grad(network(x).sin().sum(), x, create_graph=True)
        gradient.pow(2).sum().backward()
        return layer.values.grad, layer.bias.grad

    expected = [one.clone() for one in penalty(layer)]
    layer.zero_grad()
    torch.testing.assert_close(list(penalty(torch.compile(layer, backend="eager"))), expected)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        penalty(torch.compile(layer, backend="aot_eager"))


def test_values_that_are_computed_are_said_to_be():
    """A compiled graph knows no tensor that stood in for the values, but that one did."""
    layer, parts = ts.SparseLinear(12, 7, sparsity=0.5), []
    layer.register_gradient_hook(parts.append)
    scale = torch.tensor(2.0, requires_grad=True)

    @torch.compile(backend="aot_eager", fullgraph=True)
    def scaled(x):
        return torch.func.functional_call(layer, {"values": layer.values * scale}, (x,))

    scaled(torch.randn(3, 12)).sum().backward()
    layer(torch.randn(3, 12)).sum().backward()
    assert [part.of is layer.values for part in parts] == [False, True]
    assert not parts[0].of.is_leaf
