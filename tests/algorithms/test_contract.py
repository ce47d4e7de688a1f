"""Every registered algorithm keeps the contract, with every pattern; and the contract has teeth."""

import dataclasses
import itertools
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from truesparse import NM, SET, Block, FanIn, Move, Neurons, Rewirer, RigL, SharedFanIn, SRigL, Topology, Unstructured, sparsify, testing
from truesparse.algorithms import ALGORITHMS, DSR, GMP
from truesparse.nn import topology_layers
from truesparse.nn.sparse import SparseLayer
from truesparse.rewiring import rewirer
from truesparse.testing import (
    check_against_masked,
    check_algorithm,
    check_checkpoint,
    check_settings,
    check_update,
    convolution_model,
    default_pattern,
    linear_model,
    refusal,
)
from truesparse.topology.patterns import PATTERNS as KINDS
from truesparse.topology.schedules import Periodic

# Settings to try beside the defaults, by name of the algorithm.
SETTINGS = {
    "set": [{"fraction": 0.5, "grown_std": 0.1, "decay": True}, {"fraction": 1.0}],
    "rigl": [{"fraction": 0.0}, {"fraction": 1.0}],
    "mest": [{"extra": 0.5}],
    "deepr": [{"l1": 0.01, "temperature": 1e-4}],
    "gse": [{"sampling": "uniform"}],
    "cht": [{"fraction": 0.6, "chain": "neighbours", "stop_overlap": 0.0}],
    "chts": [{"decay": True, "magnitude": 0.0, "score": "CH3-L3p", "chain": "none"}],
    "gmp": [{"across": "layers", "start_sparsity": 0.3}, {"criterion": "taylor"}, {"criterion": "random"}],
    "granet": [{"sparsity": 0.97, "fraction": 1.0, "start_sparsity": 0.0}],
    "snfs": [{"fraction": 1.0, "window": 1}],
    "dsr": [{"fraction": 0.5, "threshold": 0.1}],
    "srigl": [{"gamma": 0.0}, {"fraction": 1.0, "gamma": 0.95}],
}
USUAL = [kind() for kind in ALGORITHMS.values()]
OTHERS = [ALGORITHMS[name](**settings) for name, found in SETTINGS.items() for settings in found]
CANDIDATES = [*USUAL, *OTHERS]
# Small layers: what pruning leaves of them is often less than they have rows.
pytestmark = pytest.mark.filterwarnings("ignore:layer .* is nearly pruned away")
PATTERNS = [FanIn(), SharedFanIn(4), NM(2, 4), Block(2), Neurons()]


def product(patterns):
    """Every algorithm with every pattern that it does not refuse."""
    return [pytest.param(a, p, id=f"{a}-{p}") for a, p in itertools.product(CANDIDATES, patterns) if refusal(a, p) is None]


def test_settings_are_of_algorithms_that_exist():
    assert set(SETTINGS) <= set(ALGORITHMS)


@pytest.mark.parametrize("algorithm", USUAL, ids=str)
def test_contract(algorithm):
    check_algorithm(algorithm)


@pytest.mark.parametrize("algorithm", OTHERS, ids=str)
def test_contract_with_other_settings(algorithm):
    """Each clause once: how state follows its connections under each optimizer does not depend on the settings."""
    check_settings(algorithm)
    for pattern in testing.PATTERNS:
        if refusal(algorithm, pattern) is None:
            check_update(algorithm, pattern)
    check_against_masked(algorithm, linear_model, "Adam")
    check_against_masked(algorithm, convolution_model, "momentum")
    check_checkpoint(algorithm)


@pytest.mark.parametrize(
    ("algorithm", "pattern"), product([Unstructured(), FanIn(), SharedFanIn(2), NM(1, 2), NM(3, 4), Block(4), Neurons()])
)
def test_one_update_of_other_shapes(algorithm, pattern):
    for shape, sparsity in (((4, 4), 0.5), ((8, 12), 0.05), ((12, 8), 0.97), ((4, 20), 0.8)):
        check_update(algorithm, pattern, shape, sparsity)


