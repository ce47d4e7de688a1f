"""Where shall a run be logged, and what opens a log there? All that can be found wrong before the run starts is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..common.optional import MissingLibrary
from ..runs import ConfigError
from ..runs.user_file import executed, read_source
from . import mlflow, tensorboard, wandb
from .protocol import Logger, Subject

OpenLogger = Callable[[Subject], Logger]


@dataclass(frozen=True)
class Destination:
    """One place to log to.

    Args:
        kind: one of `KINDS`.
        place: what a person gave: a folder, an address, a project or a file; "" is the usual one.
        open: makes the log of one network there.
    """

    kind: str
    place: str
    open: OpenLogger


def destination(kind: str, place: str) -> Destination:
    """
    Raises:
        ConfigError: if the place cannot be.
        MissingLibrary: if the library is not installed; the message names the extra.
    """
    return KINDS[kind](place)


def destinations(places: Mapping[str, str]) -> tuple[Destination, ...]:
    """`destination` of each kind and place."""
    return tuple(destination(kind, place) for kind, place in places.items())


def _tensorboard(place: str) -> Destination:
    tensorboard.require()
    folder = Path(place).expanduser().resolve() if place else None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ConfigError(f"--tensorboard: {folder} is no folder")

    def opened(subject: Subject) -> Logger:
        parent = subject.folder / "tensorboard" if folder is None else folder / subject.run
        return tensorboard.TensorBoard(parent / subject.variant, first_step=subject.logged + 1)

    return Destination("tensorboard", "" if folder is None else str(folder), opened)


def _mlflow(place: str) -> Destination:
    try:
        uri = mlflow.address(place or None)
        mlflow.client(uri)
    except MissingLibrary:
        raise
    except Exception as error:  # mlflow's own, and those of what it stands on
        raise ConfigError(f"--mlflow: cannot use {place or 'the usual place'}: {str(error).splitlines()[0]}") from error
    if urlsplit(uri).password:
        raise ConfigError("--mlflow: leave the password out of the address, which the run's folder keeps: set MLFLOW_TRACKING_PASSWORD")

    def opened(subject: Subject) -> Logger:
        tags = {"truesparse.run": subject.run, "truesparse.variant": subject.variant}
        return mlflow.MLflow(uri, f"{subject.run} {subject.variant}", subject.id, tags)

    return Destination("mlflow", uri, opened)


def _wandb(place: str) -> Destination:
    wandb.require()

    def opened(subject: Subject) -> Logger:
        return wandb.WandB(place or None, f"{subject.run} {subject.variant}", subject.id, subject.run, subject.folder)

    return Destination("wandb", place, opened)


def _own(place: str) -> Destination:
    path = Path(place).expanduser().resolve()
    read_source(path, "logger", place)
    module = executed(path, "logger")
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and hasattr(value, "scalars")
    ]
    if len(kinds) != 1:
        found = ", ".join(kind.__name__ for kind in kinds) or "none"
        raise ConfigError(f"the logger {path.name} must define one class with scalars(values, step), found {found}")
    missing = [name for name in vars(Logger) if not name.startswith("_") and not hasattr(kinds[0], name)]
    if missing:
        raise ConfigError(
            f"{kinds[0].__name__} in {path.name} lacks {', '.join(missing)}: "
            "derive it from truesparse.loggers.Logger, where they do nothing"
        )
    try:
        inspect.signature(kinds[0]).bind(None)
    except TypeError as error:
        raise ConfigError(f"{kinds[0].__name__} in {path.name} must take a Subject as its only argument: {error}") from error
    return Destination("logger", str(path), kinds[0])


KINDS: Mapping[str, Callable[[str], Destination]] = {"tensorboard": _tensorboard, "mlflow": _mlflow, "wandb": _wandb, "logger": _own}
