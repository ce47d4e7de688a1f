"""torch.compile: graphs end before a sparse layer and go on after it; training is that of the network as it is."""

import copy

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


def test_a_compiled_network_trains_as_it_would_otherwise():
    model = ts.sparsify(Network(), 0.7, generator=torch.Generator().manual_seed(1))
    twin = copy.deepcopy(model)
    assert trained(twin, torch.compile(twin, backend="aot_eager")) == pytest.approx(trained(model, model), rel=1e-5)
    for one, other in zip(topology_layers(model).values(), topology_layers(twin).values(), strict=True):
        assert torch.equal(one.topology.keys, other.topology.keys)


def test_a_layer_by_itself():
    layer, x = ts.SparseLinear(12, 7, sparsity=0.5), torch.randn(3, 12)
    assert torch.equal(torch.compile(layer, backend="aot_eager")(x), layer(x))


def test_one_graph_is_refused():
    layer = ts.SparseLinear(12, 7, sparsity=0.5)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(layer, backend="eager", fullgraph=True)(torch.randn(3, 12))
