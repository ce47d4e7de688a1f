"""SNFS against a table drawn by hand, a dense transcription, and the paper's dense momentum while it trains."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from oracles import drawing, drawn
from oracles.networks import masks_of, moves_of, random_network, signals_of, weights_of
from oracles.snfs import DenseTraining, updated
from torch import nn

from truesparse import NM, Block, FanIn, Rewirer, Topology, sparsify
from truesparse.algorithms import SNFS
from truesparse.algorithms import snfs as module
from truesparse.nn import topology_layers
from truesparse.rewiring.absent import Momentum
from truesparse.tasks import digits_mlp

NETWORK = [
    {
        "mask": drawn("xx.. .xx. ....").numpy(),
        "weight": np.array([[0.9, -0.1, 0.0, 0.0], [0.0, 0.2, 0.7, 0.0], [0.0] * 4]),
        "momentum": np.array([[0.25, 0.5, 0.05, -0.6], [0.02, -0.25, 0.2, 0.3], [0.0, 0.0, 0.0, 0.45]]),
        "gradient": np.array([[9.0, 0.0, 9.0, 0.0], [9.0, 0.0, 0.0, 0.0], [9.0, 9.0, 9.0, 0.0]]),
    },
    {
        "mask": drawn("xx.x .xxx").numpy(),
        "weight": np.array([[0.8, 0.6, 0.0, -0.05], [0.0, 0.3, 0.02, -0.9]]),
        "momentum": np.array([[0.1, 0.1, -0.7, 0.1], [0.2, 0.1, -0.1, 0.1]]),
        "gradient": np.array([[0.0, 0.0, 0.0, 9.0], [9.0, 9.0, 9.0, 0.0]]),
    },
]
# Half of 4 and half of 6 go: 0.1 and 0.2; 0.02, 0.05 and 0.3. What stays:
#   x...  xx..
#   ..x.  ...x
#   ....
# The mean momenta of what was there before are 1.2 / 4 = 0.3 and 0.6 / 6 = 0.1: of the five to grow 3.75 and 1.25, so 4 and 1.
# The largest outside what stays: 0.6, 0.5 (just dropped), 0.45, 0.3; and 0.7.
AFTER = [["xx.x", "..xx", "...x"], ["xxx.", "...x"]]
WEIGHTS_AFTER = [[[0.9, -0.1, 0.0, 0.0], [0.0, 0.0, 0.7, 0.0], [0.0] * 4], [[0.8, 0.6, 0.0, 0.0], [0.0, 0.0, 0.0, -0.9]]]


def hold_to_the_table(algorithm):
    layers = signals_of(NETWORK)
    moves = moves_of(algorithm.update_network(layers, {})[0], layers)
    assert [drawing(move.new) for move in moves] == AFTER
    assert [weight.tolist() for weight in weights_of(moves, layers)] == WEIGHTS_AFTER


def test_the_table():
    hold_to_the_table(SNFS(0.5))


def sum_of_the_momentum(monkeypatch):
    right = module._importance
    monkeypatch.setattr(module, "_importance", lambda layer: right(layer) * layer.topology.nnz)


def momentum_of_survivors(monkeypatch):
    def importance(layer):
        weak = layer.values.abs() < layer.values.abs().median()
        return float(layer.momentum[~weak].abs().mean())

    monkeypatch.setattr(module, "_importance", importance)


def each_layer_keeps_its_count(monkeypatch):
    monkeypatch.setattr(module, "shared_out", lambda total, weights, least, most, steps, spared: [4, 6])


def by_gradient(monkeypatch):
    monkeypatch.setattr(
        module.Signals, "__getattribute__", lambda self, name: object.__getattribute__(self, name.replace("absent_momentum", "absent"))
    )


@pytest.mark.parametrize("mistake", [sum_of_the_momentum, momentum_of_survivors, each_layer_keeps_its_count, by_gradient])
def test_the_table_catches_mistakes(mistake, monkeypatch):
    mistake(monkeypatch)
    with pytest.raises(AssertionError):
        hold_to_the_table(SNFS(0.5))


def test_a_nearly_full_layer_that_wants_to_grow_drops_no_more_than_its_sparsity():
    wide = {"mask": np.ones((2, 5), bool), "weight": np.arange(1.0, 11.0).reshape(2, 5), "momentum": np.full((2, 5), 0.3)}
    wide["mask"][1, 4] = False
    other = {"mask": drawn("xxxx.. ......").numpy(), "weight": np.ones((2, 6)), "momentum": np.full((2, 6), 0.1)}
    # int(0.1 x 9) = 0 of the first go, 2 of the second. The first would get 1.5 and has room for 1: 1 and 1.
    layers = signals_of([wide, other])
    assert [move.new.nnz for move in moves_of(SNFS(0.5).update_network(layers, {})[0], layers)] == [10, 3]
    # Of less momentum than the other it is a layer like any: int(0.5 x 9) = 4 go, and of all 6 that went it gets one.
    wide["momentum"] = np.full((2, 5), 0.02)
    layers = signals_of([wide, other])
    assert [move.new.nnz for move in moves_of(SNFS(0.5).update_network(layers, {})[0], layers)] == [6, 7]


def test_a_layer_without_connections_or_with_momenta_that_are_no_numbers_asks_for_nothing():
    empty = {"mask": np.zeros((2, 3), bool), "weight": np.zeros((2, 3)), "momentum": np.ones((2, 3))}
    lost = {"mask": drawn("xx. ..x").numpy(), "weight": np.ones((2, 3)), "momentum": np.full((2, 3), np.nan)}
    well = {"mask": drawn("xx.. xx..").numpy(), "weight": np.ones((2, 4)), "momentum": np.ones((2, 4))}
    layers = signals_of([empty, lost, well])
    assert [move.new.nnz for move in moves_of(SNFS(0.5).update_network(layers, {})[0], layers)] == [0, 2, 5]


@pytest.mark.parametrize("seed", range(80))
def test_equals_the_dense_transcription(seed):
    draw = np.random.default_rng(seed)
    network = random_network(draw)
    budgets = [int(layer["mask"].sum()) for layer in network]
    fraction, progress = float(draw.choice([0.0, 0.5, 1.0])), float(draw.choice([0.0, 0.3, 0.8, 1.0]))
    layers = signals_of(network, progress)
    moves = moves_of(SNFS(fraction).update_network(layers, {})[0], layers)
    masks, weights = updated(network, budgets, fraction, progress)
    assert sum(int(mask.sum()) for mask in masks) == sum(budgets)
    for ours, theirs in zip((*masks_of(moves), *weights_of(moves, layers)), (*masks, *weights), strict=True):
        assert np.array_equal(ours, theirs)


OPTIMIZERS = {
    "momentum": (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), (0.1, 0.9)),
    "Adam": (lambda parameters: torch.optim.Adam(parameters, lr=0.01, betas=(0.8, 0.95), eps=1e-6), (0.01, 0.8, 0.95, 1e-6)),
}


def after_the_first_rewiring(optimizer, window, masked, steps=6):
    """(our masks and weights after the first rewiring, those of the paper with its dense momentum)."""
    make, settings = OPTIMIZERS[optimizer]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(9, 12, bias=False), nn.ReLU(), nn.Linear(12, 7, bias=False)).double()
    sparsify(model, 0.6, masked=masked, generator=torch.Generator().manual_seed(1))
    layers = list(topology_layers(model).values())
    weights, masks = (
        [array.detach().numpy().copy() for array in arrays]
        for arrays in zip(*((layer.to_dense(), layer.topology.mask()) for layer in layers), strict=True)
    )
    dense = DenseTraining(weights, masks, *settings)
    algorithm = SNFS(0.5, window)
    update = make(list(model.parameters()))
    rewirer = Rewirer(model, update, algorithm, every=steps, until=4 * steps)
    draw = np.random.default_rng(3)
    for _ in range(steps):
        x, target = draw.normal(size=(5, 9)), draw.normal(size=(5, 7))
        nn.functional.mse_loss(model(torch.from_numpy(x)), torch.from_numpy(target)).backward()
        if rewirer.step():
            update.step()
        update.zero_grad()
        dense.step(x, target)
    assert rewirer.rewirings == 1
    network = [
        {"mask": mask, "weight": weight, "momentum": momentum}
        for mask, weight, momentum in zip(masks, dense.weights, dense.momentum, strict=True)
    ]
    expected = updated(network, [int(mask.sum()) for mask in masks], 0.5, 0.25)
    return ([layer.topology.mask().numpy() for layer in layers], [layer.to_dense().detach().numpy() for layer in layers]), expected


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_window_is_the_papers_dense_momentum_as_long_as_it_covers_all_steps(optimizer, masked):
    for window in (6, 20):
        ours, paper = after_the_first_rewiring(optimizer, window, masked)
        assert all(np.array_equal(mine, theirs) for mine, theirs in zip(ours[0], paper[0], strict=True))
        for mine, theirs in zip(ours[1], paper[1], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_short_window_is_not(optimizer):
    ours, paper = after_the_first_rewiring(optimizer, 1, False)
    assert not all(np.array_equal(mine, theirs) for mine, theirs in zip(ours[0], paper[0], strict=True))


class Chooses:
    """Rewires nothing, and notes what SNFS would grow: a quarter of each layer, by the window."""

    window = 20

    def __init__(self):
        self.chosen = {}

    def update_network(self, layers, memory):
        for name, one in layers.items():
            self.chosen[name] = one.absent_momentum.top(one.topology, one.topology.nnz // 4)
            there = Topology.from_keys(one.topology.shape, self.chosen[name])
            whole = one.absent_momentum.rows(0, one.topology.shape[0])
            torch.testing.assert_close(one.absent_momentum.at(there), whole.flatten()[there.keys], rtol=1e-3, atol=1e-6)
        return {name: one.topology for name, one in layers.items()}, memory


def shared_with_dense_momentum(optimizer, steps=200):
    """By layer: which part of what a dense momentum of all steps would grow the window of the last 20 grows too."""
    torch.manual_seed(0)
    model = sparsify(digits_mlp.model(), 0.8)
    layers = topology_layers(model)
    update = (torch.optim.SGD if optimizer == "momentum" else torch.optim.Adam)(model.parameters(), **DIGITS[optimizer])
    algorithm = Chooses()
    rewirer = Rewirer(model, update, algorithm, every=steps)
    moments, squares = ({name: torch.zeros(layer.topology.shape) for name, layer in layers.items()} for _ in range(2))

    def follow(name, layer):
        def dense(module, inputs, output):
            x = inputs[0].detach()

            def back(dy):
                g = dy.T @ x
                moments[name].mul_(0.9).add_(g)
                squares[name].mul_(0.999).addcmul_(g, g, value=0.001)

            output.register_hook(back)

        layer.register_forward_hook(dense)

    for name, layer in layers.items():
        follow(name, layer)
    inputs, targets = digits_mlp.data()[0].tensors
    for _ in range(steps):
        some = torch.randint(len(inputs), (32,))
        nn.functional.cross_entropy(model(inputs[some]), targets[some]).backward()
        if rewirer.step():
            update.step()
        update.zero_grad()
    shares = []
    for name, layer in layers.items():
        momentum = moments[name] if optimizer == "momentum" else 0.1 * moments[name] / (squares[name].sqrt() + 1e-8)
        wanted = momentum.abs().masked_fill(layer.topology.mask(), -1).flatten().topk(len(algorithm.chosen[name])).indices
        shares.append(len(set(wanted.tolist()) & set(algorithm.chosen[name].tolist())) / len(wanted))
    return shares


DIGITS = {"momentum": {"lr": 0.05, "momentum": 0.9}, "Adam": {"lr": 3e-3}}


@pytest.mark.parametrize(("optimizer", "least"), [("momentum", 0.8), ("Adam", 0.6)])
def test_the_window_finds_most_of_what_a_dense_momentum_of_all_steps_would_grow(optimizer, least):
    shares = shared_with_dense_momentum(optimizer)
    assert min(shares) >= least, shares


def test_without_the_second_moment_of_the_connections_the_window_of_adam_finds_less(monkeypatch):
    shares = shared_with_dense_momentum("Adam")
    monkeypatch.setattr(Momentum, "_older", None)
    without = shared_with_dense_momentum("Adam")
    assert all(less < share - 0.1 or less == share == 1 for less, share in zip(without, shares, strict=True)), (without, shares)


@pytest.mark.parametrize("pattern", [FanIn(), Block(2)], ids=str)
def test_connections_move_between_layers_in_what_the_pattern_can_hold(pattern):
    draw = np.random.default_rng(0)
    network = [{"mask": pattern.random(shape, 8, torch.Generator().manual_seed(0)).mask().numpy()} for shape in ((4, 8), (4, 6))]
    counts = []
    for step in range(10):
        for size, one in zip((1.0, 3.0) if step < 5 else (3.0, 1.0), network, strict=True):
            one["weight"], one["momentum"] = draw.normal(size=one["mask"].shape), size * draw.normal(size=one["mask"].shape)
        layers = signals_of(network, pattern=pattern, budgets=[8, 8])
        moves = moves_of(SNFS(0.5).update_network(layers, {})[0], layers)
        for move, one in zip(moves, network, strict=True):
            pattern.check(move.new)
            one["mask"] = move.new.mask().numpy()
        counts.append([move.new.nnz for move in moves])
    assert all(sum(count) == 16 for count in counts)
    assert any(before != after for before, after in pairwise(counts))
    assert counts[4][1] > counts[4][0]
    assert counts[-1][1] < counts[-1][0]


def test_settings():
    assert SNFS.each_epoch is True
    assert (SNFS().fraction, SNFS().window) == (0.5, 20)
    with pytest.raises(ValueError, match="SNFS changes how many connections a layer has, and NM"):
        SNFS().check_pattern(NM(2, 4))
    with pytest.raises(ValueError, match=r"fraction is a share of the connections and lies in \[0, 1\], got 2"):
        SNFS(2)
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match=f"window is a number of steps, at least 1, got {wrong}"):
            SNFS(window=wrong)
