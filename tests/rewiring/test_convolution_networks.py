"""Networks of every kind of convolution train truly sparse as their masked twins do: same topologies, same losses."""

import copy

import pytest
import torch
from oracles.convolutions import NETWORKS

import truesparse as ts
from truesparse.nn import topology_layers

ALGORITHMS = {"SET": ts.SET, "RigL": ts.RigL, "GMP": lambda: ts.GMP(0.8, across="layers")}


def trained(name, algorithm, masked, steps=7):
    """(losses, topologies at the end, how often it rewired)."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = ts.sparsify(
        make().double(), getattr(algorithm, "start_sparsity", 0.7), masked=masked, generator=torch.Generator().manual_seed(3)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewirer = ts.Rewirer(model, optimizer, algorithm, 2, steps, torch.Generator().manual_seed(4))
    losses, draw = [], torch.Generator().manual_seed(5)
    for _ in range(steps):
        x = torch.randn(4, *shape, generator=draw, dtype=torch.float64)
        loss = (model(x) - 0.3).pow(2).mean()
        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses), {key: layer.topology for key, layer in topology_layers(model).items()}, rewirer.rewirings


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_as_the_masked_twin(name, algorithm):
    losses, topologies, rewirings = trained(name, ALGORITHMS[algorithm](), False)
    masked_losses, masked_topologies, _ = trained(name, ALGORITHMS[algorithm](), True)
    assert rewirings >= 2
    assert len(topologies) == len(
        [one for one in NETWORKS[name][0]().modules() if getattr(one, "weight", None) is not None and one.weight.ndim > 1]
    )
    for key, topology in topologies.items():
        assert torch.equal(topology.keys, masked_topologies[key].keys), key
    torch.testing.assert_close(losses, masked_losses, rtol=1e-8, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpoint_goes_on_as_if_nothing_had_been(name):
    make, shape = NETWORKS[name]
    model = ts.sparsify(make(), 0.7, generator=torch.Generator().manual_seed(3)).eval()
    other = ts.sparsify(make(), 0.5, generator=torch.Generator().manual_seed(4)).eval()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    x = torch.randn(2, *shape)
    assert torch.equal(other(x), model(x))
