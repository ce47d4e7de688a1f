"""What is to be run? A `RunConfig` says it whole: from it, the recipe and the data, a run follows bit by bit."""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from ..algorithms import Algorithm
from ..topology.budgets import BUDGETS, ER, ERK, Budget
from ..topology.patterns import Pattern, Unstructured
from ..topology.patterns import pattern as named_pattern
from .algorithm import algorithm_kind, full_name, rewiring_ends, short_name
from .devices import AMP, device_here, device_named
from .errors import ConfigError
from .machine import require_cores
from .presets import without_preset

Setting = bool | int | float | str

VARIANTS = ("dense", "masked", "sparse")
SCHEDULES = ("cosine", "constant")
WITH_EPSILON: Mapping[str, type[ER] | type[ERK]] = {"er": ER, "erk": ERK}
STEPS_BETWEEN_REWIRINGS = 100
# These need a closure, sparse gradients or matrices, or keep one history for all parameters.
UNUSABLE_OPTIMIZERS = frozenset({"lbfgs", "sparseadam", "muon"})


def optimizers() -> Mapping[str, type[torch.optim.Optimizer]]:
    """torch's optimizers by their names in lower case."""
    found = {name.lower(): value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    return {
        name: kind
        for name, kind in sorted(found.items())
        if issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer and name not in UNUSABLE_OPTIMIZERS
    }


@dataclass(frozen=True)
class RunConfig:
    """Every choice of a run. A recipe's `settings` may set each of them but `task`.

    Args:
        task: name of a built-in task, or the absolute path of a recipe file.
        variants: what to train side by side: "dense", "masked" (dense + mask), "sparse".
        algorithm: name of a registered algorithm, or the path of a file that defines one, made absolute.
        algorithm_settings: its settings; those left out keep their defaults. A setting `sparsity` is not among them: it is the run's.
        every: steps between two rewirings; None: one epoch, or one step, for algorithms whose paper says so (SET, Deep R), else 100.
        until: share of the training after which the topology stays, in (0, 1]; None: the algorithm's own (1 where the paper goes on to
            the end, 0.95 for DSR), else 0.75.
        sparsity: share of the weights to leave out, in [0, 1).
        budget: how the layers share what is kept.
        epsilon: for budgets er and erk, density by the paper's factor instead of by `sparsity`.
        exclude: names of layers to leave dense; `*` stands for anything.
        pattern: rule that topologies obey, as `patterns.pattern` takes it; None: the algorithm's own (SRigL), else unstructured.
        epochs: passes over the training data.
        batch_size: samples in a step.
        optimizer: of `torch.optim`, by its name in lower case; "sgd" has momentum 0.9.
        learning_rate: at the first step.
        weight_decay: handed to the optimizer.
        schedule: the learning rate falls to 0 along a "cosine", or is "constant".
        warmup: epochs (0.5 is half of one) in which the learning rate rises to `learning_rate`; the schedule comes after them.
        clip: largest norm of all gradients together; None: any.
        activation_l1, activation_l2: factors of the penalty on the outputs of hidden layers.
        decay_grace: steps in which weight decay spares a grown connection.
        ema: decay of the average of the weights that is evaluated beside them; None: no average.
        seed: of every random choice.
        threads: of torch and of the kernels; None: as torch chooses.
        device: on which it trains: "cpu", "cuda", "cuda:1".
        amp: under autocast, "bfloat16" or "float16" (with a gradient scaler); None: without.

    Raises:
        ConfigError: if a choice is out of its range or of the wrong type. The message names its option.
    """

    task: str
    variants: tuple[str, ...] = ("sparse",)
    algorithm: str = "rigl"
    algorithm_settings: Mapping[str, Setting] = field(default_factory=dict)
    every: int | None = None
    until: float | None = None
    sparsity: float = 0.9
    budget: str = "erk"
    epsilon: float | None = None
    exclude: tuple[str, ...] = ()
    pattern: str | None = None
    epochs: int = 5
    batch_size: int = 64
    optimizer: str = "adam"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: str = "cosine"
    warmup: float = 0.0
    clip: float | None = None
    activation_l1: float = 0.0
    activation_l2: float = 0.0
    decay_grace: int = 0
    ema: float | None = None
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    amp: str | None = None

    def __post_init__(self) -> None:
        for name, expected in get_type_hints(type(self)).items():
            object.__setattr__(self, name, _typed(name, getattr(self, name), expected))
        for variant in self.variants:
            _one_of("variants", variant, VARIANTS)
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise ConfigError(f"{option('variants')} must name each variant once, got {','.join(self.variants) or 'none'}")
        object.__setattr__(self, "algorithm", full_name(self.algorithm))
        _one_of("budget", self.budget, tuple(BUDGETS))
        _one_of("optimizer", self.optimizer, tuple(optimizers()))
        _one_of("schedule", self.schedule, SCHEDULES)
        _require("sparsity", self.sparsity, 0 <= self.sparsity < 1, "in [0, 1)")
        _require("epsilon", self.epsilon, self.epsilon is None or 0 < self.epsilon < float("inf"), "greater than 0")
        if self.epsilon is not None and self.budget not in WITH_EPSILON:
            raise ConfigError(f"{option('epsilon')} goes with the budgets {' and '.join(WITH_EPSILON)}, not with {self.budget}")
        _require("every", self.every, self.every is None or self.every >= 1, "at least 1")
        _require("until", self.until, self.until is None or 0 < self.until <= 1, "in (0, 1]")
        _require("epochs", self.epochs, self.epochs >= 1, "at least 1")
        _require("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        _require("learning_rate", self.learning_rate, 0 < self.learning_rate < float("inf"), "greater than 0")
        _require("weight_decay", self.weight_decay, 0 <= self.weight_decay < float("inf"), "at least 0")
        _require("warmup", self.warmup, 0 <= self.warmup < self.epochs, f"at least 0 and less than the {self.epochs} epochs")
        _require("clip", self.clip, self.clip is None or self.clip > 0, "greater than 0")
        for name in ("activation_l1", "activation_l2"):
            _require(name, getattr(self, name), 0 <= getattr(self, name) < float("inf"), "at least 0")
        _require("decay_grace", self.decay_grace, 0 <= self.decay_grace < 2**31, "from 0 to 2^31 - 1")
        if self.decay_grace and not self.weight_decay:
            raise ConfigError(f"{option('decay_grace')} goes with {option('weight_decay')}: without decay there is nothing to spare")
        _require("ema", self.ema, self.ema is None or 0 <= self.ema < 1, "in [0, 1)")
        _require("seed", self.seed, 0 <= self.seed < 2**63, "a whole number from 0 to 2^63 - 1")
        _require("threads", self.threads, self.threads is None or self.threads >= 1, "at least 1")
        device_named(self.device)
        if self.amp is not None:
            _one_of("amp", self.amp, tuple(AMP))
        kind = algorithm_kind(self.algorithm)
        object.__setattr__(self, "algorithm_settings", _algorithm_settings(kind, short_name(self.algorithm), self.algorithm_settings))
        self.make_algorithm()
        self.make_pattern()
        if self.epsilon is not None and _takes_sparsity(kind):
            raise ConfigError(f"--epsilon: {short_name(self.algorithm)} prunes to a sparsity; give --sparsity instead")

    def make_algorithm(self) -> Algorithm:
        """The algorithm with its settings.

        Raises:
            ConfigError: if the algorithm refuses one.
        """
        kind = algorithm_kind(self.algorithm)
        own = {"sparsity": self.sparsity} if _takes_sparsity(kind) else {}
        try:
            return kind(**self.algorithm_settings, **own)
        except ValueError as error:
            raise ConfigError(f"--set: {short_name(self.algorithm)}: {error}") from error

    def make_budget(self) -> Budget:
        """The budget, as `truesparse.sparsify` takes it."""
        return BUDGETS[self.budget] if self.epsilon is None else WITH_EPSILON[self.budget](epsilon=self.epsilon)

    def make_pattern(self) -> Pattern:
        """The pattern, or the algorithm's own.

        Raises:
            ConfigError: if there is none of that name.
        """
        if self.pattern is None:
            return getattr(algorithm_kind(self.algorithm), "default_pattern", Unstructured())
        try:
            return named_pattern(self.pattern)
        except ValueError as error:
            raise ConfigError(f"--pattern: {error}") from error

    @property
    def initial_sparsity(self) -> float:
        """What the model begins with: less than `sparsity` for algorithms that prune on the way (GMP, GraNet)."""
        return getattr(self.make_algorithm(), "start_sparsity", self.sparsity)

    def steps_between_rewirings(self, steps_per_epoch: int) -> int:
        """`every`, or what it stands for when left out."""
        kind = algorithm_kind(self.algorithm)
        if self.every is not None:
            return self.every
        if getattr(kind, "each_step", False):
            return 1
        return steps_per_epoch if getattr(kind, "each_epoch", False) else STEPS_BETWEEN_REWIRINGS

    @property
    def rewiring_ends(self) -> float:
        """`until`, or the share of the training it stands for when left out."""
        return rewiring_ends(algorithm_kind(self.algorithm)) if self.until is None else self.until

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> RunConfig:
        """The config that `to_json` wrote.

        Raises:
            ConfigError: if a name is unknown or a value cannot be.
        """
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown or "task" not in values:
            raise ConfigError(f"expected the settings of a run, got {', '.join(sorted(unknown)) or 'no task'}")
        return cls(**values)


OPTION_NAMES = {"variants": "--compare", "learning_rate": "--lr", "algorithm_settings": "--set", "task": "TASK"}


def option(name: str) -> str:
    """What the command line calls a field of `RunConfig`."""
    return OPTION_NAMES.get(name, f"--{name.replace('_', '-')}")


def make_config(task: str, recipe_settings: Mapping[str, Any], chosen: Mapping[str, Any]) -> RunConfig:
    """The config of a run: what the user chose, then what the recipe sets, then the defaults.

    Raises:
        ConfigError: if the recipe sets something unknown, or a value cannot be.
    """
    known = {field.name for field in dataclasses.fields(RunConfig)} - {"task"}
    unknown = sorted(set(recipe_settings) - known)
    if unknown:
        raise ConfigError(f"the recipe sets {', '.join(map(repr, unknown))}, which are not settings; known are {', '.join(sorted(known))}")
    settings, chosen = without_preset(recipe_settings), without_preset(chosen)
    if "sparsity" in chosen and "epsilon" in chosen:
        raise ConfigError("--sparsity and --epsilon both say how many connections to keep; give one of them")
    if "sparsity" in chosen or chosen.get("budget", settings.get("budget")) not in WITH_EPSILON:
        settings.pop("epsilon", None)
    if "algorithm" in chosen and chosen["algorithm"] != settings.get("algorithm"):
        settings.pop("algorithm_settings", None)
    config = RunConfig(task=task, **{**settings, **chosen})
    # Not a rule of every config: the run of a larger machine can be read here, and goes on with its own number.
    if config.threads is not None:
        require_cores(option("threads"), config.threads)
    device_here(config.device, config.amp)
    return config


def changed_options(old: RunConfig, chosen: Mapping[str, Any]) -> list[str]:
    """What a user who resumes a run asks for that differs from the run, as `--option is ..., not ...`."""
    chosen = without_preset(chosen)
    same_algorithm = full_name(chosen.get("algorithm", old.algorithm)) == old.algorithm
    settings = {**(old.algorithm_settings if same_algorithm else {}), **chosen.get("algorithm_settings", {})}
    wanted = dataclasses.replace(old, **{**chosen, "algorithm_settings": settings})
    return [
        f"{option(name)} {_shown(getattr(old, name))}, not {_shown(getattr(wanted, name))}"
        for name in chosen
        if getattr(old, name) != getattr(wanted, name)
    ]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={setting}" for name, setting in value.items())
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _takes_sparsity(kind: type) -> bool:
    """Whether it is told how sparse the network shall become."""
    return any(field.name == "sparsity" for field in dataclasses.fields(kind))


def _algorithm_settings(kind: type, algorithm: str, given: Mapping[str, Any]) -> Mapping[str, Setting]:
    """All settings of the algorithm but the sparsity, those given and the defaults; text is read as the setting's type."""
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "sparsity"}
    for name in given:
        if name == "sparsity" and _takes_sparsity(kind):
            raise ConfigError(f"--set: the sparsity of {algorithm} is the run's: give --sparsity")
        if name not in fields:
            raise ConfigError(f"--set: {algorithm} has no setting {name!r}; it has {', '.join(fields) or 'none'}")
    settings = {name: field.default for name, field in fields.items() if field.default is not dataclasses.MISSING}
    return settings | {name: _parsed(f"--set: {name} of {algorithm}", value, hints[name]) for name, value in given.items()}


def _parsed(what: str, value: Any, expected: Any) -> Any:
    """A value of the type, read from text if it is text."""
    kinds = _kinds(expected)
    if get_origin(expected) is Literal:
        if value in get_args(expected):
            return value
    elif isinstance(value, str):
        for kind in kinds:
            if kind is bool and value.lower() in ("true", "false"):
                return value.lower() == "true"
            if kind in (int, float, str):
                try:
                    return kind(value)
                except ValueError:
                    continue
            if kind is type(None) and value.lower() == "none":
                return None
    elif float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, tuple(kinds)) and not (isinstance(value, bool) and bool not in kinds):
        return value
    raise ConfigError(f"{what} must be {_type_name(expected)}, got {value!r}")


