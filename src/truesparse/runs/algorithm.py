"""Which algorithm does a name mean? A registered one, or the one class of a user's own file, FILE.py."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import lru_cache
from pathlib import Path

from ..algorithms import ALGORITHMS
from .errors import ConfigError
from .presets import PRESETS
from .user_file import executed, read_source

WHAT = "algorithm"
REWIRING_ENDS = 0.75  # of the training: RigL's, and what most papers after it have


def is_file(name: str) -> bool:
    """Whether the name is the path of a user's own file."""
    return name.endswith(".py")


def full_name(name: str) -> str:
    """What finds the algorithm again from anywhere: a registered name as it is, a path made absolute."""
    return str(Path(name).expanduser().resolve()) if is_file(name) else name


def short_name(name: str) -> str:
    """What tables and folders call it."""
    return Path(name).stem.replace("_", "-") if is_file(name) else name


def algorithm_kind(name: str) -> type:
    """The class of a registered algorithm, or of a file given by its path.

    Raises:
        ConfigError: if there is none, or the file does not define exactly one algorithm with frozen settings.
    """
    if is_file(name):
        return _defined_in(Path(name), hashlib.sha256(_source(name)).hexdigest())
    if name not in ALGORITHMS:
        known = ", ".join((*ALGORITHMS, *PRESETS))
        raise ConfigError(f"--algorithm: unknown {name!r}; known are {known}, or give the path of your own, FILE.py")
    return ALGORITHMS[name]


def algorithm_sha256(name: str) -> str | None:
    """Checksum of a user's own file, None for a registered algorithm.

    Raises:
        ConfigError: if the file cannot be read.
    """
    return hashlib.sha256(_source(name)).hexdigest() if is_file(name) else None


def usual_terms(kind: type) -> list[str]:
    """Under which terms a run uses it where nothing else is said, a line for each."""
    often = "each step" if getattr(kind, "each_step", False) else "each epoch" if getattr(kind, "each_epoch", False) else "every 100 steps"
    terms = [often] if rewiring_ends(kind) == REWIRING_ENDS else [f"{often}, to {rewiring_ends(kind):.0%} of the training"]
    if hasattr(kind, "default_pattern"):
        terms.append(f"pattern {kind.default_pattern}")
    if hasattr(kind, "start_sparsity"):
        terms.append(f"from sparsity {kind.start_sparsity:g}")
    return terms


def rewiring_ends(kind: type) -> float:
    """The share of the training after which the topology stays, where nothing else is said."""
    return getattr(kind, "rewiring_ends", REWIRING_ENDS)


def _source(name: str) -> bytes:
    return read_source(Path(name), WHAT, name)


@lru_cache
def _defined_in(path: Path, sha256: str) -> type:
    """The algorithm of the file, run once for each of its texts."""
    before = set(ALGORITHMS)
    try:
        module = executed(path, WHAT)
    finally:
        # With @register it would be listed among those of the package, and a second text of the file be refused.
        for name in set(ALGORITHMS) - before:
            del ALGORITHMS[name]
    kinds = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and (hasattr(value, "update") or hasattr(value, "update_network"))
    ]
    if len(kinds) != 1:
        found = ", ".join(kind.__name__ for kind in kinds) or "none"
        raise ConfigError(f"the algorithm {path.name} must define one class with update(topology, signals), found {found}")
    (kind,) = kinds
    if not dataclasses.is_dataclass(kind) or not kind.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        raise ConfigError(f"the settings of {kind.__name__} in {path.name} can change: put @dataclass(frozen=True) above the class")
    missing = [field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING]
    if missing:
        raise ConfigError(f"the settings of {kind.__name__} in {path.name} need default values; {', '.join(missing)} has none")
    return kind
