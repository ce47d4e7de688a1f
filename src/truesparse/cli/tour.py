"""`truesparse tour`: what is this, in two minutes? Trains on the digits of the package, shows the table, the mask, the page."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress
    from rich.table import Table

    from ..report import Run, Stage
    from ..runs import Outcome, Plan, Results, StepReport
    from .keys import Keys

TASK, LAYER = "digits-mlp", "1"
# One thread: layers as small as these wait for several longer than they work.
CHOSEN = {"variants": ("dense", "masked", "sparse"), "sparsity": 0.9, "every": 10, "epochs": 8, "threads": 1}
SECONDS_OF_A_FRAME = 0.25
MOST_ROWS = 40

WELCOME = (
    'Most "sparse" training multiplies a full weight by a mask of zeros and ones. Nothing gets smaller, nothing gets faster.',
    "truesparse stores, trains and runs only the connections that exist. This tour trains a small network three times on digits of 8 x 8 "
    "pixels, which are part of the package: dense, dense + mask, and truly sparse with one weight in ten.",
    "It takes about two minutes. Any key goes on, q leaves.",
)
EVOLVES = (
    "Which connections exist is learned too. Every ten steps RigL drops those with the smallest weights and grows, in their place, those "
    "whose gradient is largest. Rows are neurons, columns are the 64 pixels that they may look at."
)
NEXT = {
    "truesparse train mnist-mlp --compare dense,masked,sparse": "the same on MNIST, which is downloaded",
    "truesparse bench linear": "where sparse becomes faster, on this machine",
    "truesparse algorithms": "every rule of drop and grow, with its paper",
    "truesparse doctor": "which kernels this machine has",
}
IN_A_SCRIPT = "In a script of your own: ts.sparsify(model, sparsity=0.9) and a ts.Rewirer, see docs/guide/training.md."


def tour(
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Wait for no key.")] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page at the end.")] = True,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run.", show_default="one of the system's temporary ones")
    ] = None,
) -> int:
    """Walk through truesparse in two minutes: train, compare, watch a mask evolve. Needs no download."""
    from rich.console import Console

    from .keys import Leave, Nobody, Somebody, silent_terminal

    console = Console(highlight=False)
    alone = yes or not (sys.stdin.isatty() and sys.stdout.isatty())
    made = None if out is not None else Path(tempfile.mkdtemp(prefix="truesparse-tour-"))
    folder = out or made
    assert folder is not None
    complete = False
    try:
        if alone:
            complete = _walk(console, Nobody(), folder)
        else:
            with silent_terminal():
                complete = _walk(console, Somebody(), folder)
        if complete:
            _end(console, folder, browser and sys.stdout.isatty())
    except (KeyboardInterrupt, Leave):
        pass
    finally:
        if made is not None and not complete:
            shutil.rmtree(made, ignore_errors=True)
    if complete:
        return 0
    console.print("\nThe tour ends here. It begins anew with: truesparse tour")
    return 130


def _walk(console: Console, keys: Keys, folder: Path) -> bool:
    """Whether it came to its end; a signal stops it while it trains."""
    _say(console, "truesparse in two minutes", *WELCOME)
    keys.wait()
    from ..report import read_run

    outcome = _train(console, folder)
    if outcome.results is None:
        return False
    _say(console, "Side by side", compact(outcome.results), verdict(outcome.results))
    keys.wait()
    _say(console, "The mask evolves", EVOLVES)
    _evolve(console, keys, read_run(folder))
    keys.wait()
    return True


def _end(console: Console, folder: Path, open_page: bool) -> None:
    import webbrowser

    from rich.text import Text

    from ..report import read_run, write_page
    from .report import PAGE

    page = (folder / PAGE).resolve()
    write_page([read_run(folder)], page)
    commands = Text("\n").join(Text.assemble((command, "bold"), f"\n  {what}") for command, what in NEXT.items())
    _say(console, "Where to go from here", commands, IN_A_SCRIPT)
    console.print(f"Everything about this run: {page}", soft_wrap=True)
    if open_page and not webbrowser.open(page.as_uri()):
        console.print("No browser could be opened; open that file in one.")


def _train(console: Console, folder: Path) -> Outcome:
    from rich.progress import BarColumn, Progress, TextColumn

    from ..runs import load_recipe, make_config, start

    recipe = load_recipe(TASK)
    config = make_config(TASK, recipe.settings, CHOSEN)
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console) as progress:
        return start(config, recipe, folder, _Bar(progress))


class _Bar:
    """An observer that shows how far all three are."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.bar = progress.add_task("training", total=None)

    def begin(self, plan: Plan) -> None:
        self.progress.update(self.bar, total=plan.total, completed=plan.done)

    def step(self, report: StepReport) -> None:
        self.progress.update(self.bar, advance=1, description=f"training, epoch {report.epoch}")

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        pass


