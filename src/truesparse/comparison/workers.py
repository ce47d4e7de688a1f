"""How are many runs trained at a time, so that one that dies takes no other with it? In processes that live over many runs.

A process is told its next run through a pipe and says through it how the run goes. Signals are the parent's alone: on the first Ctrl-C it
asks each process to save and stop. A process whose parent has died finds the pipe closed at its next word, and ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..data import DataError
from ..runs import ConfigError, Plan, RunConfig, RunError, StepReport, load_recipe, resume, start
from ..runs.folder import RunFolder
from ..runs.stop import StopRequest, stop_on_signals

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

SECONDS_BETWEEN_WORDS = 0.2
SECONDS_TO_SAVE = 60.0


@dataclass(frozen=True)
class Job:
    """A run to train, or to go on with, in the folder `path`."""

    config: RunConfig
    path: Path


@dataclass(frozen=True)
class Begun:
    """A run of `total` steps has begun, `done` of them are behind."""

    done: int
    total: int


@dataclass(frozen=True)
class Advanced:
    """`done` steps of a run are behind."""

    done: int


@dataclass(frozen=True)
class Ended:
    """A run is over: complete, stopped on the way, or failed for a reason."""

    complete: bool
    reason: str | None = None


class Watcher(Protocol):
    """Hears how the jobs go, by their index."""

    def begun(self, job: int, done: int, total: int) -> None: ...

    def advanced(self, job: int, done: int) -> None: ...

    def ended(self, job: int, complete: bool, reason: str | None) -> None: ...


def train_all(jobs: Sequence[Job], processes: int, watcher: Watcher) -> str | None:
    """Trains the runs, the first ones first, up to `processes` at a time.

    Returns:
        The name of the signal that stopped it early; all runs then go on from where they are when asked for again. None: all have ended.
    """
    with stop_on_signals() as stop:
        crew = _Crew(jobs, watcher, stop)
        try:
            crew.hire(min(processes, len(jobs)))
            while crew.busy:
                crew.listen()
        finally:
            crew.dismiss()
        return stop.signal.name if stop.signal and crew.ended < len(jobs) else None


@dataclass
class _Worker:
    process: BaseProcess
    connection: Connection
    job: int


@dataclass
class _Crew:
    """The processes at work, and what is left to do."""

    jobs: Sequence[Job]
    watcher: Watcher
    stop: StopRequest
    busy: list[_Worker] = field(default_factory=list)
    next: int = 0
    ended: int = 0
    deadline: float | None = None  # for saving, once asked to stop

    def hire(self, count: int) -> None:
        context = fresh_processes()
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            with _deaf_to_interrupts():
                process.start()
            theirs.close()
            worker = _Worker(process, ours, -1)
            self.busy.append(worker)
            self._assign(worker)

    def listen(self) -> None:
        """To what the processes say, for a moment."""
        if self.stop() and self.deadline is None:
            self.deadline = time.monotonic() + SECONDS_TO_SAVE
            for worker in self.busy:
                worker.process.terminate()
        by_connection = {worker.connection: worker for worker in self.busy}
        for ready in wait(list(by_connection), timeout=SECONDS_BETWEEN_WORDS):
            worker = by_connection[ready]  # type: ignore[index]
            try:
                word = worker.connection.recv()
            except (EOFError, OSError):
                self._lost(worker)
                continue
            if isinstance(word, Begun):
                self.watcher.begun(worker.job, word.done, word.total)
            elif isinstance(word, Advanced):
                self.watcher.advanced(worker.job, word.done)
            else:
                self._end(worker.job, word)
                self._assign(worker)
        if self.deadline is not None and time.monotonic() > self.deadline:  # a process that does not come to the end of its step
            for worker in self.busy:
                worker.process.kill()

    def dismiss(self) -> None:
        for worker in self.busy:
            worker.process.kill()
            worker.process.join()

    def _assign(self, worker: _Worker) -> None:
        """The next job, or the end of the process if there is none."""
        if self.stop() or self.next == len(self.jobs):
            self.busy.remove(worker)
            worker.connection.close()
            worker.process.join()
            return
        worker.job = self.next
        self.next += 1
        try:
            worker.connection.send(self.jobs[worker.job])
        except OSError:
            self._lost(worker)

    def _lost(self, worker: _Worker) -> None:
        """A process has died: of our signal, before it could listen to it; or in the middle of its run."""
        self.busy.remove(worker)
        worker.process.join()
        if self.stop():
            return
        self._end(worker.job, Ended(False, f"the process ended {_cause(worker.process.exitcode)}"))
        if self.next < len(self.jobs):
            self.hire(1)

    def _end(self, job: int, word: Ended) -> None:
        self.ended += word.complete or word.reason is not None
        self.watcher.ended(job, word.complete, word.reason)


def fresh_processes() -> ForkServerContext | SpawnContext:
    """Where processes come from: none is a fork of this one, which would copy torch's threads in whatever state they are.

    They are forked from a server that has imported torch, and has done nothing else: many begin as soon as one.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch._dynamo"])  # the first optimizer imports the latter, for seconds
    return context


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """A process begun within ignores Ctrl-C until it has left the terminal: what it imports would answer with a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _cause(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return f"by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return f"with exit code {code}"


def _work(connection: Connection) -> None:
    """What a process does: one run after the other, until the pipe is closed."""
    if hasattr(os, "setsid"):
        os.setsid()  # a Ctrl-C in the terminal is for the parent, which passes it on
    try:
        while True:
            connection.send(_trained(connection.recv(), connection))
    except (EOFError, OSError):
        return


def _trained(job: Job, connection: Connection) -> Ended:
    folder, teller = RunFolder(job.path), _Teller(connection)
    try:
        recipe = load_recipe(job.config.task)
        if (job.path / "config.json").exists():
            outcome = resume(job.path, {}, teller)
        else:
            folder.remove_partial_files()  # of a process that died while it began
            outcome = start(job.config, recipe, job.path, teller)
    except (ConfigError, RunError, DataError) as error:
        return Ended(False, str(error))
    except ConnectionError:
        raise
    except Exception as error:
        return Ended(False, f"{type(error).__name__}: {' '.join(str(error).split())}")
    return Ended(outcome.results is not None)


class _Teller:
    """The observer of a run in a process: says now and then how far it is."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.done = 0
        self.said = 0.0

    def begin(self, plan: Plan) -> None:
        self.done = plan.done
        self.connection.send(Begun(plan.done, plan.total))

    def step(self, report: StepReport) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.said >= SECONDS_BETWEEN_WORDS:
            self.said = now
            self.connection.send(Advanced(self.done))

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        pass
