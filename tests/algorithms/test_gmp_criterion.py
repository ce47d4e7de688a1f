"""GMP by other criteria than magnitude: hand-drawn tables of |g w|, the criteria of prune(), and what it refuses."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import drawing
from oracles.networks import moves_of, signals_of

from truesparse.algorithms import GMP
from truesparse.pruning import CRITERIA, Evidence

WEIGHT = np.array([[0.9, -0.1, 0.4, -0.03], [0.5, 0.8, -0.2, 0.6]])
GRADIENT = np.array([[0.1, 9.0, -1.0, 4.0], [2.0, 0.0, 3.0, -0.5]])
# |g w|: .09 .9 .4 .12 | 1.0 0 .6 .3
OTHER = {"mask": np.ones((1, 2), bool), "weight": np.array([[0.01, 2.0]]), "gradient": np.array([[50.0, 0.1]])}  # |g w|: .5 .2


def layers(generator=None):
    network = [{"mask": np.ones(WEIGHT.shape, bool), "weight": WEIGHT, "gradient": GRADIENT}, OTHER]
    seen = signals_of(network, last=True, generator=generator)

    def gradients_of(one, array):
        return dataclasses.replace(one, read_gradients=lambda: torch.as_tensor(array).flatten()[one.topology.keys])

    return {name: gradients_of(one, layer["gradient"]) for (name, one), layer in zip(seen.items(), network, strict=True)}


def drawn(algorithm, generator=None):
    seen = layers(generator)
    return [drawing(move.new) for move in moves_of(algorithm.update_network(seen, {})[0], seen)]


def test_taylor_keeps_what_the_loss_would_miss_most():
    # Of ten connections four: 1.0, .9, .6 and .5.
    assert drawn(GMP(0.6, criterion="taylor")) == [[".x..", "x.x."], ["x."]]
    # Each layer by itself: three of eight and one of two.
    assert drawn(GMP(0.6, "layers", criterion="taylor")) == [[".x..", "x.x."], ["x."]]
    # By magnitude: .9, .8, .6 and 2.0.
    assert drawn(GMP(0.6)) == [["x...", ".x.x"], [".x"]]


def test_random_is_drawn_from_the_generator():
    draws = [drawn(GMP(0.6, criterion="random"), torch.Generator().manual_seed(seed)) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] or draws[0] != draws[3]
    assert sum(row.count("x") for layer in draws[0] for row in layer) == 4


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
def test_ranks_as_the_criterion_of_prune(name):
    if name not in CRITERIA:
        pytest.skip(f"there is no criterion {name} yet")
    criterion = CRITERIA[name]()
    weight, gradient = torch.as_tensor(WEIGHT), torch.as_tensor(GRADIENT)
    scores = criterion.scores(Evidence("", weight, statistics=dict.fromkeys(getattr(criterion, "needs", ()), gradient)))
    kept = scores.flatten().argsort(descending=True)[:3].sort().values
    mask = torch.zeros(8, dtype=torch.bool).index_fill(0, kept, True).view(2, 4)
    assert drawn(GMP(0.6, "layers", criterion=name))[0] == ["".join(".x"[int(one)] for one in row) for row in mask]


def test_what_needs_data_is_refused_by_name():
    with pytest.raises(ValueError, match=r"criterion is one of 'magnitude', 'taylor', 'random', .* got 'wanda': .* pruning.rounds\(\)"):
        GMP(criterion="wanda")
