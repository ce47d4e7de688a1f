"""How does a network begin: dense, masked or sparse, and with which optimizer?"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Generator, nn

from ..nn import sparsify
from .batches import derived_seed
from .config import RunConfig, optimizers
from .errors import ConfigError

MOMENTUM = {"sgd": 0.9}


def made_variant(name: str, config: RunConfig, model: nn.Module) -> nn.Module:
    """`model` as a variant begins: as it is, masked or sparse.

    Raises:
        ConfigError: if it cannot be made sparse this way.
    """
    if name == "dense":
        return model
    try:
        return sparsify(
            model,
            sparsity=config.initial_sparsity,
            budget=config.make_budget(),
            pattern=config.make_pattern(),
            exclude=config.exclude,
            masked=name == "masked",
            generator=Generator().manual_seed(derived_seed(config.seed, "sparsify")),
        )
    except (TypeError, ValueError) as error:
        here = "; here, exclude is --exclude NAME" if "exclude=" in str(error) else ""
        raise ConfigError(f"cannot make the model sparse: {error}{here}") from error


def made_optimizer(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a variant.

    Raises:
        ConfigError: if it refuses a setting, or has none of that name.
    """
    kind = optimizers()[config.optimizer]
    known = inspect.signature(kind).parameters
    settings: dict[str, Any] = {"lr": config.learning_rate}
    if config.optimizer in MOMENTUM:
        settings["momentum"] = MOMENTUM[config.optimizer]
    if "fused" in known:
        settings["fused"] = True  # one call for all parameters: of a small network's step, a quarter was the optimizer's Python
    if "weight_decay" in known:
        settings["weight_decay"] = config.weight_decay
    elif config.weight_decay:
        raise ConfigError(f"--weight-decay: {config.optimizer} has none")
    try:
        return kind(model.parameters(), **settings)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--optimizer {config.optimizer}: {error}") from error
