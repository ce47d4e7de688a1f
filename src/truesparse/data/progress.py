"""How does someone who waits for a download see that it moves? A bar on a terminal, one line elsewhere, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Advance = Callable[[int], None]


@contextmanager
def show_progress(text: str, megabytes: float, *, counts: bool = True) -> Iterator[Advance]:
    """Shows `text` while the block runs.

    Args:
        megabytes: how much is to come; 0 if unknown.
        counts: whether the block calls the yielded function with each number of bytes; without, the bar only pulses.
    """
    console = Console(stderr=True)
    size = f" ({megabytes:.0f} MB)" if megabytes >= 1 else ""
    if not console.is_terminal:
        console.print(text + size, highlight=False, soft_wrap=True)
        yield lambda count: None
        return
    columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), *([DownloadColumn()] if counts else []), TimeElapsedColumn()]
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(text + size, total=megabytes * 1e6 if counts and megabytes else None)
        yield lambda count: progress.advance(task, count)
