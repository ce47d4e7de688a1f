"""GMP against a table drawn by hand, a dense transcription of its paper, and itself from dense to the end."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import drawing
from oracles.gmp import left_of_all, pruned_across_network, pruned_layer_by_layer
from oracles.networks import masks_of, moves_of, random_network, signals_of, weights_of
from torch import nn

from truesparse import NM, Block, FanIn, Rewirer, sparsify
from truesparse.algorithms import GMP
from truesparse.nn import topology_layers
from truesparse.topology.schedules import remaining

# Small layers: what is left of them is often less than they have rows.
pytestmark = pytest.mark.filterwarnings("ignore:layer .* is nearly pruned away")

FIRST = np.array([[0.9, -0.1, 0.4, -0.3], [0.05, 0.8, -0.2, 0.6]])
SECOND = np.array([[0.5, -0.15, 0.25], [-0.7, 0.1, 0.35]])


def full(*weights):
    return [{"mask": np.ones(weight.shape, bool), "weight": weight} for weight in weights]


def drawn(algorithm, network, **given):
    layers = signals_of(network, **given)
    return [drawing(move.new) for move in moves_of(algorithm.update_network(layers, {})[0], layers)]


# Ascending, with the layer: .05a .1a .1b .15b .2a .25b .3a .35b .4a .5b .6a .7b .8a .9a
TABLE = [
    # 14 x (1 - 1/7) = 12 stay: of the two of 0.1 the first goes.
    (GMP(1 / 7), {"last": True}, [["x.xx", ".xxx"], ["xxx", "xxx"]]),
    # Half of the way to 0.5 is 0.4375, 14 x 0.5625 = 7.875: 8 stay.
    (GMP(0.5), {"progress": 0.5}, [["x.xx", ".x.x"], ["x..", "x.x"]]),
    # 14 x 2/7 = 4 stay: the largest of all,
    (GMP(5 / 7), {"last": True, "progress": 0.9}, [["x...", ".x.x"], ["...", "x.."]]),
    # or 8 x 2/7 = 2.29 and 6 x 2/7 = 1.71: 2 and 2.
    (GMP(5 / 7, "layers"), {"last": True, "progress": 0.9}, [["x...", ".x.."], ["x..", "x.."]]),
]


def hold_to_the_table(kind):
    for algorithm, given, expected in TABLE:
        assert drawn(kind(algorithm.sparsity, algorithm.across), full(FIRST, SECOND), **given) == expected


def test_the_table():
    hold_to_the_table(GMP)


def by_signed_weight(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "abs", lambda self: self)


def along_a_line(monkeypatch):
    def linear(start, size, sparsity, progress, rounding):
        return round(size * (1 - sparsity * progress))

    monkeypatch.setattr("truesparse.algorithms.base.remaining", linear)


def never_quite_there(monkeypatch):
    monkeypatch.setattr(
        "truesparse.algorithms.base.remaining",
        lambda start, size, sparsity, progress, rounding: remaining(start, size, sparsity, min(progress, 0.5), rounding),
    )


def each_layer_by_itself(monkeypatch):
    monkeypatch.setattr("truesparse.algorithms.base.highest_of_all", lambda scores, count, least: [one.numel() for one in scores])


@pytest.mark.parametrize("mistake", [by_signed_weight, along_a_line, never_quite_there, each_layer_by_itself])
def test_the_table_catches_mistakes(mistake, monkeypatch):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        hold_to_the_table(GMP)


@pytest.mark.parametrize("across", ["network", "layers"])
@pytest.mark.parametrize("seed", range(60))
def test_equals_the_dense_transcription(seed, across):
    draw = np.random.default_rng(seed)
    network = random_network(draw)
    budgets = [int(draw.integers(layer["mask"].sum(), layer["mask"].size + 1)) for layer in network]
    start = 1 - sum(budgets) / sum(layer["mask"].size for layer in network)
    sparsity = start + (1 - start) * float(draw.choice([0.0, 0.5, 0.9, 1.0]))
    progress, last = float(draw.random()), bool(draw.integers(2))
    layers = signals_of(network, progress, last, budgets=budgets)
    moves = moves_of(GMP(sparsity, across).update_network(layers, {})[0], layers)
    count = left_of_all(network, budgets, sparsity, 1.0 if last else progress)
    if across == "network":
        expected = pruned_across_network(network, count)
    else:
        expected = pruned_layer_by_layer(network, budgets, sparsity, 1.0 if last else progress, count)
    assert sum(int(mask.sum()) for mask in expected) == count
    for mask, theirs, weight, layer in zip(masks_of(moves), expected, weights_of(moves, layers), network, strict=True):
        assert np.array_equal(mask, theirs)
        assert np.array_equal(weight, layer["weight"] * theirs)


@pytest.mark.parametrize("pattern", [FanIn(), Block(2)], ids=str)
def test_patterns_round_down_by_less_than_a_step(pattern):
    draw = np.random.default_rng(0)
    network = full(draw.normal(size=(6, 8)), draw.normal(size=(4, 6)))
    for sparsity in (0.0, 0.3, 0.55, 0.9, 1.0):
        layers = signals_of(network, last=True, pattern=pattern)
        moves = moves_of(GMP(sparsity).update_network(layers, {})[0], layers)
        for move in moves:
            pattern.check(move.new)
        # Constant fan-in goes in steps of 6 and of 4 connections, one a row; blocks in steps of 4. A step of each layer stays.
        left = max(round(72 * (1 - sparsity)), sum(pattern.step(one["mask"].shape) for one in network))
        assert 0 <= left - sum(move.new.nnz for move in moves) < 6


def test_constant_fan_in_keeps_the_largest_of_each_row():
    # 8 of 14 are the largest of all: 5 and 3. One a row is a step of 2: 4 and 2, and the step that is left goes to the first of equals.
    assert drawn(GMP(0.5), full(FIRST, SECOND), progress=0.5, pattern=FanIn()) == [["x.xx", ".xxx"], ["x..", "x.."]]


@pytest.mark.parametrize("masked", [False, True])
def test_from_dense_layers_to_the_last_connection(masked):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(0, -2), nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 5)).double()
    sparsify(model, GMP().start_sparsity, masked=masked)
    layers = topology_layers(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    rewirer = Rewirer(model, optimizer, GMP(0.9), every=2, until=15)
    counts = []
    for step in range(20):
        x = torch.randn(8, 10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        F.mse_loss(model(x), x[:, :5]).backward()
        if step == 0 and not masked:
            assert all("dense" in layer.kernel for layer in layers.values())
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        counts.append(sum(layer.topology.nnz for layer in layers.values()))
    assert counts[0] == 180
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) == 8, "each of the seven rewirings prunes"
    assert counts[13:] == [18] * 7, "a tenth of 180, from the last rewiring at step 14"
    for layer in layers.values():
        assert masked or "dense" not in layer.kernel
        assert optimizer.state[layer.parameter]["exp_avg"].count_nonzero() <= layer.topology.nnz


def test_a_layer_that_begins_sparser_than_the_rest_will_end_leaves_more_to_the_others():
    network = full(FIRST, SECOND)
    network[1]["mask"] = np.array([[True, False, False], [False, False, False]])
    network[1]["weight"] = SECOND * network[1]["mask"]
    # 7 of 14 in the end. 8 x 0.5 and 6 x 0.5 would be 4 and 3, but the second has one.
    assert drawn(GMP(0.5, "layers", 0.3), network, last=True) == [["x.xx", ".xxx"], ["x..", "..."]]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"NM\(n=2, m=4\) fixes that; use Unstructured, FanIn or Block"):
        GMP().check_pattern(NM(2, 4))
    with pytest.raises(
        ValueError, match=r"begin with 14 connections of 28, fewer than the 21 that a sparsity of 0\.25 leaves: make the model"
    ):
        remaining(14, 28, 0.25, 0.5)
    with pytest.raises(ValueError, match=r"sparsity is a share of the connections and lies in \[0, 1\], got 1.5"):
        GMP(1.5)
    with pytest.raises(ValueError, match='across is "network" or "layers", got \'rows\''):
        GMP(across="rows")
    with pytest.raises(ValueError, match=r"pruning goes from start_sparsity up to sparsity, got 0\.95 and 0\.9"):
        GMP(start_sparsity=0.95)


@pytest.mark.parametrize("across", ["network", "layers"])
def test_the_strongest_connection_of_each_layer_stays_and_the_others_pay_for_it(across):
    network = full(FIRST, SECOND / 1000, np.zeros((1, 4)))
    network[2]["mask"][:] = False  # had none, gets none
    expected = {
        # 18 x 2/9 = 4 stay. Across the network three are of the first, and the last is 0.0007 of the second.
        "network": [["x...", ".x.x"], ["...", "x.."], ["...."]],
        # One each for the two that live. The layers alone would have 0.78, 0.33 and 0.89 more, and the last cannot: 1.22 and 0.78.
        "layers": [["x...", ".x.."], ["x..", "x.."], ["...."]],
    }
    assert drawn(GMP(7 / 9, across), network, last=True) == expected[across]
    # One for each of two, though 18 x 1/18 = 1 should stay.
    with pytest.warns(UserWarning, match="^layer '1' is nearly pruned away: fewer connections are left than it has outputs or inputs"):
        assert drawn(GMP(17 / 18, across), network, last=True) == [["x...", "...."], ["...", "x.."], ["...."]]


def test_constant_fan_in_keeps_one_connection_in_each_row():
    network = full(FIRST, SECOND / 1000)
    # 14 x 3/7 = 6: the six largest are all of the first, which pays the two of the second.
    assert drawn(GMP(4 / 7), network, last=True, pattern=FanIn()) == [["x.x.", ".x.x"], ["x..", "x.."]]


@pytest.mark.filterwarnings("error")
def test_a_layer_is_nearly_gone_when_it_has_fewer_connections_than_outputs_and_inputs():
    network = full(np.arange(1.0, 21.0).reshape(4, 5), np.full((3, 7), 0.5))
    # 41 x 23/41 = 23: the first keeps its 20, the second 3; then 22 and 2.
    GMP(18 / 41).update_network(signals_of(network, last=True), {})
    with pytest.warns(UserWarning, match="layer '1' is nearly pruned away"):
        GMP(19 / 41).update_network(signals_of(network, last=True), {})
