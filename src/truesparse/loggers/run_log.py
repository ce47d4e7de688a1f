"""How does a run get into its logs, each epoch once, however often it is stopped? The logs follow the files of the run."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import safetensors.torch
from safetensors import safe_open

from ..common.files import write_atomically
from ..runs import Outcome, Plan, RunError, StepReport
from ..topology import Topology
from . import record
from .destinations import Destination
from .protocol import Logger, Subject

FILE = "logs.json"
MOST_EPOCHS_DRAWN = 20


class RunLog:
    """An observer of a run that brings its logs up to date after each epoch. A log that fails is warned of once and left alone.

    What a log has is written into the run's `logs.json`: a resumed run goes on from there, and brings what a failing log lacks.

    Args:
        folder: of the run.
        destinations: where to log.
        warn: hears, in a line, of a log that fails.
    """

    def __init__(self, folder: Path, destinations: Sequence[Destination], warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder, warn
        self._destinations = tuple(destinations)
        self._epochs = 0
        self._state: dict[str, Any] = {}
        self._open: dict[tuple[str, str], Logger] = {}  # by kind and variant; without those that have failed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for (name, variant), logger in list(self._open.items()):
            self._guarded(name, variant, logger.close)
        self._open.clear()

    def begin(self, plan: Plan) -> None:
        """
        Raises:
            RunError: if a log cannot be opened for a new run, which has not trained yet.
        """
        if not self._destinations:
            return
        self._epochs = plan.epochs
        self._state = _read(self.folder) or {"id": uuid.uuid4().hex, "logs": {}}
        for destination in self._destinations:
            known = self._state["logs"].get(destination.kind)
            if known is None or known["place"] != destination.place:
                self._state["logs"][destination.kind] = {"place": destination.place, "logged": {}, "complete": []}
            complete = self._state["logs"][destination.kind]["complete"]
            for variant in (name for name in plan.variants if name not in complete):
                self._open_log(destination, variant, new=not plan.done)
        self._write_state()
        self._catch_up()

    def step(self, report: StepReport) -> None:
        pass

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        self._catch_up()

    def end(self, outcome: Outcome) -> None:
        """Log the closing table of a run that is complete."""
        self._catch_up()
        if outcome.results is None:
            return
        for line in outcome.results.to_json()["variants"]:
            for kind, variant in list(self._open):
                complete = self._state["logs"][kind]["complete"]
                if variant == line["variant"] and variant not in complete:
                    logger, numbers = self._open[kind, variant], record.results(line)
                    if self._guarded(kind, variant, partial(_results, logger, numbers)):
                        complete.append(variant)
        if self._open:
            self._write_state()

    def _open_log(self, destination: Destination, variant: str, new: bool) -> None:
        kind = destination.kind
        logged = self._state["logs"][kind]["logged"].get(variant, -1)
        subject = Subject(self.folder.resolve().name, variant, self.folder.resolve(), f"{self._state['id']}-{variant}", logged)
        try:
            self._open[kind, variant] = destination.open(subject)
        except Exception as error:  # anything at all may be wrong in a library, on a server or in a user's class
            what = f"cannot open the log {_named(destination)}: {_reason(error)}"
            if new:
                raise RunError(f"{what}; mend that, or start anew without it and with another --out: nothing is trained yet") from error
            self.warn(f"{what}; the run goes on without it")
            return
        if logged < 0:
            choices = json.loads((self.folder / "config.json").read_text())
            self._guarded(kind, variant, partial(self._open[kind, variant].settings, record.settings({**choices, "variant": variant})))

    def _catch_up(self) -> None:
        """Log all epochs that are on disk and not yet in a log."""
        if not self._open:
            return
        lines = _lines(self.folder)
        for kind, variant in list(self._open):
            logged = self._state["logs"][kind]["logged"]
            own = {line["epoch"]: line for line in lines if line["variant"] == variant}
            for epoch in range(logged.get(variant, -1) + 1, max(own, default=0) + 1):
                if (epoch == 0 or epoch in own) and not self._guarded(
                    kind, variant, partial(self._log_epoch, self._open[kind, variant], variant, epoch, own.get(epoch))
                ):
                    break
                logged[variant] = epoch
        self._write_state()

    def _log_epoch(self, logger: Logger, variant: str, epoch: int, line: Mapping[str, Any] | None) -> None:
        every = -(-self._epochs // MOST_EPOCHS_DRAWN)
        topologies = _topologies(self.folder, variant, epoch)
        drawn = epoch % every == 0
        before = _topologies(self.folder, variant, epoch - every) if drawn and epoch else None
        if line is None:
            record.log_pictures(logger, topologies, epoch)
        elif drawn:
            record.log_report(logger, line, topologies, epoch, before or None)
        else:
            record.log_numbers(logger, line, topologies, epoch)
        logger.flush()

    def _guarded(self, kind: str, variant: str, action: Callable[[], None]) -> bool:
        """Whether it worked. A log must not cost anyone the run: what fails is told once, and not tried again."""
        try:
            action()
        except Exception as error:
            self._open.pop((kind, variant), None)
            said = f"the {kind} log of {variant} failed: {_reason(error)}; the run goes on without it"
            self.warn(f"{said}, and --resume brings what it lacks")
            return False
        return True

    def _write_state(self) -> None:
        try:
            write_atomically(self.folder / FILE, json.dumps(self._state, indent=2) + "\n")
        except OSError as error:
            self.warn(f"cannot write {self.folder / FILE}: {error.strerror}; the run goes on without logs")
            self._open.clear()


def remembered(folder: Path) -> dict[str, str]:
    """Where the run in `folder` is logged, by kind; nothing if it is not.

    Raises:
        RunError: if its file is damaged.
    """
    state = _read(folder)
    return {} if state is None else {kind: log["place"] for kind, log in state["logs"].items()}


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / FILE
    try:
        state = json.loads(path.read_text())
        if not isinstance(state["id"], str) or not all(log.keys() >= {"place", "logged", "complete"} for log in state["logs"].values()):
            raise ValueError("it is not of this program")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{path} is damaged: {error}; remove it, and logs begin anew") from error
    return state


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _topologies(folder: Path, variant: str, epoch: int) -> dict[str, Topology]:
    """Those of every layer that has one, after `epoch`; nothing for a dense network."""
    path = folder / variant / "topologies" / f"epoch-{epoch:04d}.safetensors"
    if not path.exists():
        return {}
    with safe_open(str(path), "pt") as file:
        shapes = json.loads(file.metadata()["truesparse"])["shapes"]
    arrays = safetensors.torch.load_file(str(path))
    return {
        name: Topology((rows, columns), arrays[f"{name}.indptr"], arrays[f"{name}.indices"]) for name, (rows, columns) in shapes.items()
    }


def _results(logger: Logger, numbers: Mapping[str, float]) -> None:
    logger.results(numbers)
    logger.flush()


def _named(destination: Destination) -> str:
    return f"{destination.kind} {destination.place}".strip()


def _reason(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
