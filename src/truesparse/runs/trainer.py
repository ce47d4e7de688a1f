"""In which order do variants, epochs and files come? Epoch by epoch, the variants in turn, each epoch on disk before the next."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from ..common.processor import cores
from ..distributed import ALONE, Processes
from .batches import Batches, derived_seed
from .config import RunConfig, changed_options
from .devices import device_here
from .errors import ConfigError, RunError
from .folder import AVERAGE, NETWORK, RunFolder, damaged_checkpoint
from .layers import described as described_layers
from .machine import machine
from .measure import inference_seconds
from .recipe import Recipe, unchanged_recipe
from .results import INFERENCE_SAMPLES, Results, make_results
from .stop import StopRequest, stop_on_signals
from .variant import Beginning, Metrics, StepReport, Variant

EVALUATION_BATCH = 4  # times the batch of training: no gradients are held


@dataclass(frozen=True)
class Plan:
    """What is ahead: `epochs` of `steps` for each variant, and how many steps of all of them are behind."""

    variants: tuple[str, ...]
    epochs: int
    steps: int
    done: int

    @property
    def total(self) -> int:
        return len(self.variants) * self.epochs * self.steps


class Observer(Protocol):
    """Hears how a run goes."""

    def begin(self, plan: Plan) -> None: ...

    def step(self, report: StepReport) -> None: ...

    def epoch(self, metrics: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True)
class Observers:
    """Several observers as one, heard in turn."""

    all: tuple[Observer, ...]

    def begin(self, plan: Plan) -> None:
        for observer in self.all:
            observer.begin(plan)

    def step(self, report: StepReport) -> None:
        for observer in self.all:
            observer.step(report)

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        for observer in self.all:
            observer.epoch(metrics)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with results, or stopped by a signal; or with both, when that came too late to stop anything."""

    results: Results | None
    stopped_by: str | None


def start(
    config: RunConfig,
    recipe: Recipe,
    path: Path,
    observer: Observer,
    processes: Processes = ALONE,
    beginning: Beginning | None = None,
) -> Outcome:
    """Trains all variants of a new run in the folder `path`.

    Where several processes train it together, each calls this; the first one writes, and has the results.

    Args:
        config, recipe: what is trained, and how.
        path: new or empty.
        observer: hears how it goes.
        processes: that train it together.
        beginning: what is done to each network first. A checkpoint has it, so that `resume` need not know.

    Raises:
        ConfigError: if the recipe or a choice turns out not to work.
        RunError: if the folder is not empty or cannot be written, or a loss is no longer a number.
    """
    config, folder, variants = _begun(config, recipe, path, processes, beginning)
    return _train(config, recipe, folder, variants, observer)


def begin(config: RunConfig, recipe: Recipe, path: Path, beginning: Beginning) -> None:
    """The same without any training: a run that `resume` can go on with, whose networks are those of its beginning."""
    _begun(config, recipe, path, ALONE, beginning)


def _begun(
    config: RunConfig, recipe: Recipe, path: Path, processes: Processes, beginning: Beginning | None
) -> tuple[RunConfig, RunFolder, list[Variant]]:
    config = _with_threads(config, processes)
    folder = RunFolder(path, processes.rank == 0)
    if folder.writes:
        folder.check_new()
    described = machine(device_here(config.device, config.amp))
    variants = _variants(config, recipe, data_of(config, recipe), {}, processes, beginning)
    folder.create()  # not before everything that can be wrong with the choices has had its chance
    if beginning is not None:  # before the config, with which it is a run: `resume` could not make this anew
        _write_beginnings(folder, variants)
        for variant in variants:
            folder.write_network(variant.name, variant.epoch, variant.model, _described(variant), NETWORK)
            folder.write_checkpoint(variant.name, variant.state())
    folder.write_config(config, recipe.sha256, described)
    if beginning is None:
        _write_beginnings(folder, variants)
    return config, folder, variants


def resume(path: Path, chosen: Mapping[str, Any], observer: Observer, processes: Processes = ALONE) -> Outcome:
    """Goes on with the run in the folder `path`, as if it had never stopped.

    Args:
        path: the folder of the run.
        chosen: choices the user states again, which must be those of the run, but for `device`: it may go on on another one, on which
            numbers are rounded otherwise.
        observer: hears how it goes.
        processes: that go on with it together; they may be other ones than before.

    Raises:
        RunError: if there is no run, a file is damaged, or a choice or the recipe has changed.
    """
    folder = RunFolder(path, processes.rank == 0)
    config, recipe_sha256 = folder.read_config()
    changed = changed_options(config, {name: value for name, value in chosen.items() if name != "device"})
    if changed:
        raise RunError(f"the run in {path} was started with {'; '.join(changed)}: leave the option out, or start anew with another --out")
    recipe = unchanged_recipe(config.task, recipe_sha256, path)
    elsewhere = chosen.get("device", config.device) != config.device
    config = dataclasses.replace(config, device=chosen.get("device", config.device))
    described = machine(device_here(config.device, config.amp))
    folder.remove_partial_files()
    config = _with_threads(config, processes)
    data = data_of(config, recipe)
    states = {name: state for name in config.variants if (state := folder.read_checkpoint(name)) is not None}
    try:
        variants = _variants(config, recipe, data, states, processes)
    except ConfigError:
        raise
    except (KeyError, RuntimeError, ValueError, TypeError) as error:
        # The file could be read but is not the state of this run.
        raise RunError(damaged_checkpoint(path, str(error).splitlines()[0])) from error
    if elsewhere:
        folder.write_config(config, recipe_sha256, described)
    _write_beginnings(folder, [variant for variant in variants if variant.name not in states])
    return _train(config, recipe, folder, variants, observer)


