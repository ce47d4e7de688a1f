"""`truesparse train`: which options make which run?"""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .report import PAGE

if TYPE_CHECKING:
    from ..runs import Outcome

QUICK = 12_000_000  # connections x updates whose page takes about two seconds
FIRST = """Say what to train. Try first:

  truesparse train digits-mlp --compare dense,sparse    ten seconds, needs no download
  truesparse train mnist-mlp --compare dense,sparse     some minutes, downloads MNIST
  truesparse train FILE.py                              your own model and data, see docs/guide/recipes.md

Tasks: {tasks}.
All options: truesparse train --help"""
Training, Stability, Sparsity, Run, Logs = "Training", "Stability", "Sparsity", "Run", "Logs"


def train(
    task: Annotated[
        str | None, typer.Argument(help="A built-in task (mnist-cnn, mnist-mlp, fashion-cnn, cifar10-mlp, digits-mlp) or FILE.py.")
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            help="Variants to train side by side: dense, masked, sparse.", show_default="sparse", metavar="LIST", rich_help_panel=Run
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            help="How the topology evolves: see `truesparse algorithms`, or FILE.py.", show_default="rigl", rich_help_panel=Sparsity
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="A setting of the algorithm; may be repeated.", rich_help_panel=Sparsity),
    ] = None,
    every: Annotated[
        int | None, typer.Option(help="Steps between two rewirings.", show_default="100, or as the paper says", rich_help_panel=Sparsity)
    ] = None,
    until: Annotated[
        float | None,
        typer.Option(
            help="Share of the training after which the topology stays.",
            show_default="0.75, or as the paper says",
            rich_help_panel=Sparsity,
        ),
    ] = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Share of the weights to leave out, 0 <= S < 1.", show_default="the task's", rich_help_panel=Sparsity),
    ] = None,
    budget: Annotated[
        str | None, typer.Option(help="How layers share what is kept: erk, er, uniform.", show_default="erk", rich_help_panel=Sparsity)
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Density by SET's factor instead of --sparsity (budgets er, erk).", rich_help_panel=Sparsity)
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A layer to leave dense, * stands for anything; may be repeated.", rich_help_panel=Sparsity),
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            help="unstructured, fan-in, shared-fan-in:32, nm:2:4, block:4, neurons.",
            show_default="the algorithm's or unstructured",
            rich_help_panel=Sparsity,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training data.", show_default="the task's", rich_help_panel=Training)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a step.", show_default="the task's", rich_help_panel=Training)] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="Of torch.optim: adam, adamw, sgd (momentum 0.9), rmsprop, ...", rich_help_panel=Training)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="At the first step.", show_default="the task's", rich_help_panel=Training)
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Handed to the optimizer.", rich_help_panel=Training)] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Of the learning rate: cosine (to 0), constant.", show_default="cosine", rich_help_panel=Training)
    ] = None,
    warmup: Annotated[
        float | None, typer.Option(metavar="EPOCHS", help="The learning rate rises over so many epochs.", rich_help_panel=Stability)
    ] = None,
    clip: Annotated[float | None, typer.Option(metavar="NORM", help="Largest norm of the gradients.", rich_help_panel=Stability)] = None,
    activation_l1: Annotated[
        float | None, typer.Option(metavar="FACTOR", help="Of mean |output| of hidden layers.", rich_help_panel=Stability)
    ] = None,
    activation_l2: Annotated[
        float | None,
        typer.Option(metavar="FACTOR", help="Of the mean square of the outputs of hidden layers.", rich_help_panel=Stability),
    ] = None,
    decay_grace: Annotated[
        int | None, typer.Option(metavar="STEPS", help="Weight decay spares grown connections.", rich_help_panel=Stability)
    ] = None,
    ema: Annotated[
        float | None, typer.Option(metavar="DECAY", help="Average the weights, and test the average too.", rich_help_panel=Stability)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of every random choice.", show_default="0", rich_help_panel=Training)] = None,
    threads: Annotated[
        int | None, typer.Option(help="Of torch and of the kernels.", show_default="as torch chooses", rich_help_panel=Run)
    ] = None,
    nproc: Annotated[
        int | None,
        typer.Option(help="Processes that train together, each with its part of every batch.", show_default="1", rich_help_panel=Run),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run.", show_default="runs/TASK-DATE", rich_help_panel=Run)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=Run)] = False,
    tensorboard: Annotated[
        str | None,
        typer.Option(metavar="[DIR]", help="Log for TensorBoard.", show_default="OUT/tensorboard", rich_help_panel=Logs),
    ] = None,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="[URI]", help="Log to MLflow.", show_default="MLFLOW_TRACKING_URI", rich_help_panel=Logs),
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(metavar="[PROJECT]", help="Log to Weights & Biases.", show_default="WANDB_PROJECT", rich_help_panel=Logs),
    ] = None,
    logger: Annotated[
        str | None, typer.Option(metavar="FILE.py", help="Log with a class of your own, see docs/guide/loggers.md.", rich_help_panel=Logs)
    ] = None,
) -> int:
    """Train a task truly sparse, beside dense and dense + mask if wanted. Ctrl-C stops it, --resume goes on."""
    options: dict[str, Any] = {
        "algorithm": algorithm,
        "every": every,
        "until": until,
        "sparsity": sparsity,
        "budget": budget,
        "epsilon": epsilon,
        "exclude": tuple(exclude) if exclude else None,
        "pattern": pattern,
        "epochs": epochs,
        "batch_size": batch_size,
        "optimizer": optimizer,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "warmup": warmup,
        "clip": clip,
        "activation_l1": activation_l1,
        "activation_l2": activation_l2,
        "decay_grace": decay_grace,
        "ema": ema,
        "seed": seed,
        "threads": threads,
        "variants": tuple(name.strip() for name in compare.split(",")) if compare is not None else None,
        "algorithm_settings": _settings(settings) if settings else None,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    if task is None and not resume:
        from ..runs import task_names

        print(FIRST.format(tasks=", ".join(task_names())), file=sys.stderr)
        return 2
    if resume and out is None:
        raise typer.BadParameter("say which run with --out DIR", param_hint="--resume")
    given = {"tensorboard": tensorboard, "mlflow": mlflow, "wandb": wandb, "logger": logger}
    places = {kind: place for kind, place in given.items() if place is not None}
    if nproc is not None and nproc != 1:
        from .processes import run_in_processes

        return run_in_processes(nproc, task, chosen, out, resume, places)
    return run(task, chosen, out, resume, places)


def run(task: str | None, chosen: dict[str, Any], out: Path | None, resuming: bool, places: dict[str, str]) -> int:
    """In this process, which of several may be one; the first of them shows and writes."""
    from ..distributed import Processes
    from ..loggers.destinations import destinations
    from ..loggers.run_log import RunLog, remembered
    from ..runs import Observers, load_recipe, make_config, resume, start
    from ..runs.folder import RunFolder
    from .progress import make_observer
    from .results import print_results

    def warn(text: str) -> None:
        print(f"truesparse: {text}", file=sys.stderr, flush=True)

    processes = Processes.of()
    if resuming:
        assert out is not None
        RunFolder(out).read_config()  # that there is a run comes before what it was logged to
        if task is not None:
            chosen["task"] = load_recipe(task).task
        logged_to = destinations({**remembered(out), **places})
        if processes.rank:
            return _silent(resume(out, chosen, Observers(()), processes))
        with make_observer() as shown, RunLog(out, logged_to, warn) as log:
            outcome = resume(out, chosen, Observers((shown, log)), processes)
            log.end(outcome)
    else:
        assert task is not None
        recipe = load_recipe(task)
        config = make_config(recipe.task, recipe.settings, chosen)
        out, logged_to = out or new_folder(recipe.name), destinations(places)
        if processes.rank:
            return _silent(start(config, recipe, out, Observers(()), processes))
        with make_observer() as shown, RunLog(out, logged_to, warn) as log:
            outcome = start(config, recipe, out, Observers((shown, log)), processes)
            log.end(outcome)
    if outcome.results is None:
        print(f"stopped by {outcome.stopped_by}; go on with: {RunFolder(out).resume_command}", file=sys.stderr)
        return 130
    print_results(outcome.results)
    print(f"The run is in {out}")
    _show_page(out)
    return 0


def _silent(outcome: Outcome) -> int:
    """The exit code of a process that is not the first."""
    return 0 if outcome.stopped_by is None else 130


def _show_page(out: Path) -> None:
    """Writes the page of a finished run where that takes a moment, and says where it is, or how to make it."""
    from ..report import read_run, write_page
    from ..runs import RunError

    command = f"truesparse report {shlex.quote(str(out))}"
    try:
        run = read_run(out)
        if run.effort > QUICK:
            print(f"See it with: {command}")
            return
        write_page([run], out / PAGE)
    except RunError as error:  # the training is complete and its files are whole: a page can be made later
        print(f"truesparse: no page: {error}; try again with: {command}", file=sys.stderr)
        return
    print(f"Its page is {out / PAGE}")


def _settings(pairs: list[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name.strip():
            raise typer.BadParameter(f"expected NAME=VALUE, got {pair!r}", param_hint="--set")
        if name.strip() in settings:
            raise typer.BadParameter(f"{name.strip()} is given twice", param_hint="--set")
        settings[name.strip()] = value.strip()
    return settings


def new_folder(name: str) -> Path:
    """`runs/NAME-DATE`, with a number if two runs begin in one second."""
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    return next(path for name in names if not (path := Path("runs") / name).exists())
