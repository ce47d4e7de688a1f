"""How is the closing table of a run shown?"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from ..runs import Results, VariantResult
from ..runs.machine import threads_said

NAMES = {"dense": "dense", "masked": "dense + mask", "sparse": "truly sparse"}


def print_results(results: Results) -> None:
    """The table on stdout, as wide as it needs where stdout is no terminal."""
    wide_console().print(results_table(results))


def wide_console() -> Console:
    """Of stdout: as wide as the terminal, or as tables need where there is none."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def results_table(results: Results) -> Table:
    """One line for each variant."""
    compared = any(line.variant == "dense" for line in results.variants) and len(results.variants) > 1
    machine = results.machine
    hardware = f"{machine['processor']}, {machine['instruction_set']}, {threads_said(machine['threads'])}, torch {machine['torch']}"
    table = Table(title=results.task, caption=f"bytes: weights + gradients + optimizer state + topology. {hardware}")
    table.add_column("")
    for heading in ("test accuracy", "test loss", "weights", "bytes", *(["of dense"] if compared else []), "s / epoch"):
        table.add_column(heading, justify="right")
    if compared:
        table.add_column("vs dense", justify="right")
    table.add_column(f"inference, {results.samples} samples", justify="right")
    if compared:
        table.add_column("vs dense", justify="right")
    for line in results.variants:
        table.add_row(*_row(line, compared))
    return table


def _row(line: VariantResult, compared: bool) -> list[str]:
    accuracy = f"{line.test_accuracy:.2%}" if line.test_accuracy is not None else "-"
    row = [NAMES[line.variant], accuracy, f"{line.test_loss:.4f}", f"{line.connections:,}", _bytes(line.bytes["total"])]
    if compared:
        row.append(f"{line.share_of_dense_bytes:.1%}" if line.share_of_dense_bytes is not None else "-")
    row.append(f"{line.seconds_per_epoch:.2f}")
    if compared:
        row.append(_times(line.times_as_fast))
    row.append(f"{line.inference_seconds * 1e3:.2f} ms")
    return [*row, _times(line.inference_times_as_fast)] if compared else row


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio is not None else "-"


def _bytes(count: int) -> str:
    if count < 1_000_000:
        return f"{count / 1e3:.1f} kB"
    return f"{count / 1e6:.2f} MB" if count < 1_000_000_000 else f"{count / 1e9:.2f} GB"