def run(pattern, algorithm, masked, steps=16):
    """(losses, topologies after each step) of a network that the pattern fits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Unflatten(1, (4, 2, 2)), nn.Conv2d(4, 8, 1), nn.Flatten()).double()
    sparsify(model, 0.5, "uniform", pattern, masked=masked, generator=torch.Generator().manual_seed(1), sparsities={"*": 0.5})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    rewirer = Rewirer(model, optimizer, algorithm, every=2, until=steps, generator=torch.Generator().manual_seed(2))
    losses, topologies = [], []
    for step in range(steps):
        draw = torch.Generator().manual_seed(step)
        loss = F.mse_loss(model(torch.randn(6, 12, generator=draw, dtype=torch.float64)), torch.ones(6, 32, dtype=torch.float64))
        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        topologies.append([layer.topology for layer in topology_layers(model).values()])
    assert rewirer.rewirings == steps // 2 - 1
    for layer in topology_layers(model).values():
        pattern.check(layer.topology)
    return losses, topologies


@pytest.mark.parametrize(("algorithm", "pattern"), product(PATTERNS))
def test_training_with_a_pattern_is_that_of_the_masked_twin(algorithm, pattern):
    losses, topologies = run(pattern, algorithm, masked=False)
    masked_losses, masked_topologies = run(pattern, algorithm, masked=True)
    assert all(len(layers) == 2 for layers in topologies)
    for ours, theirs in zip(itertools.chain(*topologies), itertools.chain(*masked_topologies), strict=True):
        assert ours.equal(theirs)
    assert losses == pytest.approx(masked_losses, rel=1e-9)


@pytest.mark.parametrize("algorithm", CANDIDATES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_what_an_algorithm_refuses_the_rewirer_refuses_with_the_reason(algorithm, pattern):
    model = sparsify(nn.Sequential(nn.Linear(12, 16)), 0.5, "uniform", pattern)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    reason = refusal(algorithm, pattern)
    if reason is None:
        Rewirer(model, optimizer, algorithm, until=1000)
    else:
        with pytest.raises(ValueError, match=re.escape(f"layer '0': {reason}")):
            Rewirer(model, optimizer, algorithm, until=1000)


def test_few_combinations_are_refused():
    refused = {(type(a).__name__, type(p).__name__) for a, p in itertools.product(CANDIDATES, testing.PATTERNS) if refusal(a, p)}
    assert {(name, pattern) for name, pattern in refused if name in ("RigL", "SET", "Static")} == set()
    assert {pattern for name, pattern in refused if name == "SRigL"} == {"Unstructured", "NM", "Block", "Neurons"}


def test_a_refusal_without_a_reason_is_noticed():
    class Silent(Wrong):
        def check_pattern(self, pattern):
            raise ValueError

    class Contrary(Wrong):
        default_pattern = FanIn()

        def check_pattern(self, pattern):
            raise ValueError("never")

    with pytest.raises(AssertionError, match="and does not say why"):
        refusal(Silent(), NM(2, 4))
    assert refusal(Contrary(), NM(2, 4)) == "never"
    with pytest.raises(AssertionError, match="refuses its own default_pattern: never"):
        check_algorithm(Contrary())


def test_networks_of_the_contract_have_the_pattern_of_the_paper(monkeypatch):
    seen = []
    monkeypatch.setattr(testing.algorithms, "sparsify", lambda *args, **kwargs: seen.append(kwargs["pattern"]) or sparsify(*args, **kwargs))
    for algorithm in (SRigL(), RigL()):
        check_against_masked(algorithm, linear_model, "SGD", steps=4, every=2)
        check_checkpoint(algorithm)
    assert seen == [FanIn()] * 4 + [Unstructured()] * 4
    assert default_pattern(SRigL()) == FanIn()


# What follows breaks the library on purpose: the checks above must notice.


def no_state_moves(monkeypatch):
    monkeypatch.setattr(rewirer, "following", lambda layer, optimizer, **_: [])


def state_moves_and_grown_connections_inherit(monkeypatch):
    fresh = SparseLayer.moved
    monkeypatch.setattr(
        SparseLayer,
        "moved",
        lambda self, move, array, fill=0.0: torch.where(move.grown, array.flip(0)[: move.new.nnz], fresh(self, move, array, fill)),
    )


def values_stay_where_they_are(monkeypatch):
    def install(self, move):
        self._set_topology(move.new)

    monkeypatch.setattr(SparseLayer, "install", install)


def gradient_of_the_wrong_sample(monkeypatch):
    right = SparseLayer.top_gradients
    monkeypatch.setattr(
        SparseLayer, "top_gradients", lambda self, samples, kept, count: right(self, [(dy.flip(0), x) for dy, x in samples], kept, count)
    )


@pytest.mark.parametrize(
    ("mutation", "optimizers"),
    [
        (no_state_moves, ["momentum", "Adam", "AdamW"]),
        (state_moves_and_grown_connections_inherit, ["momentum", "Adam", "AdamW"]),
        (values_stay_where_they_are, ["SGD", "Adam"]),
        (gradient_of_the_wrong_sample, ["SGD"]),
    ],
)
def test_a_broken_rewiring_is_noticed(monkeypatch, mutation, optimizers):
    mutation(monkeypatch)
    for optimizer in optimizers:
        with pytest.raises(AssertionError, match="the masked twin"):
            check_against_masked(RigL(0.5), linear_model, optimizer, steps=30, every=4)


def test_state_that_does_not_move_is_noticed_under_set_too(monkeypatch):
    no_state_moves(monkeypatch)
    with pytest.raises(AssertionError, match=r"SET.* under Adam: .* the masked twin"):
        check_against_masked(SET(), linear_model, "Adam")
    check_against_masked(SET(), linear_model, "SGD")


def test_rewirings_that_do_not_happen_are_noticed(monkeypatch):
    monkeypatch.setattr(Rewirer, "_rewire", lambda self: None)
    with pytest.raises(AssertionError, match="rewired 0 times in 60 steps"):
        check_against_masked(RigL(), linear_model, "SGD")


@dataclasses.dataclass(frozen=True)
class Wrong:
    """An algorithm that breaks one clause."""

    def update(self, topology, signals):
        return topology


class Shrinks(Wrong):
    def update(self, topology, signals):
        return topology.drop(torch.tensor([0]))


class Unrepeatable(Wrong):
    def update(self, topology, signals):
        return signals.pattern.random(topology.shape, topology.nnz, None)


class WritesValues(Wrong):
    def update(self, topology, signals):
        signals.values.mul_(2)
        return topology


class WritesTopology(Wrong):
    def update(self, topology, signals):
        topology.indices[topology.indptr[:-1].long()[topology.fan_in > 0]] = 0
        return topology


class Transposes(Wrong):
    def update(self, topology, signals):
        return Topology.from_mask(topology.mask().T.contiguous())


class IgnoresThePattern(Wrong):
    def update(self, topology, signals):
        return Unstructured().random(topology.shape, topology.nnz, signals.generator)


class KeepsLongRows(Wrong):
    """Right where all rows are alike, wrong where neurons are ablated."""

    def update(self, topology, signals):
        return topology.grow(torch.tensor([32])) if topology.empty_rows else topology


class MovesOutOfOrder(Wrong):
    def update(self, topology, signals):
        broken = Topology._trusted(topology.shape, topology.indptr, topology.indices.flip(0))
        return Move(topology, broken, torch.arange(topology.nnz))


@pytest.mark.parametrize(
    ("algorithm", "pattern", "error", "says"),
    [
        (Shrinks(), Unstructured(), AssertionError, "made 127 connections of 128"),
        (Unrepeatable(), Unstructured(), AssertionError, "gives another topology from the same generator"),
        (WritesValues(), Unstructured(), AssertionError, "changed its input"),
        (WritesTopology(), Unstructured(), AssertionError, "changed its input"),
        (Transposes(), Unstructured(), AssertionError, r"made shape \(32, 16\) of \(16, 32\)"),
        (IgnoresThePattern(), FanIn(), ValueError, "needs the same count, give or take one, in every row that is not empty"),
        (IgnoresThePattern(), NM(2, 8), ValueError, "needs the same count in every group"),
        (KeepsLongRows(), FanIn(), AssertionError, "made 129 connections of 128"),
        (IgnoresThePattern(), Neurons(), ValueError, "needs whole blocks of 1 x 32"),
        (IgnoresThePattern(), Block(2), ValueError, "needs whole blocks"),
        (MovesOutOfOrder(), Unstructured(), ValueError, "columns must ascend within each row"),
    ],
)
def test_an_update_that_breaks_the_contract_is_noticed(algorithm, pattern, error, says):
    with pytest.raises(error, match=says):
        check_update(algorithm, pattern)


@dataclasses.dataclass(frozen=True)
class WrongTogether:
    """An algorithm for whole networks: counts move from the first layer to the second, by `loses` fewer than the first gives."""

    gives: int = 3
    loses: int = 0
    sparsity: float = 0.9

    def update_network(self, layers, memory):
        first, second = layers.values()
        smaller = first.topology.drop(torch.arange(self.gives))
        larger = second.pattern.grow_random(second.topology, second.topology.nnz + self.gives - self.loses, second.generator)
        return dict(zip(layers, (smaller, larger), strict=True)), memory


class Prunes(WrongTogether):
    keeps_count = False
    start_sparsity = 0.75


class Forgets(WrongTogether):
    def update_network(self, layers, memory):
        return {"first": layers["first"].topology}, memory


def test_counts_may_move_between_the_layers_of_a_network():
    check_update(WrongTogether(), Unstructured())


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        (WrongTogether(loses=1), "made 383 connections of 384"),
        (WrongTogether(loses=-1), "made 385 connections of 384"),
        (Prunes(loses=-1), "made 385 connections of 384, more than there were"),
        (Prunes(loses=2), "ended with 382 connections where its sparsity leaves 154"),
        (Forgets(), r"answered for the layers \['first'\], asked for \['first', 'second'\]"),
    ],
)
def test_counts_that_are_not_kept_by_a_network_are_noticed(algorithm, says):
    with pytest.raises(AssertionError, match=says):
        check_update(algorithm, Unstructured())


def test_an_end_that_is_missed_in_training_is_noticed(monkeypatch):
    check_against_masked(GMP(0.9), linear_model, "SGD", steps=24, every=12)
    monkeypatch.setattr(Periodic, "last", lambda self, step: False)
    with pytest.raises(AssertionError, match=r"GMP.* ended with 133 connections where its sparsity leaves 63"):
        check_against_masked(GMP(0.9), linear_model, "SGD", steps=24, every=12)


def test_a_memory_that_is_not_saved_is_noticed(monkeypatch):
    check_checkpoint(DSR(0.5, threshold=0.1))
    load = Rewirer.load_state_dict
    monkeypatch.setattr(Rewirer, "load_state_dict", lambda self, state: load(self, {**state, "memory": {}}))
    with pytest.raises(AssertionError, match="training on from a checkpoint gives other losses than training on"):
        check_checkpoint(DSR(0.5, threshold=0.1))


def test_settings_that_break_the_contract_are_noticed():
    class Plain:
        def update(self, topology, signals):
            return topology

    @dataclasses.dataclass
    class Open(Plain):
        fraction: float = 0.3

    @dataclasses.dataclass(frozen=True)
    class Forgets(Plain):
        fraction: float = 0.3

        def __post_init__(self):
            object.__setattr__(self, "fraction", self.fraction / 2)

    with pytest.raises(AssertionError, match=r"Plain is no dataclass; decorate it with @register"):
        check_settings(Plain())
    with pytest.raises(AssertionError, match="Open can be changed in place; make it frozen"):
        check_settings(Open())
    with pytest.raises(AssertionError, match="Forgets built from its own settings is another"):
        check_settings(Forgets())


def test_state_outside_the_checkpoint_is_noticed():
    class Remembers(Wrong):
        calls = itertools.count()

        def update(self, topology, signals):
            own = torch.Generator().manual_seed(next(self.calls))
            return signals.pattern.grow_random(signals.pattern.drop(topology, signals.values.abs(), 4), topology.nnz, own)

    with pytest.raises(AssertionError, match="training on from a checkpoint gives other losses than training on"):
        check_checkpoint(Remembers())


def test_the_contract_trains_with_at_least_eight_rewirings():
    assert (testing.STEPS - 1) // testing.EVERY >= 8
    assert {"SGD", "momentum", "Adam", "AdamW"} <= set(testing.OPTIMIZERS)
    assert {type(pattern) for pattern in testing.PATTERNS} == set(KINDS.values())
