"""Every criterion keeps the contract, and a user's own class passes or fails it by what it does."""

import pytest
import torch

import truesparse as ts
from truesparse.pruning import CRITERIA, History
from truesparse.testing import check_criterion, pruning_data


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
