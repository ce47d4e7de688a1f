"""`truesparse lottery`: which options make which lottery, and how is it shown?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def lottery(
    task: Annotated[str, typer.Argument(help="A built-in task (mnist-cnn, mnist-mlp, fashion-cnn, cifar10-mlp, digits-mlp) or FILE.py.")],
    rounds: Annotated[int, typer.Option(help="Of training, pruning and rewinding.")] = 8,
    sparsity: Annotated[
        float | None, typer.Option(help="After the last round.", show_default="each round takes a fifth of what is left")
    ] = None,
    rewind: Annotated[int, typer.Option(metavar="STEPS", help="Step of the dense training to rewind to; 0: its beginning.")] = 0,
    rate_rewinding: Annotated[
        bool, typer.Option("--rate-rewinding", help="Rewind the learning rate only; weights stay as they have been trained.")
    ] = False,
    across: Annotated[str, typer.Option(help="Who competes: layer, network, normalised, row.")] = "network",
    beside: Annotated[
        str,
        typer.Option(
            metavar="LIST", help="Controls: reinitialised (same connections, new weights), random (as many in each layer); or none."
        ),
    ] = "reinitialised,random",
    seeds: Annotated[int, typer.Option(help="Lotteries, with seeds 0, 1, ...")] = 1,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.", show_default="the task's")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a step.", show_default="the task's")] = None,
    optimizer: Annotated[str | None, typer.Option(help="Of torch.optim.", show_default="the task's")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="At the first step.", show_default="the task's")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Handed to the optimizer.", show_default="the task's")] = None,
    schedule: Annotated[str | None, typer.Option(help="Of the learning rate: cosine, constant.", show_default="the task's")] = None,
    warmup: Annotated[float | None, typer.Option(metavar="EPOCHS", help="The learning rate rises over so many epochs.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A layer to leave dense; may be repeated.")] = None,
    pattern: Annotated[
        str | None, typer.Option(help="unstructured, fan-in, shared-fan-in:32, block:4, neurons.", show_default="unstructured")
    ] = None,
    threads: Annotated[int, typer.Option(help="Of torch and of the kernels.")] = 1,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder of the lottery.", show_default="runs/lottery-TASK")] = None,
) -> int:
    """Find lottery tickets round by round, and train them beside random ones: a table, and a picture of accuracy against sparsity.

    Ctrl-C stops it; the same command goes on, to the same bits.
    """
    from ..comparison.lottery import draw, make_lottery, said
    from ..runs import load_recipe
    from .compare import print_document
    from .progress import make_observer

    options: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup": warmup,
        "exclude": tuple(exclude) if exclude else None,
        "pattern": pattern,
        "threads": threads,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    recipe = load_recipe(task)
    controls = [] if beside.strip() == "none" else [name.strip() for name in beside.split(",")]
    wanted = make_lottery(recipe, rounds, sparsity, seeds, rewind, rate_rewinding, across, controls, chosen)
    out = out or Path("runs") / f"lottery-{recipe.name}"
    with make_observer() as shown:
        ending = draw(wanted, out, shown, lambda text: print(text, file=sys.stderr, flush=True))
    if ending.stopped_by is not None:
        print(f"stopped by {ending.stopped_by}; the same command goes on", file=sys.stderr)
        return 130
    if ending.without_picture is not None:
        print(f"no picture: {ending.without_picture}", file=sys.stderr)
    print_document(ending.document)
    print(f"{said(wanted)} The lottery is in {out}; one run of it on a page: truesparse report {out}/runs/...")
    return 0
