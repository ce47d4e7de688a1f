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
    pytest.mark.filterwarnings(r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning"),
]


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.hidden, self.out = nn.Linear(6 * 16, 24), nn.Linear(24, 5)

    def forward(self, x):
        return self.out(F.gelu(self.hidden(F.relu(self.norm(self.convolution(x))).flatten(1))))


def trained(model, network, steps=9):
    """Losses of a training with rewirings, `network` being `model` or what it was compiled to."""
    generator = torch.Generator().manual_seed(2)
    x, labels = torch.randn(8, 1, 6, 6, generator=generator), torch.arange(8) % 5
    optimizer = torch.optim.Adam(model.parameters())
    rewirer = ts.Rewirer(model, optimizer, ts.RigL(), every=3, until=20, generator=generator)
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


@pytest.mark.parametrize("make", [lambda: ts.SparseLinear(12, 7, sparsity=0.5), lambda: ts.SparseConv2d(2, 4, 3, padding=1, groups=2)])
def test_the_operator_keeps_what_operators_promise(make):
    layer = make().double()
    x = torch.randn(*((3, 12) if isinstance(layer, ts.SparseLinear) else (2, 2, 5, 5)), dtype=torch.float64, requires_grad=True)
    for bias in (layer.bias, None):
        # No test of gradients of gradients: there are none in a graph.
        torch.library.opcheck(
            torch.ops.truesparse.product.default, (layer.values.detach().requires_grad_(), x, bias, layer._number), raise_exception=True
        )


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_second_derivatives_of_a_graph_are_an_error(backend):
    compiled = torch.compile(ts.SparseLinear(12, 7, sparsity=0.5), backend=backend)
    x = torch.randn(3, 12, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"no autograd formula was registered|does not currently support double backward"):  # noqa: PT012
        (gradient,) = torch.autograd.grad(compiled(x).pow(2).sum(), x, create_graph=True)
        gradient.pow(2).sum().backward()
