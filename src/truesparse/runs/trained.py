"""Which network did a run leave behind, and what was it tested on?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import nn

from .batches import Batches
from .errors import RunError
from .folder import RunFolder
from .recipe import load_recipe
from .trainer import EVALUATION_BATCH, data_of
from .variant import made_variant, right_answers


@dataclass(frozen=True, eq=False)
class Trained:
    """A network after the last complete epoch of its run.

    Args:
        name: of the recipe.
        model: in eval mode.
        test: what it was tested on.
    """

    name: str
    model: nn.Module
    test: Batches

    @torch.no_grad()
    def accuracy(self, model: nn.Module) -> float | None:
        """Share of right answers on the test data; None where outputs are not scores of classes.

        Args:
            model: this one, or one packed from it.
        """
        right = answers = 0
        for inputs, targets in self.test.in_order():
            found = right_answers(model(inputs), targets)
            right, answers = right + found[0], answers + found[1]
        return right / answers if answers else None


def trained_network(path: Path, variant: str = "sparse") -> Trained:
    """The network of the run in the folder `path`.

    Raises:
        RunError: if there is no such run, it has not that variant, or has completed no epoch of it.
        ConfigError: if its recipe can no longer be read.
    """
    if not (path / "config.json").is_file():
        raise RunError(f"there is no run in {path}: it has no config.json")
    config, _ = RunFolder(path).read_config()
    if variant not in config.variants:
        raise RunError(f"the run in {path} trained {', '.join(config.variants)}, not {variant}")
    recipe, file = load_recipe(config.task), path / variant / "model.safetensors"
    model = made_variant(variant, config, recipe.make_model())
    try:
        model.load_state_dict(safetensors.torch.load_file(file))
    except OSError as error:
        raise RunError(f"the run in {path} has completed no epoch of {variant}: cannot read {file}") from error
    except (safetensors.SafetensorError, RuntimeError, ValueError, KeyError) as error:
        raise RunError(f"{file} is not the network of this run: {str(error).splitlines()[0]}") from error
    test = Batches(data_of(config, recipe)[1], config.batch_size * EVALUATION_BATCH)
    return Trained(recipe.name, model.eval(), test)
