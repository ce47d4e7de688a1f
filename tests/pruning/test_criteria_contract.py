"""Every criterion keeps the contract, and a user's own class passes or fails it by what it does."""

from dataclasses import dataclass

import pytest
import torch

import truesparse as ts
from truesparse.pruning import CRITERIA, Chosen, History
from truesparse.testing import check_criterion, pruning_data
from truesparse.topology import Topology


def moved(model):
    """A criterion of a history: what a step of training has done to the model."""
    history = History(model)
    for x, target in pruning_data():
        torch.nn.functional.cross_entropy(model(x), target).backward()
    model.zero_grad()
    return ts.criteria.Movement(history)


SHORT = {"synflow": ts.criteria.SynFlow(rounds=4), "movement": moved}
SETTINGS = [ts.criteria.Magnitude(power=2), ts.criteria.OBD("hessian")]


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_keeps_the_contract(name):
    check_criterion(SHORT.get(name) or CRITERIA[name]())


@pytest.mark.parametrize("criterion", SETTINGS, ids=repr)
def test_and_with_other_settings(criterion):
    check_criterion(criterion)


@dataclass(frozen=True)
class Own:
    """A user's criterion: the weights nearest to a number stay."""

    number: float = 0.1

    def scores(self, evidence):
        return -(evidence.weight - self.number).abs()


def test_a_users_own_class_passes():
    check_criterion(Own())


class Loose:
    number = 0.1

    def scores(self, evidence):
        return evidence.weight.abs()


@dataclass(frozen=True)
class Writes(Own):
    def scores(self, evidence):
        return evidence.weight.abs_()


@dataclass(frozen=True)
class Flat(Own):
    def scores(self, evidence):
        return evidence.weight.abs().sum(1)


@dataclass(frozen=True)
class Infinite(Own):
    def scores(self, evidence):
        return 1 / (evidence.weight.abs() - evidence.weight.abs())


@dataclass(frozen=True)
class Draws(Own):
    def scores(self, evidence):
        return torch.rand(evidence.weight.shape)


@dataclass(frozen=True)
class Rebuilt(Own):
    def __post_init__(self):
        object.__setattr__(self, "number", self.number + 1)


@dataclass(frozen=True)
class Grows(Own):
    """Keeps another number than it is asked for."""

    def choose(self, evidence, pattern, count):
        return Chosen(Topology.from_mask(torch.ones_like(evidence.weight)), evidence.weight)


@dataclass(frozen=True)
class Forgets(Own):
    """Of a sparse layer it keeps connections that there are not."""

    def check_pattern(self, pattern):
        if pattern != ts.Unstructured():
            raise ValueError("only unstructured")

    def choose(self, evidence, pattern, count):
        last = torch.arange(evidence.weight.numel()) >= evidence.weight.numel() - count
        first = torch.arange(evidence.weight.numel()) < count
        mask = (last if evidence.present is None else first).view_as(evidence.weight)
        return Chosen(Topology.from_mask(mask), evidence.weight)


@dataclass(frozen=True)
class Silent(Own):
    def check_pattern(self, pattern):
        raise ValueError("")


@dataclass(frozen=True)
class Refuses(Own):
    def check_pattern(self, pattern):
        raise ValueError("no pattern is good enough")


@dataclass(frozen=True)
class Trains(Own):
    """Changes the model while it measures."""

    @property
    def needs(self):
        return (self.wrong,)

    def wrong(self, probe):
        with torch.no_grad():
            next(module for module in probe.model.modules() if isinstance(module, torch.nn.BatchNorm2d)).weight.add_(1)
        return {name: one.grouped(one.parameter.detach()) for name, one in probe.layers.items()}


@pytest.mark.parametrize(
    ("criterion", "said"),
    [
        (Loose(), "Loose is no dataclass"),
        (Rebuilt(), "Rebuilt built from its own settings is another"),
        (Writes(), r"Writes\(number=0.1\) changed its input"),
        (Flat(), r"gives scores of shape \(16,\) for weights of shape \(16, 72\)"),
        (Infinite(), "gives scores that are not finite"),
        (Draws(), "draws from torch's global generator"),
        (Grows(), r"Grows\(number=0.1\) with Unstructured\(\) leaves 1152 connections of layer '0', where 50% leaves 576"),
        (Forgets(), "gives a layer that is sparse already connections that it had not"),
        (Silent(), "refuses Unstructured.* and does not say why"),
        (Refuses(), "refuses all of Unstructured"),
        (Trains(), "changes more of the model than its layers"),
    ],
    ids=lambda part: type(part).__name__,
)
def test_what_breaks_the_contract_is_named(criterion, said):
    with pytest.raises(AssertionError, match=said):
        check_criterion(criterion)
