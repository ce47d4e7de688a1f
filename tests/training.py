"""A small network to train, its steps, and an algorithm that only looks, for the tests of training."""

import torch
from torch import nn

from truesparse import sparsify
from truesparse.nn import topology_layers


def two_layers(masked=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    return sparsify(model, 0.6, masked=masked, generator=torch.Generator().manual_seed(1))


def topologies(model):
    return {name: layer.topology for name, layer in topology_layers(model).items()}


def backward(model, seed=0, batch=6):
    generator = torch.Generator().manual_seed(seed)
    loss = model(torch.randn(batch, 8, generator=generator, dtype=torch.float64)).pow(2).mean()
    loss.backward()
    return loss.detach()


class Spy:
    """An algorithm of one's own: notes what it sees and rewires nothing unless told."""

    def __init__(self, update=None, replaces_step=False):
        self.seen, self.does, self.replaces_step = [], update, replaces_step

    def update(self, topology, signals):
        self.seen.append(signals)
        return self.does(topology, signals) if self.does else topology
