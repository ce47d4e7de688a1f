"""`truesparse report`: what happened in a run, as a page to look at, to show, or to lay several runs over each other."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PAGE = "report.html"
PALETTES = ("usual", "safe")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, as truesparse train leaves them.")],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page.", show_default=f"RUN/{PAGE}, or {PAGE} for several runs")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every picture as a PNG file too, of several runs in a folder for each.")
    ] = None,
    palette: Annotated[str, typer.Option(help="Of those files: usual, or safe for every kind of colour vision.")] = "usual",
) -> int:
    """Write one page about one or several runs: curves, masks as they change, how connections live. It opens without a network."""
    from ..report import read_run, write_page

    if palette not in PALETTES:
        raise typer.BadParameter(f"expected one of {', '.join(PALETTES)}, got {palette!r}", param_hint="--palette")
    path = out or (runs[0] / PAGE if len(runs) == 1 else Path(PAGE))
    found = [read_run(run) for run in runs]
    if png is not None:
        from ..plot import write_all

        print(f"{len(write_all(found, png, palette=palette))} pictures are in {png}")
    write_page(found, path)
    print(f"The page is {path}")
    return 0
