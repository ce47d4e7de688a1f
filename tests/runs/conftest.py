"""A recipe that draws random numbers wherever a recipe can, and runs of it that can be stopped at a step."""

import json
import os
import signal
from pathlib import Path

import pytest

from truesparse.runs import load_recipe, make_config, start

RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

import truesparse.data

settings = {"epochs": 3, "batch_size": 128, "every": 5, "learning_rate": 3e-3, "sparsity": 0.8, "threads": 1}


def model():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(512, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def data():
    digits = truesparse.data.load("digits")
    chosen = torch.randperm(1433)[:1200]
    train = TensorDataset(digits.train_images[chosen].float() / 16, digits.train_labels[chosen])
    return train, TensorDataset(digits.test_images.float() / 16, digits.test_labels)


def augment(inputs, generator):
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
"""


@pytest.fixture
def write_recipe(tmp_path):
    def write_recipe(text: str = RECIPE, name: str = "mine.py") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write_recipe


@pytest.fixture
def recipe(write_recipe):
    return load_recipe(write_recipe())


class Listener:
    """Hears a run, and sends this process a signal after one of its steps."""

    def __init__(self, stop_at: tuple[str, int, int] | None = None, number: int = signal.SIGINT) -> None:
        self.stop_at, self.number = stop_at, number
        self.steps: list[tuple[str, int, int]] = []
        self.epochs: list[tuple[str, int]] = []
        self.plan = None

    def begin(self, plan):
        self.plan = plan

    def step(self, report):
        self.steps.append((report.variant, report.epoch, report.step))
        if self.steps[-1] == self.stop_at:
            os.kill(os.getpid(), self.number)

    def epoch(self, metrics):
        self.epochs.append((metrics["variant"], metrics["epoch"]))


@pytest.fixture
def listener():
    return Listener


@pytest.fixture
def begin(recipe):
    """Starts a run of the recipe."""

    def begin(path: Path, heard=None, **chosen):
        return start(make_config(recipe.task, recipe.settings, chosen), recipe, path, heard or Listener())

    return begin


def files_of(path: Path) -> dict[str, bytes]:
    """The files that equal runs have equal: networks, topologies, and metrics but for the seconds."""
    files = {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*.safetensors"))}
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return files | {
        "metrics": json.dumps([{name: line[name] for name in line if not name.startswith("seconds")} for line in lines]).encode()
    }


@pytest.fixture(name="files_of")
def files_of_fixture():
    return files_of
