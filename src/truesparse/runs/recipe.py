"""What is trained on what? A recipe says so: a Python file that defines `model()` and `data()`."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data import DataError
from .errors import ConfigError, RunError
from .user_file import executed, failure, read_source

TASKS = Path(__file__).parent.parent / "tasks"


@dataclass(frozen=True)
class Recipe:
    """A recipe file, read.

    Args:
        name: short name, for folders and titles.
        task: what finds it again: the name of a built-in task, or the absolute path of a file.
        sha256: of the file's text.
        make_model: a new network.
        make_data: (training data, test data).
        loss: of (outputs, targets), a mean over the batch.
        augment: of (inputs, generator), the inputs to train on; or None.
        settings: what the file sets of `RunConfig`.
    """

    name: str
    task: str
    sha256: str
    make_model: Callable[[], nn.Module]
    make_data: Callable[[], tuple[Dataset[Any], Dataset[Any]]]
    loss: Callable[[Any, Tensor], Tensor]
    augment: Callable[[Tensor, Generator], Tensor] | None
    settings: Mapping[str, Any]

    @property
    def path(self) -> Path:
        """Of its file."""
        return _path_of(self.task)


def task_names() -> tuple[str, ...]:
    """The built-in tasks."""
    return tuple(sorted(path.stem.replace("_", "-") for path in TASKS.glob("*.py") if not path.stem.startswith("_")))


def load_recipe(task: str) -> Recipe:
    """The recipe of a built-in task, or of a file given by its path (which ends in `.py`).

    Raises:
        ConfigError: if there is none, or the file does not define what a recipe must.
    """
    is_file = task.endswith(".py")
    if not is_file and task not in task_names():
        raise ConfigError(f"unknown task {task!r}; known are {', '.join(task_names())}, or give the path of a recipe, FILE.py")
    path = _path_of(task)
    source = read_source(path, "recipe", task)
    module = executed(path, "recipe", may_import_neighbours=path.parent != TASKS)
    loss, augment, settings = (getattr(module, name, None) for name in ("loss", "augment", "settings"))
    if settings is not None and not isinstance(settings, Mapping):
        raise ConfigError(f"the recipe {path.name} must define settings as a dict, got {type(settings).__name__}")
    return Recipe(
        name=path.stem.replace("_", "-"),
        task=str(path) if is_file else task,
        sha256=hashlib.sha256(source).hexdigest(),
        make_model=_checked_model(path, _function(module, path, "model", 0)),
        make_data=_checked_data(path, _function(module, path, "data", 0)),
        loss=F.cross_entropy if loss is None else _function(module, path, "loss", 2),
        augment=None if augment is None else _function(module, path, "augment", 2),
        settings=dict(settings or {}),
    )


def _path_of(task: str) -> Path:
    return Path(task).expanduser().resolve() if task.endswith(".py") else TASKS / f"{task.replace('-', '_')}.py"


def unchanged_recipe(task: str, sha256: str, run: Path) -> Recipe:
    """The recipe of the run in the folder `run`.

    Raises:
        ConfigError: if it cannot be read.
        RunError: if its text has another checksum than when the run began.
    """
    recipe = load_recipe(task)
    if recipe.sha256 != sha256:
        raise RunError(f"the recipe {task} has changed since the run in {run} began: restore it, or start anew with another --out")
    return recipe


def _function(module: ModuleType, path: Path, name: str, arguments: int) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if function is None:
        raise ConfigError(f"the recipe {path.name} defines no function {name}(); a recipe defines model() and data()")
    if not callable(function):
        raise ConfigError(f"the recipe {path.name} must define {name} as a function, got {type(function).__name__}")
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError as error:
        expected = {0: "no arguments", 2: "two arguments"}[arguments]
        raise ConfigError(f"{name}() of the recipe {path.name} must take {expected}: {error}") from error
    except ValueError:  # a builtin without a signature
        pass
    return function


def _checked_model(path: Path, function: Callable[[], Any]) -> Callable[[], nn.Module]:
    def make_model() -> nn.Module:
        made = _called(path, "model", function)
        if not isinstance(made, nn.Module):
            raise ConfigError(f"model() of the recipe {path.name} must return a torch.nn.Module, got {type(made).__name__}")
        return made

    return make_model


def _checked_data(path: Path, function: Callable[[], Any]) -> Callable[[], tuple[Dataset[Any], Dataset[Any]]]:
    def make_data() -> tuple[Dataset[Any], Dataset[Any]]:
        made = _called(path, "data", function)
        if not isinstance(made, (tuple, list)) or len(made) != 2:
            raise ConfigError(f"data() of the recipe {path.name} must return (training data, test data), got {type(made).__name__}")
        for part, which in zip(made, ("training", "test"), strict=True):
            if isinstance(part, DataLoader):
                raise ConfigError(
                    f"the {which} data of the recipe {path.name} is a DataLoader: return its data set (loader.dataset); "
                    "--batch-size says how many samples come together, and truesparse shuffles by --seed"
                )
            if not (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
                raise ConfigError(
                    f"the {which} data of the recipe {path.name} must be a data set with a length and items, got {type(part).__name__}"
                )
            if not len(part):
                raise ConfigError(f"the {which} data of the recipe {path.name} is empty")
        return made[0], made[1]

    return make_data


def _called(path: Path, name: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except (ConfigError, DataError):
        raise
    except Exception as error:
        raise ConfigError(failure(f"the recipe {path.name} failed in {name}()", error, path)) from error
