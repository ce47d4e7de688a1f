"""Layers that share one count while some are frozen, dense for a while, or cannot take what is due: the sum stays, no layer dies."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from oracles.networks import moves_of, signals_of
from torch import nn

from truesparse import Block, FanIn, Rewirer, Unstructured, sparsify
from truesparse.algorithms import DSR, SNFS
from truesparse.nn import topology_layers

SHAPES = [(4, 8), (8, 6), (2, 10)]
PATTERNS = [Unstructured(), FanIn(), Block(2)]
ALGORITHMS = [DSR(0.5, threshold=0.5), SNFS(0.9)]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
@settings(max_examples=25)
@given(
    st.sampled_from([Unstructured(), FanIn(), Block(2)]), st.lists(st.sets(st.sampled_from([0, 1, 2]), min_size=1), max_size=8), st.data()
)
def test_an_update_of_any_layers_keeps_the_sum_of_those_and_all_others_as_they_are(algorithm, pattern, trained, data):
    steps = [pattern.step(shape) for shape in SHAPES]
    units = [data.draw(st.integers(1, rows * columns // step)) for (rows, columns), step in zip(SHAPES, steps, strict=True)]
    held = [pattern.random(shape, count * step).mask().numpy() for shape, count, step in zip(SHAPES, units, steps, strict=True)]
    total, budgets, memory, owed_before = sum(int(mask.sum()) for mask in held), [int(mask.sum()) for mask in held], {}, 0
    draw = np.random.default_rng(0)
    for now in trained:
        network = [
            {"mask": held[one], "weight": draw.normal(size=SHAPES[one]) * held[one], "momentum": draw.normal(size=SHAPES[one])}
            for one in sorted(now)
        ]
        before = [int(mask.sum()) for mask in held]
        layers = signals_of(
            network, pattern=pattern, generator=torch.Generator().manual_seed(0), budgets=[budgets[one] for one in sorted(now)]
        )
        new, memory = algorithm.update_network(layers, memory)
        for one, move in zip(sorted(now), moves_of(new, layers), strict=True):
            pattern.check(move.new)
            held[one] = move.new.mask().numpy()
        after = [int(mask.sum()) for mask in held]
        assert sum(after) + memory["owed"] == total, "what is there and what is owed"
        assert sum(after) - sum(before) == owed_before - memory["owed"]
        assert 0 <= memory["owed"] < max(steps) or sum(after[one] for one in now) == sum(SHAPES[one][0] * SHAPES[one][1] for one in now)
        assert all(count >= step for count, step in zip(after, steps, strict=True)), "a layer has lost all"
        owed_before = memory["owed"]


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=str)
def test_layers_that_are_frozen_in_turn_keep_their_sum(algorithm):
    torch.manual_seed(0)
    model = sparsify(nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 5)), 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    rewirer = Rewirer(model, optimizer, algorithm, every=1, until=30)
    layers = list(topology_layers(model).values())
    counts = []
    for step in range(30):
        for number, layer in enumerate(layers):
            layer.requires_grad_(number != step // 5 % 3)
        model(torch.randn(8, 12)).square().sum().backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        counts.append([layer.topology.nnz for layer in layers])
    assert {sum(one) for one in counts} == {sum(counts[0])}
    assert counts[4] != counts[9] != counts[14], "connections move all the same"
