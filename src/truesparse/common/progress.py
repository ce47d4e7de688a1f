"""How does someone who waits for many parts of a work see how far it is? A bar on a terminal, lines elsewhere; both on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

Done = Callable[[str, str], None]


@contextmanager
def show_parts(work: str, total: int, *, wanted: bool = True, after: float = 0.0, between: float = 0.0) -> Iterator[Done]:
    """What to call when one more of the parts is done, with its name and what became of it.

    Args:
        work: what is done, as "pruning"; for the bar.
        total: how many parts there are.
        wanted: False is silent.
        after: seconds of work after which something is shown: what is done sooner needs no word.
        between: seconds between two lines. A line says what became of its part, a bar does not.
    """
    if not wanted:
        yield lambda name, result: None
        return
    start = monotonic()
    if not sys.stderr.isatty():
        done, last = 0, start + after - between

        def line(name: str, result: str) -> None:
            nonlocal done, last
            done += 1
            now = monotonic()
            if now - last >= between and now - start >= after:
                last = now
                print(f"{done}/{total} {name}: {result}, {now - start:.0f} s", file=sys.stderr, flush=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn(f"{work} {{task.description}}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=total, visible=after <= 0)
        yield lambda name, result: bar.update(task, advance=1, description=name, visible=monotonic() - start >= after)
