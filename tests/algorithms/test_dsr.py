"""DSR against a table drawn by hand, and a dense transcription of its paper."""

import numpy as np
import pytest
import torch
from oracles import drawing, drawn
from oracles.dsr import updated
from oracles.networks import masks_of, moves_of, random_network, signals_of, weights_of

from truesparse import NM, Block, FanIn, Move, Neurons
from truesparse.algorithms import DSR
from truesparse.algorithms import dsr as module


def layer(drawing, weights):
    """A layer from a drawing and its weights row by row."""
    mask = drawn(drawing).numpy()
    weight = np.zeros(mask.shape)
    weight[mask] = weights
    return {"mask": mask, "weight": weight}


# Three of ten are under 0.1; exactly 0.1 is not.
NETWORK = [layer("xx.. .xx. x..x", [0.9, -0.05, -0.5, 0.3, 0.02, 0.7]), layer("x.x. .xx.", [-0.8, 0.1, 0.01, 0.6])]
SURVIVE = [["x...", ".xx.", "...x"], ["x.x.", "..x."]]
# Three to grow, shared out as 4 to 3: 1.71 and 1.29, so 2 and 1.
COUNTS = [6, 4]


def hold_to_the_table(algorithm, **memory):
    layers = signals_of(NETWORK, generator=torch.Generator().manual_seed(0))
    new, remembered = algorithm.update_network(layers, memory)
    moves = moves_of(new, layers)
    assert [move.new.nnz for move in moves] == COUNTS
    kept = [move.new.keep(~move.grown) for move in moves]
    assert [drawing(topology) for topology in kept] == SURVIVE
    for weight, before, survived in zip(weights_of(moves, layers), NETWORK, SURVIVE, strict=True):
        assert np.array_equal(weight, before["weight"] * drawn(" ".join(survived)).numpy()), "what grows starts at zero"
    return remembered


def test_the_table():
    # One of ten should go, three went: more than 1.1.
    assert hold_to_the_table(DSR(0.1, threshold=0.1)) == {"threshold": 0.05, "owed": 0}
    assert hold_to_the_table(DSR(0.5, threshold=0.1)) == {"threshold": 0.2, "owed": 0}
    assert hold_to_the_table(DSR(0.3, threshold=0.1)) == {"threshold": 0.1, "owed": 0}
    # Between 2.7 and 3.3 all is well; the tolerance is of the count that should go.
    assert hold_to_the_table(DSR(0.33, threshold=0.1)) == {"threshold": 0.1, "owed": 0}
    assert hold_to_the_table(DSR(0.34, threshold=0.1)) == {"threshold": 0.2, "owed": 0}
    assert hold_to_the_table(DSR(0.34, 0.2, threshold=0.1)) == {"threshold": 0.1, "owed": 0}


def test_the_threshold_is_remembered():
    assert hold_to_the_table(DSR(0.1, threshold=9.0), threshold=0.1) == {"threshold": 0.05, "owed": 0}


def inclusive_threshold(monkeypatch):
    right = module._over
    monkeypatch.setattr(module, "_over", lambda threshold, layer: right(threshold * 1.0001, layer))


def each_layer_keeps_its_count(monkeypatch):
    monkeypatch.setattr(module, "shared_out", lambda total, weights, least, most, steps, spared: [6, 3])


def regrown_keep_their_weight(monkeypatch):
    right = module._regrown
    monkeypatch.setattr(module, "_regrown", lambda layer, kept, count: Move.between(layer.topology, right(layer, kept, count).new))


def a_threshold_a_layer(monkeypatch):
    right = module._over
    monkeypatch.setattr(module, "_over", lambda threshold, layer: right(threshold * float(layer.values.abs().mean()), layer))


@pytest.mark.parametrize("mistake", [inclusive_threshold, each_layer_keeps_its_count, regrown_keep_their_weight, a_threshold_a_layer])
def test_the_table_catches_mistakes(mistake, monkeypatch):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        hold_to_the_table(DSR(0.1, threshold=0.1))


def test_a_full_layer_passes_on_what_it_cannot_take():
    # Six to grow, 4 to 2. The first would get 4 and has room for 2, among them what it dropped; 4 go to the second.
    network = [layer("xxxx xx..", [0.5, 0.5, 0.5, 0.5, 0.01, 0.01]), layer("xxxxxx.. ........", [0.5, 0.5, 0.01, 0.01, 0.01, 0.01])]
    layers = signals_of(network, generator=torch.Generator().manual_seed(0))
    moves = moves_of(DSR(threshold=0.1).update_network(layers, {})[0], layers)
    assert [move.new.nnz for move in moves] == [8, 4]
    assert drawing(moves[0].new) == ["xxxx", "xxxx"]
    assert [int(move.grown.sum()) for move in moves] == [4, 2]


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_dense_transcription(seed):
    draw = np.random.default_rng(seed)
    network = random_network(draw)
    budgets = [int(layer["mask"].sum()) for layer in network]
    fraction, tolerance, threshold = (float(draw.choice(values)) for values in ([0.0, 0.1, 0.5], [0.0, 0.1], [0.05, 0.2, 0.5, 2.0]))
    layers = signals_of(network, generator=torch.Generator().manual_seed(seed), budgets=budgets)
    new, memory = DSR(fraction, tolerance).update_network(layers, {"threshold": threshold})
    moves = moves_of(new, layers)
    survivors, counts, following = updated(network, budgets, threshold, fraction, tolerance)
    assert memory == {"threshold": following, "owed": 0}
    assert [move.new.nnz for move in moves] == counts
    assert sum(counts) == sum(budgets)
    for move, mask, weight, survived, layer in zip(moves, masks_of(moves), weights_of(moves, layers), survivors, network, strict=True):
        assert np.array_equal(move.new.keep(~move.grown).mask().numpy(), survived)
        assert not (survived & ~mask).any()
        assert np.array_equal(weight, layer["weight"] * survived)


