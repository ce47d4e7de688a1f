"""How is a comparison read? As Markdown tables: a row for each algorithm, a column for each sparsity."""

from __future__ import annotations

from collections.abc import Callable

from ..common.markdown import table_head, table_row
from ..runs.machine import hardware
from .document import COMPLETE, FAILED, Document, Mean
from .plan import DENSE, percent

Cell = Callable[[str, float | None], str]
NOTHING = "-"


def as_page(document: Document, picture: str | None) -> str:
    """`comparison.md`: a title and what `as_markdown` says."""
    return f"# {document.name}\n\n{as_markdown(document, picture)}\n"


def as_markdown(document: Document, picture: str | None) -> str:
    """The terms, the tables, the picture at the path `picture` if there is one, and what failed."""
    parts = [terms(document), _table(document, measured_name(document), lambda *cell: result_cell(document, *cell))]
    if picture is not None:
        parts.append(f"![{measured_name(document)} against sparsity]({picture})")
    dense_seconds = document.cell(DENSE, None, "seconds_per_epoch")
    if dense_seconds is not None and dense_seconds.mean:
        share = lambda mean: f"{mean / dense_seconds.mean:.2f}"  # noqa: E731
        parts.append(_table(document, "time of an epoch, as a share of dense", _figure(document, "seconds_per_epoch", share)))
    else:
        parts.append(_table(document, "seconds of an epoch", _figure(document, "seconds_per_epoch", lambda mean: f"{mean:.2f}")))
    if any(line.flops is not None and line.dense_flops for line in document.runs):
        parts.append(_table(document, "operations of the training, as a share of dense", lambda *cell: _share_of_flops(document, *cell)))
    parts.append(_table(document, "connections at the end", _figure(document, "connections", lambda mean: f"{mean:,.0f}")))
    if document.failed:
        parts.append("Failed:\n\n" + "\n".join(f"* {failure}" for failure in failures(document)))
    return "\n\n".join(parts)


def terms(document: Document) -> str:
    """Under which terms all runs were made, in two sentences."""
    settings, machine = document.settings, document.machine
    seeds = f"{document.seeds} seeds: mean ± sample standard deviation" if document.seeds > 1 else "one seed"
    epochs = f"{settings['epochs']} epoch{'s' if settings['epochs'] != 1 else ''}"
    density = settings["budget"] + (f", pattern {settings['pattern']}" if settings["pattern"] else "")
    said = (
        f"{epochs}, batch {settings['batch_size']}, {settings['optimizer']}, learning rate {settings['learning_rate']:g} "
        f"({settings['schedule']}), weight decay {settings['weight_decay']:g}, budget {density}; {seeds}."
    )
    each = "" if machine.get("device", "cpu") != "cpu" else " a run"
    return f"{said} {hardware(machine, settings['threads'])}{each}, torch {machine['torch']}, truesparse {machine['truesparse']}."


def measured(document: Document) -> str:
    """The figure that is compared: the test accuracy, or the loss of a task without classes."""
    complete = [line for line in document.runs if line.status == COMPLETE]
    return "test_accuracy" if all(line.test_accuracy is not None for line in complete) else "test_loss"


def measured_name(document: Document) -> str:
    """For people."""
    return "test accuracy, %" if measured(document) == "test_accuracy" else "test loss"


def result_cell(document: Document, algorithm: str, sparsity: float | None) -> str:
    """A cell of the first table, as "97.31 ± 0.12", with a word where runs failed or are still to come."""
    mean, runs = document.cell(algorithm, sparsity, measured(document)), document.of_cell(algorithm, sparsity)
    if mean is None:
        return "failed" if any(run.status == FAILED for run in runs) else NOTHING
    missing = len(runs) - mean.count
    return _said(mean, measured(document)) + (f" ({mean.count} of {len(runs)})" if missing else "")


def failures(document: Document) -> list[str]:
    """A line for each run that failed, with its reason."""
    return [
        f"{line.algorithm}{'' if line.sparsity is None else f', {percent(line.sparsity)}'}, seed {line.seed}: {line.reason}"
        for line in document.failed
    ]


def _said(mean: Mean, figure: str) -> str:
    scale, digits = (100, 2) if figure == "test_accuracy" else (1, 4)
    deviation = "" if mean.deviation is None else f" ± {mean.deviation * scale:.{digits}f}"
    return f"{mean.mean * scale:.{digits}f}{deviation}"


def _table(document: Document, name: str, cell: Cell) -> str:
    lines = table_head(name, *map(percent, document.sparsities))
    if document.has_dense:
        lines.append(table_row(f"{DENSE} (0%)", cell(DENSE, None), *[""] * (len(document.sparsities) - 1)))
    lines += [table_row(name, *(cell(name, sparsity) for sparsity in document.sparsities)) for name in document.algorithms]
    return "\n".join(lines)


def _figure(document: Document, figure: str, said: Callable[[float], str]) -> Cell:
    def cell(algorithm: str, sparsity: float | None) -> str:
        mean = document.cell(algorithm, sparsity, figure)
        return NOTHING if mean is None else said(mean.mean)

    return cell


def _share_of_flops(document: Document, algorithm: str, sparsity: float | None) -> str:
    ours, dense = (document.cell(algorithm, sparsity, figure) for figure in ("flops", "dense_flops"))
    return f"{ours.mean / dense.mean:.3f}" if ours is not None and dense is not None and dense.mean else NOTHING