def _with_threads(config: RunConfig, processes: Processes) -> RunConfig:
    """The config with the number of threads written out: other threads, other rounding. Several processes share the cores."""
    threads = config.threads
    if processes.size > 1:
        fair = max(cores() // int(os.environ.get("LOCAL_WORLD_SIZE", processes.size)), 1)
        threads = fair if threads is None else min(threads, fair)
    if threads is not None:
        torch.set_num_threads(threads)
    return dataclasses.replace(config, threads=torch.get_num_threads())


def data_of(config: RunConfig, recipe: Recipe) -> tuple[Dataset[Any], Dataset[Any]]:
    """(training data, test data) of a run: its seed decides what is random about them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(config.seed, "data"))
        return recipe.make_data()


def _variants(
    config: RunConfig,
    recipe: Recipe,
    data: tuple[Dataset[Any], Dataset[Any]],
    states: Mapping[str, Mapping[str, Any]],
    processes: Processes,
    beginning: Beginning | None = None,
) -> list[Variant]:
    device = device_here(config.device, config.amp)
    train = Batches(data[0], config.batch_size, config.seed, recipe.augment, device)
    test = Batches(data[1], config.batch_size * EVALUATION_BATCH, device=device)
    return [Variant(name, config, recipe, train, test, states.get(name), processes, beginning) for name in config.variants]


def _write_beginnings(folder: RunFolder, variants: Sequence[Variant]) -> None:
    """What is known before the first step: the layers, and the topologies they begin with."""
    for variant in variants:
        folder.write_topologies(variant.name, variant.epoch, variant.model)
    if variants:
        chosen = next((variant for variant in variants if variant.rewirer is not None), variants[0])
        folder.write_layers(described_layers(chosen.config, chosen.model, chosen.test.first(1), chosen.train.steps))


def _train(config: RunConfig, recipe: Recipe, folder: RunFolder, variants: Sequence[Variant], observer: Observer) -> Outcome:
    steps = variants[0].train.steps
    done = sum(variant.epoch * steps + variant.step for variant in variants)
    observer.begin(Plan(config.variants, config.epochs, steps, done))
    processes = variants[0].processes
    with stop_on_signals(insists=processes.size == 1) as stop:
        for epoch in range(config.epochs):
            for variant in variants:
                if variant.epoch <= epoch:
                    _train_turn(variant, variants, folder, observer, stop)
                stopping = stop() if processes.size == 1 else not processes.all(not stop(), variant.device)
                if stopping and not all(variant.finished for variant in variants):
                    return Outcome(None, stop.signal.name if stop.signal else None)
    if not folder.writes:
        return Outcome(None, None)
    folder.write_metrics(_lines(variants))
    example, device = variants[0].test.first(INFERENCE_SAMPLES), variants[0].device
    with variants[0].autocast():
        inference = inference_seconds({variant.name: variant.model for variant in variants}, example, device=device)
    shares = {variant.name: variant.share_of_dx() for variant in variants}
    histories = {variant.name: variant.history for variant in variants}
    results = make_results(
        recipe.name, min(INFERENCE_SAMPLES, variants[0].test.samples), machine(device), histories, inference, shares, steps
    )
    folder.write_results(results.to_json())
    return Outcome(results, stop.signal.name if stop.signal else None)


def _train_turn(variant: Variant, variants: Sequence[Variant], folder: RunFolder, observer: Observer, stop: StopRequest) -> None:
    """One variant's (rest of an) epoch, and its files. The metrics follow the checkpoint, from which they are made anew if lost."""
    complete = variant.train_epoch(observer.step, stop)
    if complete:
        described = _described(variant)
        folder.write_epoch(variant.name, variant.epoch, variant.model, described)
        if variant.updates is not None:
            folder.write_updates(variant.name, variant.epoch, variant.model, variant.last_updates, variant.updates.every)
        if variant.average is not None:
            with variant.average.applied():
                folder.write_network(variant.name, variant.epoch, variant.model, described, AVERAGE)
    folder.write_checkpoint(variant.name, variant.state())
    if complete:
        folder.write_metrics(_lines(variants))
        observer.epoch(variant.history[-1])


def _described(variant: Variant) -> dict[str, Any]:
    return {"task": variant.recipe.name, "seed": variant.config.seed}


def _lines(variants: Sequence[Variant]) -> list[Metrics]:
    return sorted((line for variant in variants for line in variant.history), key=lambda line: line["epoch"])
