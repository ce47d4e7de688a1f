"""Does a network hold a smaller one that would have done as well from the beginning? Rounds of training, pruning and rewinding.

Frankle and Carbin 2019, https://arxiv.org/abs/1803.03635; rewinding to step k: Frankle et al. 2020, https://arxiv.org/abs/1912.05671;
learning-rate rewinding: Renda et al. 2020, https://arxiv.org/abs/2003.02389.

A dense network trains. In each round the smallest weights of the last network go, what is left gets back the weights of step k, and trains
from there on: the ticket. Beside it train, from the first step on, the same connections with new weights ("reinitialised"), and as many
connections in each layer anywhere, with those weights too ("random").
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import safetensors
import safetensors.torch
import torch
from torch import Generator, nn

from ..nn import topology_layers
from ..pruning import prune, rounds
from ..pruning.compete import Across
from ..rewiring import rewire
from ..runs import (
    Beginning,
    ConfigError,
    Observer,
    Plan,
    Recipe,
    RunConfig,
    RunError,
    StepReport,
    make_config,
    resume,
    start,
    trained_network,
)
from ..runs.batches import Batches, derived_seed
from ..runs.config import option
from ..runs.devices import device_named
from ..runs.folder import PRUNING, RunFolder
from ..runs.machine import machine
from ..runs.pruned import beginning_of, described, round_said, sensitivity, with_all_connections
from ..runs.stop import stop_on_signals
from ..runs.trainer import data_of
from .compare import DOCUMENT, PAGE, PICTURE, RUNS, Ending, write
from .document import COMPLETE, Document, RunLine, line_of
from .page import as_page
from .plan import CONTROL, DENSE, Entry
from .plot import write_plot

SETTINGS, POINT = "lottery.json", "rewind-seed{}.safetensors"
TICKET, REINITIALISED, RANDOM = "ticket", "reinitialised", "random"
CONTROLS = (REINITIALISED, RANDOM)
SHARE = 0.2  # of what is left goes in each round, as in the papers


@dataclass(frozen=True)
class Lottery:
    """All terms of a lottery.

    Args:
        recipe: what is trained.
        sparsities: after each round.
        seeds: lotteries, each from another initialisation.
        rewind: step k, to which tickets are rewound: 0 is the initialisation.
        rate_rewinding: whether only the learning rate is rewound, and the weights stay as they have been trained.
        across: who competes, see `truesparse.prune`.
        beside: controls that train too, of `CONTROLS`.
        terms: a config of the dense network.
    """

    recipe: Recipe
    sparsities: tuple[float, ...]
    seeds: int
    rewind: int
    rate_rewinding: bool
    across: Across
    beside: tuple[str, ...]
    terms: RunConfig

    def entry(self, kind: str, sparsity: float | None, seed: int) -> Entry:
        """One run."""
        more = {"variants": ("dense",)} if sparsity is None else {"variants": ("sparse",), "sparsity": sparsity}
        config = RunConfig(**{**self.terms.to_json(), "seed": seed, **more})
        return Entry(kind, sparsity, seed, config)

    def entries(self) -> list[Entry]:
        """In the order of training."""
        found = []
        for seed in range(self.seeds):
            found.append(self.entry(DENSE, None, seed))
            found += [self.entry(kind, sparsity, seed) for sparsity in self.sparsities for kind in (TICKET, *self.beside)]
        return found

    def to_json(self) -> dict[str, Any]:
        """As plain values: what must be the same to go on with it."""
        own = {name: getattr(self, name) for name in ("sparsities", "rewind", "rate_rewinding", "across")}
        return {"recipe_sha256": self.recipe.sha256, **own, "settings": self.terms.to_json()}


def make_lottery(
    recipe: Recipe,
    count: int,
    sparsity: float | None,
    seeds: int,
    rewind: int,
    rate_rewinding: bool,
    across: str,
    beside: Sequence[str],
    chosen: Mapping[str, Any],
) -> Lottery:
    """A lottery of `count` rounds on a task.

    Args:
        sparsity: after the last round; None: each takes a fifth of what is left.
        beside: see `CONTROLS`.
        chosen: other choices of `RunConfig`.

    Raises:
        ConfigError: if a choice is out of its range or unknown.
    """
    unknown = [name for name in beside if name not in CONTROLS]
    if unknown or len(set(beside)) < len(beside):
        raise ConfigError(f"--beside must name each of {', '.join(CONTROLS)} at most once, got {','.join(beside)}")
    if across not in get_args(Across):
        raise ConfigError(f"--across must be one of {', '.join(get_args(Across))}, got {across!r}")
    if seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {seeds}")
    terms = make_config(recipe.task, recipe.settings, {**chosen, "sparsity": 0.0, "algorithm": CONTROL, "variants": ("dense",)})
    if terms.make_pattern().fixes_count:
        raise ConfigError(f"--pattern: {terms.pattern} gives each layer its number of connections, which rounds could not lower")
    try:
        exact = rounds(1 - (1 - SHARE) ** count if sparsity is None else sparsity, count)
    except ValueError as error:
        raise ConfigError(f"--rounds, --sparsity: {error}") from error
    *between, last = (round(1 - float(f"{1 - one:.3g}"), 9) for one in exact)  # three digits of what is left, for names and tables
    found = (*between, last if sparsity is None else sparsity)
    return Lottery(recipe, found, seeds, rewind, rate_rewinding, across, tuple(beside), terms)  # type: ignore[arg-type]


def draw(lottery: Lottery, out: Path, observer: Observer, say: Callable[[str], None]) -> Ending:
    """Trains what is not complete yet, and writes the table and the picture after each round.

    Args:
        lottery: what to train.
        out: folder: new, empty, or of the same lottery, which then goes on to the same bits.
        observer: hears how each run goes.
        say: hears which run comes next.

    Raises:
        ConfigError: before any work, if `out` holds something else, or the task cannot be trained.
        RunError: if a file cannot be read or written, or a network cannot be trained.
    """
    _check_folder(lottery, out)
    steps = _steps(lottery)
    if not 0 <= lottery.rewind < steps:
        raise ConfigError(f"--rewind is a step of the training, from 0 to {steps - 1}, got {lottery.rewind}")
    write(out / SETTINGS, json.dumps(lottery.to_json(), indent=2) + "\n")
    entries = lottery.entries()
    lines = [line_of(entry, out, f"{RUNS}/{entry.name}") for entry in entries]
    shown = _Show(lottery, out, lines)
    with stop_on_signals() as stop:
        for number, entry in enumerate(entries):
            if lines[number].status == COMPLETE and (entry.algorithm != TICKET or (out / RUNS / entry.name / PRUNING).exists()):
                continue
            if stop():
                break
            say(f"{number + 1}/{len(entries)} {entry.described}")
            stopped_by = _Draw(lottery, out, entry.seed).train(entry, observer)
            if stopped_by is not None:
                return shown.ending(stopped_by)
            lines[number] = line_of(entry, out, lines[number].folder)
            shown.write()
        return shown.ending(stop.signal.name if stop.signal else None)


@dataclass(frozen=True)
class _Draw:
    """One lottery of several, by its seed."""

    lottery: Lottery
    out: Path
    seed: int

    def train(self, entry: Entry, observer: Observer) -> str | None:
        """To the end of the run, or to the signal that stops it, whose name is returned."""
        path = self.out / RUNS / entry.name
        hears: Observer = _Remembers(observer, self.point, self.lottery.rewind) if entry.algorithm == DENSE else observer
        if (path / "config.json").exists():
            stopped_by = resume(path, {}, hears).stopped_by
        else:
            shutil.rmtree(path, ignore_errors=True)  # what a process has left that died while it began
            stopped_by = start(entry.config, self.lottery.recipe, path, hears, beginning=self._beginning(entry)).stopped_by
        if stopped_by is None and entry.algorithm == TICKET:
            self._describe(entry, path)
        return stopped_by

    @property
    def point(self) -> Path:
        """Where the weights of step k are."""
        return self.out / POINT.format(self.seed)

    def _beginning(self, entry: Entry) -> Beginning | None:
        if entry.algorithm == DENSE:
            return None
        last = self._network_before(entry)
        if entry.algorithm == TICKET:
            ticket = prune(last, entry.sparsity, across=self.lottery.across, pattern=entry.config.pattern, exclude=entry.config.exclude)
            values = None if self.lottery.rate_rewinding else with_all_connections(self._rewound(), entry.config.exclude)
            return beginning_of(ticket, values, self.lottery.rewind)
        ticket = trained_network(self.out / RUNS / self.lottery.entry(TICKET, entry.sparsity, self.seed).name).model
        values = with_all_connections(self._fresh(derived_seed(self.seed, REINITIALISED)), entry.config.exclude)
        return beginning_of(ticket if entry.algorithm == REINITIALISED else self._scattered(ticket, entry), values)

    def _network_before(self, entry: Entry) -> nn.Module:
        """Trained to the end, from which this round's ticket is cut."""
        assert entry.sparsity is not None
        place = self.lottery.sparsities.index(entry.sparsity)
        before = self.lottery.sparsities[place - 1] if place else None
        return trained_network(self.out / RUNS / self.lottery.entry(TICKET if place else DENSE, before, self.seed).name).model

    def _rewound(self) -> nn.Module:
        """The dense network at step k."""
        model = self._fresh(self.seed)
        if self.lottery.rewind:
            try:
                model.load_state_dict(safetensors.torch.load_file(self.point))
            except (OSError, safetensors.SafetensorError, RuntimeError) as error:
                dense = self.out / RUNS / self.lottery.entry(DENSE, None, self.seed).name
                reason = " ".join(str(error).split())
                raise RunError(f"cannot read {self.point}: {reason:.200}; remove {dense} to have both made anew") from error
        return model

    def _fresh(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.lottery.recipe.make_model()

    def _scattered(self, ticket: nn.Module, entry: Entry) -> nn.Module:
        """With as many connections in each layer, anywhere."""
        generator = Generator().manual_seed(derived_seed(self.seed, RANDOM, str(entry.sparsity)))
        for layer in topology_layers(ticket).values():
            rewire(layer, None, layer.pattern.random(layer.topology.shape, layer.topology.nnz, generator))
        return ticket

    def _describe(self, entry: Entry, path: Path) -> None:
        """What this round and those before it have removed, in the folder of its run."""
        place = self.lottery.sparsities.index(entry.sparsity)  # type: ignore[arg-type]
        earlier = [
            self.lottery.entry(TICKET if number else DENSE, sparsity, self.seed)
            for number, sparsity in enumerate((None, *self.lottery.sparsities[:place]))
        ]
        found = [self._round(one) for one in (*earlier, entry)]
        before = trained_network(self.out / RUNS / earlier[-1].name)
        curves = sensitivity(before, entry.config.exclude)
        RunFolder(path).write_pruning(described(found, curves, criterion="magnitude", across=self.lottery.across))

    def _round(self, entry: Entry) -> dict[str, Any]:
        name = f"{RUNS}/{entry.name}"
        layers = topology_layers(with_all_connections(trained_network(self.out / name).model, entry.config.exclude))
        line = line_of(entry, self.out, name)
        return round_said(entry.sparsity or 0.0, line.test_accuracy, {layer: one.topology.nnz for layer, one in layers.items()})


class _Remembers:
    """The observer of the dense run: keeps its weights of step k, before any checkpoint that comes after."""

    def __init__(self, observer: Observer, path: Path, step: int) -> None:
        self.observer, self.path, self.at = observer, path, step

    def begin(self, plan: Plan) -> None:
        self.observer.begin(plan)

    def step(self, report: StepReport) -> None:
        if (report.epoch - 1) * report.steps + report.step == self.at:
            assert report.model is not None
            weights = {name: tensor.cpu().clone() for name, tensor in report.model.state_dict().items()}
            write(self.path, safetensors.torch.save(weights))
        self.observer.step(report)

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        self.observer.epoch(metrics)


class _Show:
    """Keeps the table and the picture up to date with the runs."""

    def __init__(self, lottery: Lottery, out: Path, lines: list[RunLine]) -> None:
        self.lottery, self.out, self.lines = lottery, out, lines
        self.without_picture: str | None = None

    @property
    def document(self) -> Document:
        lottery, terms = self.lottery, self.lottery.terms.to_json()
        settings = {**terms, "budget": f"by magnitude across {lottery.across}"}
        kinds = (TICKET, *lottery.beside)
        recipe, described = lottery.recipe, machine(device_named(terms["device"]))
        return Document(
            recipe.task,
            recipe.name,
            recipe.sha256,
            settings,
            described,
            kinds,
            lottery.sparsities,
            lottery.seeds,
            tuple(self.lines),
        )

    def write(self) -> None:
        document = self.document
        try:
            write_plot(self.out / PICTURE, document)
        except ConfigError as error:
            self.without_picture = str(error)
        page = as_page(document, PICTURE if self.without_picture is None else None)
        write(self.out / PAGE, page.replace("\n\n", f"\n\n{said(self.lottery)}\n\n", 1))
        write(self.out / DOCUMENT, document.to_json())

    def ending(self, stopped_by: str | None) -> Ending:
        if stopped_by is None:
            self.write()
        return Ending(self.document, stopped_by, self.without_picture)


def said(lottery: Lottery) -> str:
    """What a ticket is here, in a sentence."""
    if lottery.rate_rewinding:
        return f"Tickets keep their trained weights; the learning rate is rewound to step {lottery.rewind}."
    return f"Tickets are rewound to {f'step {lottery.rewind}' if lottery.rewind else 'their initialisation'}."


def _steps(lottery: Lottery) -> int:
    """Of a whole training; that there are a model and data."""
    with torch.random.fork_rng(devices=[]):
        lottery.recipe.make_model()
    return Batches(data_of(lottery.terms, lottery.recipe)[0], lottery.terms.batch_size).steps * lottery.terms.epochs


def _check_folder(lottery: Lottery, out: Path) -> None:
    try:
        taken = out.exists() and any(out.iterdir())
    except OSError as error:
        raise ConfigError(f"cannot use {out} as the lottery's folder: {error.strerror}; choose another --out") from error
    if not taken:
        return
    try:
        before = json.loads((out / SETTINGS).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"the folder {out} is not empty and holds no lottery; choose another --out") from error
    now = json.loads(json.dumps(lottery.to_json()))
    if before.get("recipe_sha256") != now["recipe_sha256"]:
        raise ConfigError(f"the lottery in {out} is of another recipe, or it has changed since: choose another --out")
    flat = [{**one, **one.get("settings", {})} for one in (before, now)]
    changed = [
        f"{option(name)} {flat[0].get(name)}, not {flat[1][name]}"
        for name in flat[1]
        if name != "settings" and flat[0].get(name) != flat[1][name]
    ]
    if changed:
        raise ConfigError(f"the lottery in {out} was made with {'; '.join(changed)}: choose another --out")