def _say(console: Console, title: str, *what: RenderableType) -> None:
    console.print()
    console.rule(f"[bold]{title}", align="left")
    for one in what:
        console.print(one)
        console.print()


def compact(results: Results) -> Table:
    """The closing table on its side: narrow enough for any terminal."""
    from rich.table import Table

    from ..common.shown import nbytes_said
    from ..runs.results import NAMES

    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for line in results.variants:
        table.add_column(NAMES[line.variant], justify="right")
    rows = {
        "accuracy": [f"{line.test_accuracy or 0:.2%}" for line in results.variants],
        "weights": [f"{line.connections:,}" for line in results.variants],
        "memory": [nbytes_said(line.bytes["total"]) for line in results.variants],
        "s / epoch": [f"{line.seconds_per_epoch:.3f}" for line in results.variants],
        "inference": [f"{line.inference_seconds * 1e3:.2f} ms" for line in results.variants],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def verdict(results: Results) -> str:
    """What the table says, in words, and what it does not."""
    by_name = {line.variant: line for line in results.variants}
    dense, masked, sparse = (by_name[name] for name in ("dense", "masked", "sparse"))
    told = (
        f"The masked twin holds {masked.bytes['total'] / dense.bytes['total']:.0%} of the memory that the dense network trains in, "
        f"the truly sparse one {sparse.bytes['total'] / dense.bytes['total']:.0%}, with the same connections as the twin."
    )
    lost = 100 * ((dense.test_accuracy or 0) - (sparse.test_accuracy or 0))
    told += f"\nWith a tenth of its weights so small a network is {lost:.1f} points less accurate." if lost > 0 else ""
    if (sparse.times_as_fast or 0) < 1:
        told += (
            f"\nIt is not faster here: a network of {dense.connections:,} weights is too small, its time is the calls, not the arithmetic. "
            "With layers of a million weights it is."
        )
    return told


def _evolve(console: Console, keys: Keys, run: Run) -> None:
    from rich.console import Group
    from rich.live import Live

    from .blocks import SIGNS, mask_text
    from .keys import Nobody

    coloured = console.color_system is not None and not console.no_color and "utf" in console.encoding.lower()
    columns = min(64, console.width - 1)
    rows = max(2, min(MOST_ROWS if coloured else MOST_ROWS // 2, (console.height - 8) * (2 if coloured else 1)))
    names = {"unchanged": "white", "dropped": "red", "grown": "green", "absent": "black"} if coloured else SIGNS
    stages = run.topologies("sparse", LAYER)
    shape = run.layers[LAYER].shape
    shown = min(rows, shape[0])

    def frame(stage: Stage) -> RenderableType:
        counts = f"step {stage.step:>3}: {stage.dropped.numel():>3} dropped, {stage.grown.numel():>3} grown"
        return Group(mask_text(stage, rows, columns, coloured), f"{counts}, {stage.topology.nnz} connections")

    console.print(f"{', '.join(f'{sign} {name}' for name, sign in names.items())}; {shown} of {shape[0]} neurons", markup=False)
    if isinstance(keys, Nobody):
        for stage in (stages[0], stages[len(stages) // 4], stages[-1]):
            console.print(frame(stage))
        return
    with Live(frame(stages[0]), console=console, auto_refresh=False) as live:
        for stage in stages[1:]:
            if keys.pressed(SECONDS_OF_A_FRAME):
                live.update(frame(stages[-1]), refresh=True)
                break
            live.update(frame(stage), refresh=True)
