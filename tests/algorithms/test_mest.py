"""MEST against a table drawn by hand and a dense transcription: what stays, how many come, and what the layer holds meanwhile."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import drawing, made, signals, topology_of
from oracles import mest as dense
from training import backward, two_layers

from truesparse import MEST, NM, Block, FanIn, Move, Rewirer
from truesparse.nn import topology_layers
from truesparse.testing import check_checkpoint, check_update

BEFORE = "xx.x x.xx .xx."
#            0.9  -0.1        0.4
#           -0.8        0.05 -0.3
#                 0.5  -0.02
VALUES = [0.9, -0.1, 0.4, -0.8, 0.05, -0.3, 0.5, -0.02]
GRADIENTS = [0.0, 0.0, 0.0, 0.0, -6.0, 3.0, 0.0, 1.0]
# With lambda = 0.1 they count 0.9 0.1 0.4 / 0.8 0.65 0.6 / 0.5 0.12: a quarter of 8 are 0.1 and 0.12, not 0.02 and 0.05 ...
BY_BOTH = ["x..x", "x.xx", ".x.."]
# ... which would go without the gradient.
BY_WEIGHT = ["xx.x", "x..x", ".x.."]


def given(topology, values=VALUES, gradients=GRADIENTS, budget=None, seed=0, **settings):
    held = signals(values, topology=topology, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(
        held, read_gradients=lambda: torch.as_tensor(gradients), budget=topology.nnz if budget is None else budget, **settings
    )


def kept_by(move):
    return drawing(move.new.keep(~move.grown))


def hold_to_the_table(algorithm):
    """What stays is drawn above; what comes is anywhere else, what was just dropped included, and starts at zero."""
    came_back = 0
    for seed in range(20):
        topology = topology_of(BEFORE)
        move = algorithm.update(topology, given(topology, seed=seed))
        assert kept_by(move) == BY_BOTH
        assert move.new.nnz == 8
        assert move.values(torch.tensor(VALUES))[move.grown].tolist() == [0.0, 0.0]
        came_back += int(topology.contains(move.new.keys[move.grown]).sum())
    assert came_back > 0


def test_the_table():
    hold_to_the_table(MEST(0.25, 0.1))


@pytest.mark.parametrize(
    "importance",
    [
        lambda values, gradients: values.abs(),
        lambda values, gradients: (values + 0.1 * gradients).abs(),
        lambda values, gradients: (values * gradients).abs(),
    ],
    ids=["weight only", "signed sum", "product"],
)
def test_the_table_catches_another_importance(importance):
    class Wrong:
        def update(self, topology, seen):
            kept = seen.pattern.drop(topology, importance(seen.values, seen.gradients), 2)
            return Move.through(topology, kept, seen.pattern.grow_random(kept, 8, seen.generator))

    with pytest.raises(AssertionError):
        hold_to_the_table(Wrong())


def test_without_the_gradient_the_weights_decide():
    topology = topology_of(BEFORE)
    assert kept_by(MEST(0.25, 0.0).update(topology, given(topology))) == BY_WEIGHT


def test_ties():
    topology = topology_of("xxxx....")
    assert kept_by(MEST(0.5).update(topology, given(topology, [1.0] * 4, [0.0] * 4))) == ["..xx...."], "the first of equals go"
    over = MEST(0.0, extra=0.5).update(topology, given(topology, [1.0] * 4, [0.0] * 4, budget=2))
    assert kept_by(over) == ["xx......"], "back to the budget, the first of equals stay"


def test_a_soft_bound_goes_over_the_budget_and_comes_back():
    algorithm, topology = MEST(0.25, 0.1, extra=0.5), topology_of(BEFORE)
    first = algorithm.update(topology, given(topology, budget=8))
    assert (kept_by(first), first.new.nnz) == (BY_BOTH, 12), "6 stay, 8 + 4 are held: all positions there are"
    values = torch.arange(12, 0, -1).float()
    second = algorithm.update(first.new, given(first.new, values, torch.zeros(12), budget=8, progress=0.8))
    assert (kept_by(second), second.new.nnz) == (["xxxx", "xxx.", "...."], 10), "8 are back in the budget, 1 of them goes"
    last = algorithm.update(first.new, given(first.new, values, torch.zeros(12), budget=8, progress=0.9, last=True))
    assert (kept_by(last), last.new.nnz) == (["xxxx", "xxxx", "...."], 8)
    assert not last.grown.any(), "nothing is exchanged at the last rewiring"


def test_equal_to_the_dense_transcription():
    random = np.random.default_rng(0)
    for case in range(150):
        rows, columns = random.integers(1, 9, 2)
        mask = random.random((rows, columns)) < random.choice([0.2, 0.5, 0.9, 1.0])
        # Few different numbers: many ties.
        weight, gradient = (random.choice([-1.5, -0.5, 0.0, 0.5, 1.0, 2.0], mask.shape) * mask for _ in range(2))
        fraction, lam, extra, progress = (
            random.choice([0, 0.2, 0.5, 1]),
            random.choice([0, 0.5]),
            random.choice([0, 0.5, 9]),
            random.choice([random.random(), 0.75]),
        )
        last, budget = bool(random.random() < 0.2), int(mask.sum())
        if extra:
            budget = int(budget * random.choice([1.0, 0.5]))
        kept, count = dense.update(mask, weight, gradient, budget, fraction, lam, extra, progress, last)
        topology = made(mask.shape, set(zip(*(axis.tolist() for axis in mask.nonzero()), strict=True)))
        seen = given(topology, weight[mask], gradient[mask], budget=budget, progress=progress, last=last, seed=case)
        move = MEST(float(fraction), float(lam), float(extra)).update(topology, seen)
        assert np.array_equal(move.new.keep(~move.grown).mask().numpy(), kept)
        assert int(move.grown.sum()) == count
        assert move.new.nnz == kept.sum() + count


@pytest.mark.parametrize(("pattern", "halved"), [(FanIn(), 64), (Block(2), 60)], ids=str)
def test_patterns_hold_over_the_budget_too(pattern, halved):
    algorithm = MEST(0.3, extra=0.5)
    topology = pattern.random((8, 12), 48, torch.Generator().manual_seed(0))
    for progress, last, held in ((0.1, False, 72), (0.5, False, 72), (0.8, False, halved), (0.9, True, 48)):
        values = torch.randn(topology.nnz, generator=torch.Generator().manual_seed(int(100 * progress)))
        seen = given(topology, values, torch.zeros_like(values), budget=48, pattern=pattern, progress=progress, last=last)
        topology = algorithm.update(topology, seen).new
        pattern.check(topology)
        assert topology.nnz == held
    check_update(algorithm, pattern)


@pytest.mark.parametrize(("progress", "gone"), [(0.7499, 4), (0.75, 2), (0.7501, 2)])
def test_the_mutation_is_halved_from_three_quarters_on(progress, gone):
    topology = topology_of("xxxx xxxx .... ....")
    move = MEST(0.5).update(topology, given(topology, [float(value) for value in range(1, 9)], [0.0] * 8, progress=progress))
    assert int(move.grown.sum()) == gone


def test_what_a_model_holds_while_it_trains():
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, MEST(0.2, extra=0.5), every=2, until=12, generator=torch.Generator().manual_seed(0))
    budgets = {name: layer.topology.nnz for name, layer in topology_layers(model).items()}
    shares = []
    for step in range(14):
        backward(model, step)
        assert rewirer.step()
        optimizer.step()
        optimizer.zero_grad()
        found = {name: layer.topology.nnz / budgets[name] for name, layer in topology_layers(model).items()}
        shares.append(min(found.values()))
        assert max(found.values()) <= 1.5
    assert [round(share, 1) for share in shares[1::2]] == [1.5, 1.5, 1.5, 1.5, 1.0, 1.0, 1.0]
    assert {name: layer.topology.nnz for name, layer in topology_layers(model).items()} == budgets


def test_a_checkpoint_between_prune_and_growth_is_whole():
    check_checkpoint(MEST(0.3, extra=0.7))


def test_settings():
    assert (MEST().keeps_count, MEST(extra=0.5).keeps_count) == (True, False)
    MEST().check_pattern(NM(2, 4))
    with pytest.raises(ValueError, match=r"MEST with extra=0.5 lets a layer hold more than its budget, and NM\(n=2, m=4\) fixes the count"):
        MEST(extra=0.5).check_pattern(NM(2, 4))
    with pytest.raises(ValueError, match=r"fraction is a share of the connections and lies in \[0, 1\], got 1.5"):
        MEST(1.5)
    for name in ("gradient_weight", "extra"):
        with pytest.raises(ValueError, match=f"{name} is a number of at least 0, got -1"):
            MEST(**{name: -1})