def _typed(name: str, value: Any, expected: Any) -> Any:
    if name == "algorithm_settings":
        if not isinstance(value, Mapping):
            raise ConfigError(f"{option(name)} must be names with values, got {value!r}")
        return value
    if get_origin(expected) is tuple:
        if isinstance(value, str) or not all(isinstance(item, str) for item in value):
            raise ConfigError(f"{option(name)} must be a list of names, got {value!r}")
        return tuple(value)
    if isinstance(value, str) and str not in _kinds(expected):
        raise ConfigError(f"{option(name)} must be {_type_name(expected)}, got {value!r}")
    return _parsed(option(name), value, expected)


def _kinds(expected: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return get_args(expected) if get_origin(expected) in (Union, types.UnionType) else (expected,)


def _type_name(expected: Any) -> str:
    if get_origin(expected) is Literal:
        return " or ".join(map(str, get_args(expected)))
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none"}
    kinds = _kinds(expected)
    return " or ".join(names.get(kind, str(kind)) for kind in kinds)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{option(name)}: unknown {value!r}; known are {', '.join(known)}")


def _require(name: str, value: Any, holds: bool, range_: str) -> None:
    if not holds:
        raise ConfigError(f"{option(name)} must be {range_}, got {value}")


def as_text(config: RunConfig, extra: Mapping[str, Any]) -> str:
    """The text of `config.json`."""
    return json.dumps({**config.to_json(), **extra}, indent=2) + "\n"
