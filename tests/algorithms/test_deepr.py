"""Deep R against a table drawn by hand and a dense transcription: who goes dormant, who starts, with which sign, and how all move."""

import dataclasses

import numpy as np
import pytest
import torch
from oracles import deepr as dense
from oracles import drawing, signals, topology_of
from torch import nn

from truesparse import NM, Block, DeepR, FanIn, MaskedLinear, Move, Rewirer, SparseLinear, Unstructured, sparsify
from truesparse.testing import check_checkpoint

BEFORE = "xx.x x.xx .xx."
PREVIOUS = [0.9, -0.1, 0.4, -0.8, 0.05, -0.3, 0.0, -0.0]
# The second and the fifth cross zero. The third comes to lie on it, which is not below. The last two started at plus and at
# minus zero: the one moved on to its own side, the other crossed.
NOW = [0.8, 0.02, 0.0, -0.9, -0.01, -0.2, 0.03, 0.01]
KEPT = ["x..x", "x..x", ".x.."]


def given(topology, values, previous, seed=0, **settings):
    held = signals(values, topology=topology, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(held, read_previous=lambda: torch.as_tensor(previous), **settings)


def hold_to_the_table(algorithm):
    signs, came_back = [], 0
    for seed in range(30):
        topology = topology_of(BEFORE)
        # Which zero the third comes to lie on is an accident of the arithmetic.
        now = [value or (-0.0 if seed % 2 else 0.0) for value in NOW]
        move = algorithm.update(topology, given(topology, now, PREVIOUS, seed))
        assert drawing(move.new.keep(~move.grown)) == KEPT
        assert move.new.nnz == 8
        started = move.values(torch.tensor(NOW))[move.grown]
        assert started.tolist() == [0.0] * 3
        signs += started.signbit().tolist()
        came_back += int(topology.contains(move.new.keys[move.grown]).sum())
    assert 25 < sum(signs) < 65, "the sign of what starts is drawn"
    assert came_back > 0, "what just went may start again"


def test_the_table():
    hold_to_the_table(DeepR())


@pytest.mark.parametrize(
    "crossed",
    [
        lambda now, before: now * before < 0,  # a product forgets the sign of zero
        lambda now, before: now.sign() != before.sign(),  # zero as a sign of its own
        lambda now, before: now <= 0,
        lambda now, before: now.signbit() != before.signbit(),
    ],
    ids=["product", "sign", "no sign", "zero counts as crossed"],
)
def test_the_table_catches_mistakes(crossed):
    class Wrong:
        def update(self, topology, seen):
            kept = topology.keep(~crossed(seen.values, seen.previous))
            new = seen.pattern.grow_random(kept, topology.nnz, seen.generator)
            started = torch.zeros(new.nnz - kept.nnz).copysign(torch.randn(new.nnz - kept.nnz, generator=seen.generator))
            return Move.through(topology, kept, new, started)

    with pytest.raises(AssertionError):
        hold_to_the_table(Wrong())


def test_nothing_changes_while_no_weight_crosses():
    topology = topology_of(BEFORE)
    move = DeepR().update(topology, given(topology, PREVIOUS, PREVIOUS))
    assert move.new is topology
    assert not move.grown.any()


@pytest.mark.parametrize("kind", [SparseLinear, MaskedLinear])
def test_equal_to_the_dense_transcription_step_by_step(kind):
    """Real layers under plain SGD, noise and all. The oracle is told who was drawn, and checks that they were dormant."""
    rate, l1, temperature, crossings = 0.02, 0.02, 0.0004, 0
    layer = kind(7, 5, bias=False, sparsity=0.6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(layer.parameters(), rate)
    rewirer = Rewirer(layer, optimizer, DeepR(l1, temperature), every=1, generator=torch.Generator().manual_seed(2))
    active = layer.topology.mask().numpy()
    weight = layer.to_dense().detach().numpy().copy()
    theta, sign = np.abs(weight), np.where(np.signbit(weight), -1.0, 1.0)
    draw = torch.Generator().manual_seed(3)
    for _ in range(40):
        x, target = torch.randn(6, 7, generator=draw, dtype=torch.float64), torch.randn(6, 5, generator=draw, dtype=torch.float64)
        copied = torch.Generator()
        copied.set_state(rewirer.generator.get_state())
        noise = np.zeros_like(theta)
        noise[active] = torch.randn(int(active.sum()), generator=copied).numpy()
        residual = x.numpy() @ (sign * theta * active).T - target.numpy()
        theta, stays, count = dense.step(theta, sign, active, residual.T @ x.numpy(), noise, rate, l1, temperature)

        loss = (layer(x) - target).pow(2).sum() / 2
        loss.backward()
        assert rewirer.step()
        optimizer.step()
        optimizer.zero_grad()

        found = layer.topology.mask().numpy()
        assert (found & stays == stays).all(), "everyone that stays is there"
        started = found & ~stays
        assert started.sum() == count
        weight = layer.to_dense().detach().numpy()
        assert np.allclose(weight[stays], (sign * theta)[stays], rtol=1e-6, atol=1e-12)
        assert not weight[started].any()
        values = layer.values.detach().numpy()
        sign[found] = np.where(np.signbit(values), -1.0, 1.0)
        active, crossings = found, crossings + count
    assert crossings > 20


def test_noise_and_l1_are_those_of_the_paper_under_plain_sgd():
    topology = topology_of(" ".join(["x" * 100] * 100))
    values = torch.linspace(-1, 1, 10_000)
    move = -0.1 * DeepR(l1=0.0, temperature=0.2).penalty(given(topology, values, values, learning_rate=0.1))
    assert float(move.std()) == pytest.approx((2 * 0.1 * 0.2) ** 0.5, rel=0.03)
    assert abs(float(move.mean())) < 0.01
    pull = -0.1 * DeepR(l1=0.5, temperature=0.0).penalty(given(topology, values, values, learning_rate=0.1))
    assert torch.equal(pull, -0.05 * values.sign())
    start = torch.tensor([0.0, -0.0])
    assert DeepR(0.5, 0.0).penalty(given(topology, start, start)).tolist() == [0.5, -0.5]
    assert not DeepR(0.0, 0.2).penalty(given(topology, start, start, learning_rate=0.0)).any(), "no step, no noise"


@pytest.mark.parametrize("settings", [{}, {"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (torch.optim.SGD, {}),
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.Adam, {}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
        (torch.optim.AdamW, {"weight_decay": 0.1}),
    ],
)
def test_optimizers_leave_the_sign_of_a_zero_they_do_not_move(kind, own, settings):
    values = nn.Parameter(torch.tensor([0.0, -0.0] * 20))
    optimizer = kind([values], lr=0.1, **own, **settings)
    for _ in range(3):
        values.grad = torch.zeros(40)
        optimizer.step()
    assert values.detach().signbit().tolist() == [False, True] * 20


@pytest.mark.parametrize("masked", [False, True])
def test_signs_survive_rewiring_checkpoints_and_other_dtypes(masked):
    layer = (MaskedLinear if masked else SparseLinear)(30, 20, sparsity=0.5, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    rewirer = Rewirer(layer, optimizer, DeepR(temperature=0.0), every=1, generator=torch.Generator().manual_seed(0))
    layer(torch.randn(4, 30)).pow(2).sum().backward()
    rewirer.step(), optimizer.step()
    started = layer.values.detach() == 0
    signs = layer.values.detach().signbit()
    assert 0 < int(signs[started].sum()) < int(started.sum())
    again = type(layer)(30, 20, sparsity=0.9)
    again.load_state_dict(layer.state_dict())
    assert torch.equal(again.values.detach().signbit(), signs)
    assert torch.equal(again.double().values.detach().signbit(), signs)


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn(), NM(2, 4)], ids=str)
def test_patterns(pattern):
    model = sparsify(nn.Linear(12, 8).double(), 0.5, "uniform", pattern, sparsities={"*": 0.5}, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewirer = Rewirer(model, optimizer, DeepR(l1=0.01), every=1, generator=torch.Generator().manual_seed(0))
    before, nnz = model.topology, model.topology.nnz
    for _ in range(10):
        model(torch.randn(6, 12, dtype=torch.float64)).pow(2).sum().backward()
        rewirer.step(), optimizer.step(), optimizer.zero_grad()
    assert model.topology.nnz == nnz
    assert not model.topology.equal(before)
    pattern.check(model.topology)


def test_rows_longer_than_their_due_keep_their_largest_weights():
    # Two neurons are ablated. 0.1 crosses; then rows 0 and 2 are cut to 2 as every row, and lose -0.3 and the two weakest.
    topology = topology_of("xxxx .... xxxx ....")
    now = [0.1, -0.3, 0.9, -0.8, -0.2, -0.4, 0.7, -0.6]
    seen = given(topology, now, [-0.1, *now[1:]], pattern=FanIn())
    move = DeepR().update(topology, seen)
    assert drawing(move.new.keep(~move.grown)) == ["..xx", "....", "..xx", "...."]
    assert move.new.fan_in.tolist() == [2, 2, 2, 2]
    assert move.grown_values.shape == (4,)


def test_blocks_are_refused():
    model = sparsify(nn.Linear(12, 8), 0.5, "uniform", Block(2))
    with pytest.raises(ValueError, match=r"DeepR drops a connection when its weight crosses zero; with Block\(size=2\) they go together"):
        Rewirer(model, torch.optim.SGD(model.parameters(), 0.1), DeepR())


def test_a_checkpoint_is_whole():
    check_checkpoint(DeepR(l1=0.01, temperature=1e-4))


def test_settings():
    assert (DeepR.each_step, DeepR.sees_previous) == (True, True)
    for name in ("l1", "temperature"):
        with pytest.raises(ValueError, match=f"{name} is a number of at least 0, got -1"):
            DeepR(**{name: -1})


def test_the_noise_ends_with_rewiring_and_l1_stays():
    layer = SparseLinear(9, 6, sparsity=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    rewirer = Rewirer(layer, optimizer, DeepR(l1=0.01, temperature=0.1), every=1, until=4, generator=torch.Generator().manual_seed(0))
    noisy = []
    for _ in range(6):
        layer.values.grad, layer.bias.grad = torch.zeros_like(layer.values), None
        pull = torch.full_like(layer.values, 0.01).copysign(layer.values.detach())
        rewirer.step()
        noisy.append(not torch.equal(layer.values.grad, pull))
        optimizer.step()
    assert rewirer.rewirings == 3
    assert noisy == [True, True, True, False, False, False]
