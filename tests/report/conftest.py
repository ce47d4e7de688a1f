"""Runs on the digits, made once: a perceptron dense, masked and truly sparse, and one with a convolution."""

import shutil

import pytest
import torch

from truesparse.runs import load_recipe, make_config, start

CONVOLUTION = """
from torch import nn
from torch.utils.data import TensorDataset

import truesparse.data


def model():
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(384, 300), nn.ReLU(), nn.Linear(300, 10))


def data():
    digits = truesparse.data.load("digits")
    train = TensorDataset(digits.train_images[:640].float() / 16, digits.train_labels[:640])
    return train, TensorDataset(digits.test_images.float() / 16, digits.test_labels)
"""


class Silent:
    def begin(self, plan):
        pass

    def step(self, report):
        pass

    def epoch(self, metrics):
        pass


def trained(task, path, **chosen):
    before = torch.get_num_threads()
    recipe = load_recipe(task)
    try:
        start(make_config(recipe.task, recipe.settings, {"threads": 1, **chosen}), recipe, path, Silent())
    finally:
        torch.set_num_threads(before)
    return path


@pytest.fixture
def train():
    return trained


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "digits"
    return trained("digits-mlp", path, epochs=3, sparsity=0.9, every=10, variants=("dense", "masked", "sparse"))


@pytest.fixture(scope="session")
def convolution(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.py").write_text(CONVOLUTION)
    return trained(str(folder / "tiny.py"), folder / "tiny", epochs=2, sparsity=0.95, every=4, algorithm="set")


@pytest.fixture
def copied(digits, tmp_path):
    """A run to damage."""

    return shutil.copytree(digits, tmp_path / "copied")
