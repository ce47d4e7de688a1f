"""Averages follow their connections: against torch's own average where nothing rewires, and dicts by (row, column) where it does."""

import copy

import pytest
import torch
from oracles import pairs_of
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from training import backward, topologies, two_layers

import truesparse as ts
from truesparse.nn import topology_layers
from truesparse.stability import Average

DECAY = 0.7


def test_without_rewiring_it_is_that_of_torch():
    model = two_layers()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    average, torchs = Average(model, decay=DECAY), AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    for step in range(6):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        average.update()
        torchs.update_parameters(model)
    with average.applied():
        for mine, other in zip(model.parameters(), torchs.module.parameters(), strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("algorithm", [ts.RigL(0.5), ts.SET(0.5, grown_std=0.3)])
def test_averages_follow_their_connections(algorithm, masked):
    model = two_layers(masked)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    rewirer = ts.Rewirer(model, optimizer, algorithm, every=3, generator=torch.Generator())
    average = Average(model, rewirer, DECAY)
    layers = topology_layers(model)

    def values():
        return {
            name: dict(zip(sorted(pairs_of(layer.topology)), layer.of_connections(layer.parameter.detach()).tolist(), strict=True))
            for name, layer in layers.items()
        }

    followed = values()
    grown = {}
    rewirer.register_hook(lambda moves: grown.update({name: move.grown for name, move in moves.items()}))
    for step in range(10):
        optimizer.zero_grad()
        backward(model, step)
        grown.clear()
        before = topologies(model)
        steps = rewirer.step()
        if steps:
            optimizer.step()
        now = values()
        for name, layer in layers.items():
            if name in grown:
                new = dict(zip(sorted(pairs_of(layer.topology)), grown[name].tolist(), strict=True))
                followed[name] = {pair: now[name][pair] if new[pair] else followed[name][pair] for pair in now[name]}
                assert pairs_of(before[name]) != set(followed[name])
        if steps:
            average.update()
            for name, mine in now.items():
                first = average.updates == 1
                followed[name] = {
                    pair: value if first else DECAY * followed[name][pair] + (1 - DECAY) * value for pair, value in mine.items()
                }
    with average.applied():
        found = values()
    for name in followed:
        assert found[name] == pytest.approx(followed[name], rel=1e-12, abs=1e-15)
    if masked:
        assert all(int((layer.weight != 0).sum()) <= layer.topology.nnz for layer in layers.values())


@pytest.mark.parametrize("masked", [False, True])
def test_a_mean_is_of_the_updates_since_a_connection_grew(masked):
    """Stochastic weight averaging: against the values noted at each update, by (row, column)."""
    model = two_layers(masked)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    rewirer = ts.Rewirer(model, optimizer, ts.SET(0.5, grown_std=0.3), every=3, generator=torch.Generator())
    average = Average(model, rewirer, decay=None)
    resumed = None
    noted: dict = {name: {} for name in topology_layers(model)}
    started: dict = {name: {} for name in topology_layers(model)}

    def values(name):
        layer = rewirer.layers[name]
        return dict(zip(sorted(pairs_of(layer.topology)), layer.of_connections(layer.parameter.detach()).tolist(), strict=True))

    def rewired(moves):
        for name, move in moves.items():
            grown = dict(zip(sorted(pairs_of(move.new)), move.grown.tolist(), strict=True))
            noted[name] = {pair: [] if new else noted[name][pair] for pair, new in grown.items()}
            started[name] = values(name)

    rewirer.register_hook(rewired)
    for step in range(10):
        optimizer.zero_grad()
        backward(model, step)
        rewirer.step()
        optimizer.step()
        if (step + 1) % 3:  # a rewiring comes after the step, and the average has no time for what came before
            average.update()
            for name in noted:
                for pair, value in values(name).items():
                    noted[name].setdefault(pair, []).append(value)
        if step == 6:
            resumed = Average(model, decay=None)
            resumed.load_state_dict(average.state_dict())
            before = {name: held.clone() for name, held in average._averages.items()}
            average.load_state_dict(resumed.state_dict())
            assert all(torch.equal(held, before[name]) for name, held in average._averages.items())
    assert rewirer.rewirings == 3
    lengths = set()
    with average.applied():
        for name in noted:
            expected = {pair: sum(seen) / len(seen) if seen else started[name][pair] for pair, seen in noted[name].items()}
            assert values(name) == pytest.approx(expected, rel=1e-12, abs=1e-15)
            lengths |= {len(seen) for seen in noted[name].values()}
    assert len(lengths) > 2
    with pytest.raises(ValueError, match=r"the state is of an average with a decay and this one is a mean \(decay=None\), or the other"):
        average.load_state_dict(Average(model).state_dict())


def with_norm(masked):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 12), torch.nn.BatchNorm1d(12), torch.nn.ReLU(), torch.nn.Linear(12, 4)).double()
    return ts.sparsify(model, 0.6, masked=masked, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("decay", [DECAY, None])
@pytest.mark.parametrize("rewires", [False, True])
def test_statistics_of_norms_are_those_of_the_averages_while_they_are_applied(decay, rewires):
    """`update_bn` inside: against torch's AveragedModel where nothing rewires, and the masked twin where something does."""
    loader = [torch.randn(6, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(3)]
    answers, of_torch = [], []
    for masked in (False, True):
        model = with_norm(masked)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        algorithm = ts.RigL(0.5) if rewires else ts.Static()
        rewirer = ts.Rewirer(model, optimizer, algorithm, every=3, generator=torch.Generator().manual_seed(0))
        average = Average(model, rewirer, decay)
        torchs = AveragedModel(model, multi_avg_fn=None if decay is None else get_ema_multi_avg_fn(decay))
        for step in range(8):
            optimizer.zero_grad()
            backward(model, step)
            if rewirer.step():
                optimizer.step()
                average.update()
                if not rewires:
                    torchs.update_parameters(model)
        before = copy.deepcopy(dict(model.named_buffers()))
        with average.applied():
            update_bn(loader, model)
            model.eval()
            answers.append(model(loader[0]).detach())
            model.train()
        assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
        if not rewires:
            update_bn(loader, torchs)
            torchs.eval()
            of_torch.append(torchs(loader[0]).detach())
    torch.testing.assert_close(*answers)
    for mine, other in zip(answers, of_torch, strict=False):
        torch.testing.assert_close(mine, other)


def test_torchs_own_average_is_right_once_rewiring_has_ended_and_refuses_before():
    model = two_layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewirer = ts.Rewirer(model, optimizer, ts.SET(0.5), every=2, until=4, generator=torch.Generator())
    early, late = AveragedModel(model), None
    values = []
    for step in range(8):
        optimizer.zero_grad()
        backward(model, step)
        rewirer.step()
        optimizer.step()
        if step >= 4:
            late = late or AveragedModel(model)
            late.update_parameters(model)
            values.append(model[0].values.detach().clone())
        early.update_parameters(model)
    torch.testing.assert_close(late.module[0].values.detach(), sum(values) / len(values))
    late(torch.ones(1, 8, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"average with ts\.stability\.Average"):
        early(torch.ones(1, 8, dtype=torch.float64))


def test_applied_changes_nothing_for_good():
    model = two_layers()
    average = Average(model, decay=DECAY)
    average.update()
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    x = torch.ones(1, 8, dtype=torch.float64)
    trained = model(x)
    with average.applied():
        assert all(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), kept, strict=True))
        assert not torch.equal(model(x), trained)
    assert torch.equal(model(x), trained)
    with pytest.raises(ValueError, match="shape"), average.applied():
        model(x[:, :3])
    assert torch.equal(model(x), trained), "also after an error"


def test_training_inside_applied_is_refused():
    average = Average(two_layers())
    with pytest.raises(RuntimeError, match=r"the model has its averages as weights: leave applied\(\)"), average.applied():
        average.update()


def test_a_rewiring_it_did_not_hear_of():
    model = two_layers()
    average = Average(model)
    layer = model[0]
    ts.rewire(layer, None, layer.topology.drop(torch.tensor([0])))
    with pytest.raises(RuntimeError, match=r"the average of '0\.values' has shape .* pass the Rewirer that changes the model"):
        average.update()


def test_a_state_stays_what_it_was():
    model, other = two_layers(), two_layers()
    average, resumed = Average(model, decay=DECAY), Average(other, decay=DECAY)
    average.update()
    state = average.state_dict()
    kept = copy.deepcopy(state)
    resumed.load_state_dict(state)
    with torch.no_grad():
        for parameter in (*model.parameters(), *other.parameters()):
            parameter += 1
    for one in (average, resumed):
        one.update()
        with one.applied(), torch.no_grad():
            for parameter in one.model.parameters():
                parameter.mul_(2)
    assert state["updates"] == kept["updates"] == 1
    for name, mine in kept["averages"].items():
        assert torch.equal(state["averages"][name], mine), name


def test_an_average_begins_with_values_of_its_own():
    model = two_layers()
    average = Average(model, decay=DECAY)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    with average.applied():
        assert all(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True))


def test_states():
    model = two_layers()
    average = Average(model, decay=DECAY)
    average.update()
    other = Average(two_layers(), decay=DECAY)
    other.load_state_dict(average.state_dict())
    assert other.updates == 1
    smaller = ts.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 12)), 0.9).double()
    with pytest.raises(ValueError, match=r"the averages of 0\.values, 2\.bias, 2\.values do not fit this model"):
        Average(smaller).load_state_dict(average.state_dict())
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        Average(model, decay=1)
