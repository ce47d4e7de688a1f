"""Whole steps: the same network three times, checked first, its rewiring shared out, its parts noted."""

import pytest
import torch
from torch import nn

import truesparse
from truesparse import SharedFanIn
from truesparse.bench import NETWORKS, StepCase, WrongResult, measure_steps, steps
from truesparse.bench.networks import Density, Network
from truesparse.bench.request import Conditions
from truesparse.bench.steps import Training, step_work
from truesparse.ops.cpu import MatrixKernels
from truesparse.runs import ConfigError

QUICK = Conditions((1,), seconds=0.02)


def measured(network, peaks, density=Density(0.5), budget="erk"):  # noqa: B008
    return next(iter(measure_steps([StepCase(network, density, budget)], QUICK, [peaks], lambda name: None)))


def test_a_row(tiny_network, peaks):
    row = measured(tiny_network, peaks)
    assert row.plain_seconds.keys() == {"dense", "masked", "sparse"}
    assert row.rewiring_seconds.keys() == {"masked", "sparse"}
    assert row.seconds["dense"] == row.plain_seconds["dense"]
    for way in ("masked", "sparse"):
        shared = (99 * row.plain_seconds[way] + row.rewiring_seconds[way]) / 100
        assert row.seconds[way] == pytest.approx(shared)
        assert row.times_as_fast[way] == row.seconds["dense"] / row.seconds[way]
        assert row.phases[way]["rewiring"] == pytest.approx(shared - row.plain_seconds[way])
    assert row.phases["sparse"].keys() == {"forward", "backward", "optimizer", "rewiring"}
    assert (row.batch, row.every, row.density, row.budget) == (6, 100, "50 %", "erk")
    assert row.connections == round((1 - row.sparsity) * (4 * 18 + 1000))


def test_a_pattern_is_kept_and_named(peaks):
    make = lambda: nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 16))  # noqa: E731
    network = Network("net", make, lambda batch: (torch.randn(batch, 20), torch.randint(16, (batch,))), 6, ())
    (row,) = measure_steps([StepCase(network, Density(0.55), "uniform", pattern=SharedFanIn(16))], QUICK, [peaks], lambda name: None)
    whole = 16 * 14  # columns of the second layer; the first stays dense
    assert (row.named, row.connections) == ("net, SharedFanIn(rows=16)", 32 * 20 + whole)


def test_an_epsilon(tiny_network, peaks):
    row = measured(tiny_network, peaks, Density(epsilon=2))
    assert (row.density, row.budget, row.connections) == ("epsilon 2", "er", min(2 * (4 + 2) * 9, 72) + 2 * 110)


def test_a_wrong_kernel_is_not_timed(tiny_network, peaks, monkeypatch):
    backward = MatrixKernels.backward

    def wrong(*given):
        dvalues, dx, dbias = backward(*given)
        return dvalues.flip(0), dx, dbias

    monkeypatch.setattr(MatrixKernels, "backward", wrong)
    monkeypatch.setattr(steps, "interleaved", None)
    with pytest.raises(WrongResult, match=r"tiny, 50 %: the gradient of 4.weight of sparse is wrong: off by .*; nothing is timed"):
        measured(tiny_network, peaks)


def test_a_network_that_cannot_be_made_sparse(peaks):
    network = Network("odd", lambda: nn.Sequential(nn.ReLU()), lambda batch: (torch.randn(batch, 2), torch.zeros(batch)), 1, ())
    with pytest.raises(ConfigError, match=r"odd at 50 %: found no nn\.Linear"):
        measured(network, peaks)


def test_rewiring_happens_in_the_pair_and_only_there(tiny_network):
    model = truesparse.sparsify(tiny_network.make(), 0.5)
    training = Training(model, tiny_network.example(6), QUICK.autocast)
    before = model[4].topology
    for _ in range(3):
        training.step()
    assert model[4].topology is before
    training.rewiring_pair()
    assert model[4].topology is not before
    assert len(training.marks) == 3, "only plain steps are noted"
    assert training.medians().keys() == {"forward", "backward", "optimizer"}
    assert training.rewirer.rewirings == 1


def test_work_of_a_step_by_hand():
    model = truesparse.sparsify(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), 0.5)
    first, last = model[0].topology.nnz, model[2].topology.nnz
    # The first layer's input needs no gradient: y and dW. Ten positions: 2 x 5.
    assert step_work(model, torch.randn(2, 5, 6)) == 10 * (2 * first + 3 * last)


# With biases and norms: ResNet-20 of the paper's table 6 has 0.27 M.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cifar-mlp", 3072 * 4000 + 4000 + 4000 * 1000 + 1000 + 1000 * 4000 + 4000 + 4000 * 10 + 10),
        ("resnet20", 269_722),
        ("gpt", (65 + 256) * 384 + 6 * (12 * 384**2 + 9 * 384 + 4 * 384) + 2 * 384 + 385 * 65),
    ],
)
def test_networks_are_what_they_are_called(name, parameters):
    assert sum(parameter.numel() for parameter in NETWORKS[name].make().parameters()) == parameters


def test_a_language_model_sees_only_what_came_before():
    network = NETWORKS["gpt"]
    model, (tokens, following) = network.make().eval(), network.example(1)
    assert torch.equal(tokens[:, 1:], following[:, :-1])
    changed = tokens.clone()
    changed[0, 100] = (changed[0, 100] + 1) % 65
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert before.shape == (1, 256, 65)
    assert torch.equal(before[:, :100], after[:, :100])
    assert not torch.allclose(before[:, 100:], after[:, 100:])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
@pytest.mark.filterwarnings("ignore:Reliance on distutils:UserWarning")
def test_compiled_networks_are_measured_beside(tiny_network, peaks, monkeypatch):
    tried, check = [], steps._check

    def wrong_at_first(said, models, *given):
        tried.extend(models)
        if tried.count("dense_compiled") == 1 and "dense_compiled" in models:
            raise WrongResult("as inductor gives it")
        check(said, models, *given)

    monkeypatch.setattr(steps, "_check", wrong_at_first)
    case = StepCase(tiny_network, Density(0.5), compiled=True)
    (row,) = measure_steps([case], QUICK, [peaks], lambda name: None)
    assert row.plain_seconds.keys() == {"dense", "masked", "sparse", "dense_compiled", "sparse_compiled"}
    assert row.rewiring_seconds.keys() == {"masked", "sparse", "sparse_compiled"}
    assert row.compiled_over_compiled == row.seconds["dense_compiled"] / row.seconds["sparse_compiled"]
    assert row.compile_options == {"dense_compiled": "layout_optimization=False"}
    assert tried[-3:] == ["dense_compiled", "dense_compiled", "sparse_compiled"]
