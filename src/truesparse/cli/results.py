"""How is the closing table of a run shown?"""

from __future__ import annotations

from rich.console import Console

from ..runs import Results


def print_results(results: Results) -> None:
    """The table on stdout, as wide as it needs where stdout is no terminal."""
    wide_console().print(results.table().rich())


def wide_console() -> Console:
    """Of stdout: as wide as the terminal, or as tables need where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=160)
