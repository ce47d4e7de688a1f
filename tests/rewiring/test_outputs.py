"""The layer whose rows are answers: the last with weights, and nobody where that one is dense."""

import pytest
import torch
from torch import nn

from truesparse import Rewirer, SRigL, sparsify
from truesparse.rewiring.outputs import output_layer


class Headed(nn.Module):
    """Parameters of its own come first, whatever their shape."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 3, 8))
        self.embedding = nn.Embedding(5, 8)
        self.body = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)
        self.dropout = nn.Dropout()


@pytest.mark.parametrize("masked", [False, True])
def test_the_output_is_the_last_layer_with_weights_if_it_is_sparse(masked):
    assert output_layer(sparsify(Headed(), 0.5, exclude=("position",), masked=masked)) == "head"
    assert output_layer(sparsify(Headed(), 0.5, exclude=("body", "position"), masked=masked)) == "head"
    assert output_layer(sparsify(Headed(), 0.5, exclude=("head", "position"), masked=masked)) is None
    assert output_layer(nn.Linear(3, 3)) is None
    assert output_layer(sparsify(nn.Linear(3, 3), 0.5, masked=masked)) == ""
    convolutional = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    assert output_layer(sparsify(convolutional, 0.5, masked=masked)) == "3"


def ablated(exclude):
    """Empty rows of each sparse layer after an update that finds half of its neurons useless."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8))
    sparsify(model, 0.75, pattern="fan-in", exclude=exclude)
    layers = [layer for layer in model if hasattr(layer, "topology")]
    rewirer = Rewirer(model, torch.optim.SGD(model.parameters(), 0.1), SRigL(fraction=0.5, gamma=1.0), every=2)
    with torch.no_grad():
        for layer in layers:
            layer.values[layer.topology.rows % 2 == 0] *= 1e-3
    for _ in range(2):
        model(torch.randn(8, 16)).square().sum().backward()
        rewirer.step()
        model.zero_grad()
    return [layer.topology.empty_rows for layer in layers]


def test_srigl_ablates_the_last_hidden_layer_where_the_output_layer_is_dense():
    first, second, output = ablated(())
    assert min(first, second) > 0
    assert output == 0
    assert min(ablated(("4",))) > 0
