"""`truesparse report`: what happened in a run, as a page to look at, to show, or to lay several runs over each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PAGE = "report.html"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, as truesparse train leaves them.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page.", show_default=f"RUN/{PAGE}, or {PAGE} for several runs")
    ] = None,
) -> int:
    """Write one page about one or several runs: curves, masks as they change, how connections live. It opens without a network."""
    from ..report import read_run, write_page

    path = out or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE))
    write_page([read_run(run) for run in runs], path)
    print(f"The page is {path}")
    return 0
