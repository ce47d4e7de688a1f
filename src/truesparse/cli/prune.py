"""`truesparse prune`: a trained network becomes a sparse one, in a folder that can be packed, looked at and trained on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .language import prune_language_model, refuse_options

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..common.shown import Table
    from ..runs import Recipe, Trained
    from ..runs.pruned import Pruned

NETWORK = "network.safetensors"
BATCHES = 8  # to measure on


def prune(
    source: Annotated[
        str,
        typer.Argument(
            metavar="TASK_OR_RUN_OR_FILE_OR_MODEL",
            help="A built-in task (trained dense first, in runs/dense-TASK), the folder of a run, a file of truesparse.save; or a language "
            "model: smollm2, a folder of transformers, a GGUF file.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the pruned network.")],
    criterion: Annotated[str, typer.Option(help="What matters: magnitude, random, wanda, ...")] = "magnitude",
    sparsity: Annotated[float, typer.Option(help="Share of the weights to leave out, 0 <= S < 1.")] = 0.5,
    across: Annotated[
        str | None, typer.Option(help="Who competes: row, layer, network, normalised.", show_default="the criterion's own, mostly layer")
    ] = None,
    pattern: Annotated[str | None, typer.Option(help="nm:2:4, block:4, neurons, ...", show_default="unstructured")] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A layer to leave dense; may be repeated.")] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            metavar="BATCHES_OR_TEXT",
            help="For criteria that look at data: how many batches of training data; for a language model brown, or a text file.",
            show_default=f"{BATCHES}, or brown",
        ),
    ] = None,
    finetune: Annotated[int, typer.Option(metavar="EPOCHS", help="Train what is left.", min=0)] = 0,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Of that, at its first step.", show_default="the task's")] = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="TASK", help="For a file: the task, or FILE.py, whose model() its weights belong to.")
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of a run: dense, masked or sparse.", show_default="sparse if there")] = None,
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
) -> int:
    """Prune a trained network, and fine-tune it if wanted: what each layer loses, accuracy, seconds and sizes of files."""
    from ..language import is_language_model

    if is_language_model(source):
        given = {"--finetune": finetune, "--lr": learning_rate, "--recipe": recipe, "--variant": variant}
        refuse_options(source, given)
        return prune_language_model(source, out, criterion, sparsity, across, pattern, exclude or (), calibrate, seed)
    from ..export import save
    from ..pruning.base import criterion as named_criterion
    from ..runs import ConfigError, begin, make_config, resume, trained_network
    from ..runs.folder import RunFolder
    from ..runs.pruned import beginning_of, calibration, pruned
    from .progress import make_observer
    from .results import wide_console

    batches = _batches(calibrate)
    try:
        chosen_by = named_criterion(criterion)
    except ValueError as error:
        raise ConfigError(f"--criterion: {error}") from error
    folder = RunFolder(out)
    folder.check_new()
    network, known, settings = _source(source, recipe, variant)
    options: dict[str, Any] = {
        "pattern": pattern,
        "exclude": tuple(exclude) if exclude else None,
        "epochs": finetune or None,
        "learning_rate": learning_rate,
    }
    chosen = {name: value for name, value in options.items() if value is not None}
    chosen |= {"sparsity": sparsity, "seed": seed, "algorithm": "static", "variants": ("sparse",)}
    config = make_config(known.task, settings, chosen)
    needs = tuple(getattr(chosen_by, "needs", ()))
    data = calibration(config, known, batches) if needs else []
    if needs:
        print(f"{criterion} looks at {' and '.join(needs).replace('_', ' ')}, on {len(data)} batches of training data", file=sys.stderr)
    found = pruned(network, config, chosen_by, across, data, known.loss)
    begin(config, known, out, beginning_of(found.model))
    folder.write_pruning(found.described(criterion=criterion, across=across or getattr(chosen_by, "across", "layer")))
    save(found.model, out / NETWORK)
    console = wide_console()
    console.print(network.said, markup=False, highlight=False, soft_wrap=True)
    console.print(_layers(found).rich())
    tuned = None
    if finetune:
        with make_observer() as shown:
            outcome = resume(out, {}, shown)
        if outcome.results is None:
            print(f"stopped by {outcome.stopped_by}; go on with: {folder.resume_command}", file=sys.stderr)
            return 130
        trained = trained_network(out)
        tuned = trained.accuracy(trained.model)
        save(trained.model, out / NETWORK)
    console.print(_ends(found, tuned, finetune).rich())
    more = "" if finetune else f"; fine-tune it with: {folder.resume_command}"
    print(f"The network is in {out}, see truesparse pack, truesparse report{more}")
    return 0


def _batches(calibrate: str | None) -> int:
    from ..runs import ConfigError

    if calibrate is None:
        return BATCHES
    if not calibrate.isdecimal() or int(calibrate) < 1:
        raise ConfigError(f"--calibrate: expected a number of batches, at least 1, got {calibrate!r}; texts are for language models")
    return int(calibrate)


def _source(source: str, recipe: str | None, variant: str | None) -> tuple[Trained, Recipe, Mapping[str, Any]]:
    """(network, its recipe, settings to fine-tune it with)."""
    from ..runs import ConfigError, load_recipe, task_names
    from ..runs.folder import RunFolder
    from .pack import network_of

    if source in task_names():
        if recipe is not None:
            raise ConfigError(f"--recipe: {source} is a task; leave the option out")
        path = _dense(source)
    else:
        path = Path(source)
        if not path.exists():
            raise ConfigError(f"{source} is no task ({', '.join(task_names())}), and neither the folder of a run nor a file")
    network = network_of(path, recipe, variant)
    if recipe is not None:
        known = load_recipe(recipe)
        return network, known, known.settings
    config, _ = RunFolder(path).read_config()
    settings = config.to_json()
    return network, load_recipe(settings.pop("task")), settings


def _dense(task: str) -> Path:
    """The run that has trained a task dense, trained now if it was not yet."""
    from ..runs import RunError, load_recipe, make_config, resume, start
    from .progress import make_observer

    path = Path("runs") / f"dense-{task}"
    if (path / "results.json").exists():
        return path
    print(f"training {task} dense, once, in {path}", file=sys.stderr)
    known = load_recipe(task)
    with make_observer() as shown:
        if (path / "config.json").exists():
            outcome = resume(path, {}, shown)
        else:
            outcome = start(make_config(known.task, known.settings, {"variants": ("dense",), "algorithm": "static"}), known, path, shown)
    if outcome.results is None:
        raise RunError(f"stopped by {outcome.stopped_by} while {task} trained; the same command goes on")
    return path


def _layers(found: Pruned) -> Table:
    """What each layer has lost."""
    from ..common.shown import Table

    def row(name: str, size: int, before: int, left: int, share: float | None) -> tuple[str, ...]:
        return name, f"{size:,}", f"{before:,}", f"{left:,}", f"{1 - left / size:.2%}", "-" if share is None else f"{share:.1%}"

    sizes, left = found.sizes, found.left
    rows = [row(name, sizes[name], found.connections[name], left[name], found.score_shares.get(name)) for name in sizes]
    total = row("all", sum(sizes.values()), sum(found.connections.values()), sum(left.values()), None)
    heads = ("layer", "weights", "connections before", "connections", "sparsity", "of all scores")
    return Table(heads, tuple(rows), total, frozenset(range(1, len(heads))))


def _ends(found: Pruned, tuned: float | None, epochs: int) -> Table:
    """Accuracy and size before and after."""
    from ..common.shown import Table, nbytes_said

    def said(accuracy: float | None) -> str:
        return "-" if accuracy is None else f"{accuracy:.2%}"

    rows = [
        ("before", said(found.accuracy[0]), nbytes_said(found.nbytes[0]), ""),
        ("pruned", said(found.accuracy[1]), nbytes_said(found.nbytes[1]), f"{found.seconds:.2f}"),
    ]
    if epochs:
        rows.append((f"fine-tuned, {epochs} {'epoch' if epochs == 1 else 'epochs'}", said(tuned), nbytes_said(found.nbytes[1]), ""))
    return Table(("", "test accuracy", "file", "seconds of pruning"), tuple(rows), numeric=frozenset({1, 2, 3}))
