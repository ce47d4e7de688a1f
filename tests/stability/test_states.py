"""A state that was taken, or given back, is nobody's memory: it stays what it was while training goes on."""

import copy

import pytest
import torch
from training import backward, two_layers

import truesparse as ts
from truesparse.metrics import Tracker
from truesparse.stability import Average, DecayGrace

MAKE = {"RigL": ts.RigL(0.5), "SET": ts.SET(0.5), "SNFS": ts.algorithms.SNFS(), "DSR": ts.algorithms.DSR(threshold=0.05)}


class Training:
    def __init__(self, algorithm):
        self.model = two_layers()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.05, weight_decay=0.1)
        rewirer = ts.Rewirer(self.model, optimizer, algorithm, every=2, until=50, generator=torch.Generator().manual_seed(3))
        self.parts = {
            "rewirer": rewirer,
            "grace": DecayGrace(rewirer, steps=3),
            "average": Average(self.model, rewirer, decay=0.7),
            "tracker": Tracker(self.model, rewirer),
        }

    def run(self, steps):
        rewirer = self.parts["rewirer"]
        for step in steps:
            backward(self.model, step)
            if rewirer.step():
                rewirer.optimizer.step()
            rewirer.optimizer.zero_grad()
            self.parts["average"].update()

    def states(self):
        return {name: part.state_dict() for name, part in self.parts.items()}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("algorithm", MAKE.values(), ids=MAKE)
def test_a_state_stays_what_it_was(algorithm):
    first, second = Training(algorithm), Training(algorithm)
    first.run(range(5))
    model, optimizer = copy.deepcopy((first.model.state_dict(), first.parts["rewirer"].optimizer.state_dict()))
    taken = first.states()
    kept = copy.deepcopy(taken)
    first.run(range(5, 12))
    for name, state in taken.items():
        assert same(state, kept[name]), f"{name}: a state that was taken changes while training goes on"
    second.model.load_state_dict(model)
    second.parts["rewirer"].optimizer.load_state_dict(optimizer)
    for name, part in second.parts.items():
        part.load_state_dict(taken[name])
        assert same(part.state_dict(), kept[name]), name
    second.run(range(5, 12))
    for name, state in taken.items():
        assert same(state, kept[name]), f"{name}: a state that was loaded changes while training goes on"
    ends = [training.states() for training in (first, second)]
    for end in ends:
        del end["tracker"]["seconds"]
    assert same(*ends)
