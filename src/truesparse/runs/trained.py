"""Which network did a run leave behind, or does a file hold, and what was it tested on?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..export import FileError, SavedModel, load
from ..nn import sparsify
from .batches import Batches
from .errors import ConfigError, RunError
from .folder import AVERAGE, NETWORK, RunFolder
from .made import made_variant
from .measure import right_answers
from .recipe import Recipe, load_recipe, unchanged_recipe
from .trainer import EVALUATION_BATCH, data_of

PREFERRED = ("sparse", "masked", "dense")
BATCH_OF_A_FILE = 256  # in which test data are read where no run says how


@dataclass(frozen=True, eq=False)
class Trained:
    """A network with its weights.

    Args:
        name: of the recipe.
        said: where the network is from, for people.
        model: in eval mode.
        read_test: reads what the network was tested on.
        read_training: reads what it was trained on.
    """

    name: str
    said: str
    model: nn.Module
    read_test: Callable[[], Batches]
    read_training: Callable[[], Batches]

    @cached_property
    def test(self) -> Batches:
        """What it was tested on. Read when first asked for."""
        return self.read_test()

    def example(self, samples: int) -> Tensor:
        """An input of that many samples, from the test data: over again where there are fewer.

        Raises:
            ConfigError: if the inputs are no tensors.
        """
        inputs = self.test.first(samples)
        if not isinstance(inputs, Tensor):
            raise ConfigError(f"the inputs of {self.name} must be tensors, got {type(inputs).__name__}")
        return inputs[torch.arange(samples, device="cpu") % len(inputs)]

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float | None:
        """Share of right answers on the test data; None where outputs are not scores of classes.

        Args:
            model: this one, or one packed from it.
        """
        right: Tensor | int = 0
        answers = 0
        for inputs, targets in self.test.in_order():
            found = right_answers(model(inputs), targets)
            right, answers = right + found[0], answers + found[1]
        return int(right) / answers if answers else None


def trained_network(path: Path, variant: str | None = None) -> Trained:
    """The network of the run in the folder `path`, after its last complete epoch: with averaged weights where the run has them.

    Args:
        path: of the run.
        variant: "dense", "masked" or "sparse"; None: the sparse one, if there is one.

    Raises:
        RunError: if there is no such run, it has not that variant, has completed no epoch of it, or its recipe has changed.
        ConfigError: if its recipe can no longer be read.
    """
    if not (path / "config.json").is_file():
        raise RunError(f"there is no run in {path}: it has no config.json")
    config, recipe_sha256 = RunFolder(path).read_config()
    name = variant or next(one for one in PREFERRED if one in config.variants)
    if name not in config.variants:
        raise RunError(f"the run in {path} trained {', '.join(config.variants)}, not {name}")
    recipe = unchanged_recipe(config.task, recipe_sha256, path)
    file = next((file for file in (path / name / AVERAGE, path / name / NETWORK) if file.exists()), None)
    if file is None:
        raise RunError(f"the run in {path} has completed no epoch of {name}: cannot read {path / name / NETWORK}")
    with torch.random.fork_rng(devices=[]):
        model = made_variant(name, config, recipe.make_model())
    try:
        model.load_state_dict(safetensors.torch.load_file(file))
    except (OSError, safetensors.SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise RunError(f"{file} is not the network of this run: {' '.join(str(error).split()):.300}") from error
    said = f"{path}: {name}{', averaged weights' if file.name == AVERAGE else ''}"
    size = config.batch_size * EVALUATION_BATCH
    read_test, read_training = (lambda part=part: Batches(data_of(config, recipe)[part], size) for part in (1, 0))
    return Trained(recipe.name, said, model.eval(), read_test, read_training)


def saved_network(path: Path, task: str) -> Trained:
    """The network of a file that `truesparse.save` has written.

    Args:
        path: of the file.
        task: the built-in task, or FILE.py, whose `model()` the weights belong to.

    Raises:
        ConfigError: if the recipe cannot be read or does not work.
        FileError: if the file cannot be read, or does not fit the model.
    """
    recipe, saved = load_recipe(task), load(path)
    with torch.random.fork_rng(devices=[]):
        model = recipe.make_model()
        try:
            model = _with_sparse_layers(model, saved)
        except (TypeError, ValueError) as error:
            raise FileError(f"{path} does not fit the model of {recipe.name}: {error}") from error
    return Trained(recipe.name, str(path), load(path, model).eval(), lambda: _data(recipe, 1), lambda: _data(recipe, 0))


def _data(recipe: Recipe, part: int) -> Batches:
    with torch.random.fork_rng(devices=[]):
        return Batches(recipe.make_data()[part], BATCH_OF_A_FILE)


def _with_sparse_layers(model: nn.Module, saved: SavedModel) -> nn.Module:
    """The model with sparse layers where the file has them, whatever their connections."""
    if not saved.layers:
        return model
    missing = saved.layers.keys() - {name for name, _ in model.named_modules()}
    if missing:
        raise ValueError(f"it has no layer {', '.join(map(repr, sorted(missing)[:5]))}")
    dense = [module for name, module in model.named_modules() if not any(_is_within(layer, name) for layer in saved.layers)]
    return sparsify(model, exclude=dense)


def _is_within(name: str, outer: str) -> bool:
    return not outer or name == outer or name.startswith(f"{outer}.")