def test_growth_is_uniform_over_what_is_vacant():
    network = [layer("xx.. ....", [0.5, 0.01])]
    tally = np.zeros((2, 4), int)
    for seed in range(700):
        layers = signals_of(network, generator=torch.Generator().manual_seed(seed))
        tally += masks_of(moves_of(DSR(threshold=0.1).update_network(layers, {})[0], layers))[0]
    assert tally[0, 0] == 700
    assert tally.flatten()[1:].sum() == 700
    assert all(60 <= count <= 140 for count in tally.flatten()[1:]), "the one just dropped among them"


@pytest.mark.parametrize("pattern", [FanIn(), Block(2)], ids=str)
def test_the_total_is_kept_over_many_updates(pattern):
    draw = np.random.default_rng(0)
    shapes = [(4, 8), (4, 6)]
    network = [{"mask": pattern.random(shape, 8, torch.Generator().manual_seed(0)).mask().numpy(), "weight": 0} for shape in shapes]
    memory, budgets, seen = {}, [8, 8], {8}
    for step in range(10):
        for one in network:
            one["weight"] = draw.normal(size=one["mask"].shape)
        layers = signals_of(network, pattern=pattern, generator=torch.Generator().manual_seed(step), budgets=budgets)
        new, memory = DSR(0.4, threshold=0.5).update_network(layers, memory)
        moves = moves_of(new, layers)
        for move, one in zip(moves, network, strict=True):
            pattern.check(move.new)
            one["mask"] = move.new.mask().numpy()
        assert sum(move.new.nnz for move in moves) == 16
        seen.add(moves[0].new.nnz)
    assert len(seen) > 1, "connections move between the layers"


def test_a_block_is_as_large_as_the_mean_of_its_weights():
    # Blocks of 0.05 x 4 and of 0.15 x 4, under and over 0.1; the sum of the first is over it, and so is one weight of the third.
    network = [layer("xxxxxx.. xxxxxx..", [0.05, -0.05, 0.15, -0.15, 0.2, 0.01, 0.05, 0.05, 0.15, 0.15, -0.01, 0.01])]
    layers = signals_of(network, pattern=Block(2), generator=torch.Generator().manual_seed(0))
    (move,) = moves_of(DSR(threshold=0.1).update_network(layers, {})[0], layers)
    assert drawing(move.new.keep(~move.grown)) == ["..xx....", "..xx...."]


@pytest.mark.parametrize("pattern", [FanIn(), Neurons()], ids=str)
def test_of_units_of_several_connections_one_stays_too(pattern):
    network = [layer("xx.. xx..", [0.01, 0.02, 0.03, 0.01])] if pattern == FanIn() else [layer("xxxx ....", [0.01] * 4)]
    network.append(layer("xxxx xxxx", [0.9] * 8))
    layers = signals_of(network, pattern=pattern, generator=torch.Generator().manual_seed(0))
    moves = moves_of(DSR(threshold=0.1).update_network(layers, {})[0], layers)
    survived = moves[0].new.keep(~moves[0].grown)
    assert drawing(survived) == (["....", "x..."] if pattern == FanIn() else ["xxxx", "...."])
    assert [move.new.nnz for move in moves] == [4, 8]


def test_what_is_refused():
    with pytest.raises(ValueError, match="DSR changes how many connections a layer has, and NM"):
        DSR().check_pattern(NM(2, 4))
    with pytest.raises(ValueError, match=r"fraction is a share of the connections and lies in \[0, 1\], got 2"):
        DSR(2)
    with pytest.raises(ValueError, match="tolerance is a share of the count that should go, at least 0, got -1"):
        DSR(tolerance=-1)
    with pytest.raises(ValueError, match="threshold is a magnitude that doubling and halving change, more than 0, got 0"):
        DSR(threshold=0)


def test_the_largest_of_a_layer_stays_though_all_are_under_the_threshold():
    network = [layer("xx.. .xx. x..x", [0.9, -0.8, -0.5, 0.3, 0.4, 0.7]), layer("x.x. ..x.", [-0.01, 0.02, 0.02])]
    layers = signals_of(network, generator=torch.Generator().manual_seed(0))
    moves = moves_of(DSR(threshold=0.1).update_network(layers, {})[0], layers)
    # Two go, shared out as 6 to 1: 1.71 and 0.29. The first of the two largest stays.
    assert [move.new.nnz for move in moves] == [8, 1]
    assert drawing(moves[1].new) == ["..x.", "...."]
    # The next layer of one keeps it, and three are shared out as 3 to 1: 2.25 and 0.75.
    network[1] = layer("x... ....", [0.5])
    layers = signals_of(network, generator=torch.Generator().manual_seed(0))
    assert [move.new.nnz for move in moves_of(DSR(threshold=0.6).update_network(layers, {})[0], layers)] == [5, 2]
