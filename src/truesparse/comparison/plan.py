"""Which runs make a comparison? Every algorithm at every sparsity with every seed, on terms that are otherwise equal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runs import ConfigError, Recipe, RunConfig, make_config
from ..runs.algorithm import short_name

DENSE = "dense"
OWN_TERMS = ("every", "until")  # what one algorithm may have otherwise than the others, beside its settings
CONTROL = "static"  # its settings are those that all runs share


def percent(sparsity: float) -> str:
    """For people: 90%, 98.1%."""
    return f"{sparsity * 100:.6g}%"


@dataclass(frozen=True)
class Entry:
    """One run.

    Args:
        algorithm: what the table calls it: a registered name, a preset, the name of a user's file, and its own terms; or "dense".
        sparsity: None for the dense network.
        seed: of every random choice.
        config: of the run.
    """

    algorithm: str
    sparsity: float | None
    seed: int
    config: RunConfig

    @property
    def name(self) -> str:
        """Of its folder."""
        return "-".join([self.algorithm.replace(" ", "-"), *([] if self.sparsity is None else [str(self.sparsity)]), f"seed{self.seed}"])

    @property
    def described(self) -> str:
        """For people: "rigl 95% seed 0"."""
        return " ".join([self.algorithm, *([] if self.sparsity is None else [percent(self.sparsity)]), f"seed {self.seed}"])


@dataclass(frozen=True)
class Comparison:
    """All runs of a comparison, and what they share.

    Args:
        recipe: what is trained.
        algorithms: rows of the table, without the dense network.
        sparsities: its columns, ascending.
        seeds: runs of each pair: seeds 0, 1, ...
        terms: a config of the static algorithm, which stands for the settings that all runs share.
        entries: the runs, one seed after the other, so that a table can be read before all is done.
    """

    recipe: Recipe
    algorithms: tuple[str, ...]
    sparsities: tuple[float, ...]
    seeds: int
    terms: RunConfig
    entries: tuple[Entry, ...]


def make_comparison(
    recipe: Recipe, algorithms: Sequence[str], sparsities: Sequence[float], seeds: int, dense: bool, chosen: Mapping[str, Any]
) -> Comparison:
    """The comparison of `algorithms` on a task.

    Args:
        recipe: what is trained.
        algorithms: registered names, presets, or paths of users' files, each with its own terms after colons if wanted: a
            setting of the algorithm, `every` or `until`, as in "set:every=100:fraction=0.5".
        sparsities: each in [0, 1).
        seeds: how many, at least 1.
        dense: whether the dense network is trained too, once for each seed.
        chosen: other choices of `RunConfig`, the same for all runs.

    Raises:
        ConfigError: if a choice is out of its range, named twice, or unknown.
    """
    own_terms = dict(map(_row, algorithms))
    rows = [_row(given)[0] for given in algorithms]
    for option, given in (("--algorithms", rows), ("--sparsity", sparsities)):
        if not given or len(set(given)) < len(given):
            raise ConfigError(f"{option} must name each once, got {','.join(map(str, given)) or 'none'}")
    if DENSE in rows:
        raise ConfigError("--algorithms: the dense network is trained by itself; leave it out with --no-dense")
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    sparsities = sorted(sparsities)

    def config(**more: Any) -> RunConfig:
        return make_config(recipe.task, recipe.settings, {**chosen, **more})

    entries = []
    for seed in range(seeds):
        if dense:
            entries.append(Entry(DENSE, None, seed, config(algorithm=CONTROL, seed=seed, variants=("dense",))))
        for sparsity in sparsities:
            for row in rows:
                entries.append(Entry(row, sparsity, seed, config(**own_terms[row], sparsity=sparsity, seed=seed, variants=("sparse",))))
    terms = config(algorithm=CONTROL, variants=("sparse",))
    return Comparison(recipe, tuple(rows), tuple(sparsities), seeds, terms, tuple(entries))


def _row(given: str) -> tuple[str, dict[str, Any]]:
    """(name of the row, its own choices of a `RunConfig`) of an algorithm as the user gives it."""
    name, *pairs = given.split(":")
    own: dict[str, Any] = {}
    settings: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--algorithms: expected NAME:SETTING=VALUE, such as set:every=100, got {given!r}")
        if key in own or key in settings:
            raise ConfigError(f"--algorithms: {key} is given twice in {given!r}")
        if key in OWN_TERMS:
            own[key] = _number(given, value)
        else:
            settings[key] = value
    if settings:
        own["algorithm_settings"] = settings
    return " ".join([short_name(name), *pairs]), {"algorithm": name, **own}


def _number(given: str, text: str) -> int | float:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        raise ConfigError(f"--algorithms: expected a number, got {text!r} in {given!r}") from None
