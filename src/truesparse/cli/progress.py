"""How does someone who waits for a run see how far it is? A bar on a terminal, plain lines elsewhere; both on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..runs import Observer, Plan, StepReport

SECONDS_BETWEEN_LINES = 10.0
SECONDS_BETWEEN_UPDATES = 0.1


@contextmanager
def make_observer() -> Iterator[Observer]:
    """The observer that suits stderr."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    ]
    # Few refreshes: the bar must not take time from what it watches.
    with Progress(*columns, console=console, refresh_per_second=5) as progress:
        yield Bar(progress)


@contextmanager
def show_progress(total: int) -> Iterator[Callable[[str], None]]:
    """What someone calls who comes to the next of `total` parts of a work, with its name."""
    console = Console(stderr=True)
    if not console.is_terminal:
        begun = iter(range(1, total + 1))
        yield lambda name: print(f"{next(begun, total)}/{total} {name}", file=sys.stderr, flush=True)
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=None), TaskProgressColumn(), console=console, refresh_per_second=1
    ) as bars:
        bar = bars.add_task("", total=total, completed=-1)  # a part is done when the next one begins
        yield lambda name: bars.update(bar, advance=1, description=name, refresh=True)
        bars.update(bar, completed=total)


class Lines:
    """A line for each epoch, and one for every ten seconds within it."""

    def __init__(self) -> None:
        self.said = time.monotonic()
        self.epochs = 0

    def begin(self, plan: Plan) -> None:
        self.epochs = plan.epochs
        self._say(opening(plan))

    def step(self, report: StepReport) -> None:
        if time.monotonic() - self.said >= SECONDS_BETWEEN_LINES:
            self._say(f"{_place(report, self.epochs)} loss {report.loss:.4f} {_speed(report)}")

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        self._say(closing(metrics, self.epochs))

    def _say(self, text: str) -> None:
        self.said = time.monotonic()
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A bar over all steps of all variants; a line stays for each epoch."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.epochs = 0
        self.bar = progress.add_task("reading data", total=None, loss="", speed="")
        self.shown = 0.0
        self.waiting = 0

    def begin(self, plan: Plan) -> None:
        self.epochs = plan.epochs
        self.progress.console.print(opening(plan), highlight=False)
        self.progress.reset(self.bar, total=plan.total, completed=plan.done, description="")

    def step(self, report: StepReport) -> None:
        self.waiting += 1
        now = time.monotonic()
        if now - self.shown >= SECONDS_BETWEEN_UPDATES or report.step == report.steps:
            description = _place(report, self.epochs)
            self.progress.update(
                self.bar, advance=self.waiting, description=description, loss=f"loss {report.loss:.4f}", speed=_speed(report)
            )
            self.shown, self.waiting = now, 0

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        self.progress.console.print(closing(metrics, self.epochs), highlight=False)


def opening(plan: Plan) -> str:
    """What is about to happen."""
    behind = f", {plan.done:,} of {plan.total:,} steps behind" if plan.done else ""
    return f"{', '.join(plan.variants)}: {plan.epochs} {'epoch' if plan.epochs == 1 else 'epochs'} of {plan.steps:,} steps{behind}"


def closing(metrics: Mapping[str, Any], epochs: int) -> str:
    """How an epoch went."""
    accuracy = metrics["test_accuracy"]
    tested = f"test loss {metrics['test_loss']:.4f}" + (f" accuracy {accuracy:.2%}" if accuracy is not None else "")
    trained = f"train loss {metrics['train_loss']:.4f}"
    return f"{metrics['variant']:<6} epoch {metrics['epoch']}/{epochs} {trained} {tested} {metrics['seconds']:.1f} s"


def _place(report: StepReport, epochs: int) -> str:
    return f"{report.variant:<6} epoch {report.epoch}/{epochs} step {report.step}/{report.steps}"


def _speed(report: StepReport) -> str:
    return f"{report.step / report.seconds:.0f} steps/s" if report.seconds else ""
