"""In which order do checks, runs and files come? Nothing is begun before all is checked; the table follows every run that ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ..common.files import write_atomically
from ..runs import ConfigError, RunConfig, RunError
from ..runs.config import changed_options
from ..runs.devices import device_named
from ..runs.folder import RunFolder
from ..runs.machine import machine, require_cores
from .document import COMPLETE, Document, RunLine, line_of, make_document, read_document
from .page import as_page
from .plan import Comparison, Entry
from .plot import write_plot
from .workers import Job, train_all

DOCUMENT, PAGE, PICTURE, RUNS = "comparison.json", "comparison.md", "comparison.png", "runs"


class Audience(Protocol):
    """Hears how a comparison goes."""

    def begin(self, runs: int, complete: int) -> None:
        """Of so many runs so many are complete already."""
        ...

    def begun(self, entry: Entry, done: int, total: int) -> None:
        """A run begins, or goes on after `done` of its `total` steps."""
        ...

    def advanced(self, entry: Entry, done: int) -> None:
        """`done` steps of the run are behind."""
        ...

    def ended(self, entry: Entry, line: RunLine) -> None:
        """A run is complete, has failed, or was stopped (it is then waiting)."""
        ...


@dataclass(frozen=True)
class Ending:
    """How a comparison ended.

    Args:
        document: what came out; it is in the folder, with the table.
        stopped_by: the name of the signal that stopped it early.
        without_picture: why there is none.
    """

    document: Document
    stopped_by: str | None
    without_picture: str | None


def compare(comparison: Comparison, out: Path, jobs: int, audience: Audience) -> Ending:
    """Trains what is not complete yet, and writes `comparison.json`, `comparison.md` and `comparison.png`.

    Args:
        comparison: what to train.
        out: folder: new, empty, or of the same comparison, whose runs then go on. Algorithms, sparsities and seeds may be others.
        jobs: runs at a time, each in its own process.
        audience: hears how it goes.

    Raises:
        ConfigError: before any work, if `out` holds something else, or the task cannot be trained.
        RunError: if a file cannot be read or written.
    """
    require_cores("--jobs", jobs)
    before = _checked_folder(comparison, out)
    lines = [line_of(entry, out, f"{RUNS}/{entry.name}") for entry in comparison.entries]
    waiting = [number for number, line in enumerate(lines) if line.status != COMPLETE]
    if waiting:
        _check_task(comparison)
    described = before.machine if before is not None and not waiting else machine(device_named(comparison.terms.device))
    show = _Show(comparison, out, described, lines, waiting, audience)
    show.write()
    audience.begin(len(lines), len(lines) - len(waiting))
    to_train = [Job(comparison.entries[number].config, out / lines[number].folder) for number in waiting]
    stopped_by = train_all(to_train, jobs, show)
    return Ending(show.document, stopped_by, show.draw())


class _Show:
    """Keeps the files up to date with the runs, and the audience informed."""

    def __init__(
        self,
        comparison: Comparison,
        out: Path,
        described: Mapping[str, Any],
        lines: list[RunLine],
        waiting: Sequence[int],
        audience: Audience,
    ) -> None:
        self.comparison, self.out, self.machine = comparison, out, described
        self.lines, self.waiting, self.audience = lines, waiting, audience
        self.picture = (out / PICTURE).exists()

    @property
    def document(self) -> Document:
        return make_document(self.comparison, self.machine, self.lines)

    def begun(self, job: int, done: int, total: int) -> None:
        self.audience.begun(self._entry(job), done, total)

    def advanced(self, job: int, done: int) -> None:
        self.audience.advanced(self._entry(job), done)

    def ended(self, job: int, complete: bool, reason: str | None) -> None:
        number = self.waiting[job]
        self.lines[number] = line_of(self._entry(job), self.out, self.lines[number].folder, reason)
        self.write()
        self.audience.ended(self._entry(job), self.lines[number])

    def write(self) -> None:
        document = self.document
        write(self.out / DOCUMENT, document.to_json())
        write(self.out / PAGE, as_page(document, PICTURE if self.picture else None))

    def draw(self) -> str | None:
        """Draws the picture; or why not."""
        try:
            write_plot(self.out / PICTURE, self.document)
        except ConfigError as error:
            return str(error)
        self.picture = True
        self.write()
        return None

    def _entry(self, job: int) -> Entry:
        return self.comparison.entries[self.waiting[job]]


def _checked_folder(comparison: Comparison, out: Path) -> Document | None:
    """What is in it, once it is sure that it belongs to this comparison; None if it is empty."""
    try:
        taken = out.exists() and any(out.iterdir())
    except OSError as error:
        raise ConfigError(f"cannot use {out} as the comparison's folder: {error.strerror}; choose another --out") from error
    if not taken:
        return None
    if not (out / DOCUMENT).exists():
        raise ConfigError(f"the folder {out} is not empty and holds no comparison; choose another --out")
    before = read_document(out / DOCUMENT)
    if before.task != comparison.recipe.task:
        raise ConfigError(f"the comparison in {out} is of {before.task}, not {comparison.recipe.task}; choose another --out")
    if before.recipe_sha256 != comparison.recipe.sha256:
        raise ConfigError(f"the recipe {before.task} has changed since the comparison in {out} began: restore it, or choose another --out")
    _refuse_other_terms(RunConfig.from_json(before.settings), comparison.terms, f"the comparison in {out}", "choose another --out")
    for entry in comparison.entries:
        path = out / RUNS / entry.name
        if (path / "config.json").exists():
            try:
                config, _ = RunFolder(path).read_config()
            except RunError as error:
                raise ConfigError(f"{error}; or remove {path} to train it anew") from error
            _refuse_other_terms(config, entry.config, f"the run in {path}", "choose another --out, or remove that folder")
    return before


def _refuse_other_terms(before: RunConfig, now: RunConfig, what: str, advice: str) -> None:
    changed = changed_options(before, now.to_json())
    if changed:
        raise ConfigError(f"{what} was made with {'; '.join(changed)}: {advice}")


def _check_task(comparison: Comparison) -> None:
    """That there are a model and data; here and once, not in every process at the same time."""
    with torch.random.fork_rng(devices=[]):
        comparison.recipe.make_model()
        comparison.recipe.make_data()


def write(path: Path, content: str | bytes) -> None:
    """A file of the folder, whole or not at all.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        kept = "what was written before is whole. Free space or make the folder writable, then ask again"
        raise RunError(f"cannot write {path}: {error.strerror}; {kept}") from error
