"""`truesparse compare`: which options make which comparison, and how is it shown?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..comparison import Document

ALL = "all"


def compare(
    task: Annotated[str, typer.Argument(help="A built-in task (mnist-cnn, mnist-mlp, fashion-cnn, cifar10-mlp, digits-mlp) or FILE.py.")],
    algorithms: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Of `truesparse algorithms`, all of them (without the presets), or your FILE.py; with own terms as set:every=100.",
        ),
    ] = "static,set,rigl",
    sparsity: Annotated[str, typer.Option(metavar="LIST", help="Shares of the weights to leave out.")] = "0.8,0.9,0.95,0.98,0.99",
    seeds: Annotated[int, typer.Option(help="Runs of each algorithm at each sparsity, with seeds 0, 1, ...")] = 3,
    dense: Annotated[bool, typer.Option(help="Train the dense network too, once for each seed.")] = True,
    jobs: Annotated[int, typer.Option(help="Runs at a time, each in its own process. Results do not depend on it, times do.")] = 1,
    threads: Annotated[int, typer.Option(help="Of each run.")] = 1,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.", show_default="the task's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a step.", show_default="the task's")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Of torch.optim.", show_default="the task's")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="At the first step.", show_default="the task's")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Handed to the optimizer.", show_default="the task's")] = None,
    schedule: Annotated[str | None, typer.Option(help="Of the learning rate: cosine, constant.", show_default="the task's")] = None,
    budget: Annotated[str | None, typer.Option(help="How layers share what is kept: erk, er, uniform.", show_default="the task's")] = None,
    pattern: Annotated[
        str | None,
        typer.Option(help="unstructured, fan-in, shared-fan-in:32, nm:2:4, block:4, neurons.", show_default="each algorithm's own"),
    ] = None,
    every: Annotated[int | None, typer.Option(help="Steps between two rewirings.", show_default="each algorithm's own")] = None,
    until: Annotated[
        float | None, typer.Option(help="Share of the training after which topologies stay.", show_default="0.75, or as the paper says")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the comparison.", show_default="runs/compare-TASK")] = None,
) -> int:
    """Train algorithms at several sparsities with several seeds; a table, and a picture of accuracy against sparsity.

    Ctrl-C stops it; the same command goes on. What is complete is not trained again.
    """
    from ..bench.request import sparsities_of
    from ..comparison import compare as compare_all
    from ..comparison import make_comparison
    from ..runs import load_recipe
    from .progress import watch_comparison

    options: dict[str, Any] = {
        "threads": threads,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "budget": budget,
        "pattern": pattern,
        "every": every,
        "until": until,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    recipe = load_recipe(task)
    comparison = make_comparison(recipe, _listed(algorithms), sparsities_of(sparsity), seeds, dense, chosen)
    out = out or Path("runs") / f"compare-{recipe.name}"
    with watch_comparison() as audience:
        ending = compare_all(comparison, out, jobs, audience)
    if ending.without_picture is not None:
        print(f"no picture: {ending.without_picture}", file=sys.stderr)
    if ending.stopped_by is not None:
        print(f"stopped by {ending.stopped_by}; the same command goes on", file=sys.stderr)
        return 130
    print_document(ending.document)
    print(f"The comparison is in {out}")
    return 1 if ending.document.failed else 0


def compare_page(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `truesparse compare` wrote.")],
    into: Annotated[Path, typer.Option(metavar="FILE", help="A page with the markers <!-- NAME --> and <!-- /NAME --> for each task.")],
    images: Annotated[Path, typer.Option(metavar="DIR", help="Draw the pictures here.")],
) -> None:
    """Put the tables and pictures of comparisons into a page."""
    import os

    from ..common.markdown import write_between_markers
    from ..comparison import read_document
    from ..comparison.compare import DOCUMENT
    from ..comparison.page import as_markdown
    from ..comparison.plot import write_plot
    from ..runs import ConfigError

    for document in [read_document(folder / DOCUMENT) for folder in folders]:
        picture = images / f"compare-{document.name}.png"
        write_plot(picture, document)
        try:
            write_between_markers(into, document.name, as_markdown(document, Path(os.path.relpath(picture, into.parent)).as_posix()))
        except ValueError as error:
            raise ConfigError(str(error)) from error


def _listed(text: str) -> list[str]:
    from ..algorithms import ALGORITHMS

    names = [name.strip() for name in text.split(",")]
    return [each for name in names for each in (sorted(ALGORITHMS) if name == ALL else [name])]


def print_document(document: Document) -> None:
    """Its first table on stdout, and what failed on stderr."""
    from rich.table import Table

    from ..comparison.page import failures, measured_name, result_cell
    from ..comparison.plan import DENSE, percent
    from .results import wide_console

    over = f"mean ± sample standard deviation over {document.seeds} seeds" if document.seeds > 1 else "one seed"
    table = Table(title=f"{document.name}: {measured_name(document)}", caption=over, min_width=len(over) + 4)
    table.add_column("")
    for sparsity in document.sparsities:
        table.add_column(percent(sparsity), justify="right")
    if document.has_dense:
        table.add_row(DENSE, result_cell(document, DENSE, None))
    for algorithm in document.algorithms:
        table.add_row(algorithm, *(result_cell(document, algorithm, sparsity) for sparsity in document.sparsities))
    wide_console().print(table)
    for failure in failures(document):
        print(f"failed: {failure}", file=sys.stderr)
