"""What do the documents of several measurements say on one page? Markdown tables, written between markers of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..common.markdown import table_head, table_row, write_between_markers
from ..runs import ConfigError
from ..runs.machine import threads_said
from .document import Document, InferenceRow, LayerRow, MemoryRow, RewireRow, ScaleRow, StepRow
from .layers import BOTH, FORWARD
from .page_gpu import gpu_markdown
from .page_inference import inference_tables
from .page_tables import memory_table, phase_table, refuse_interpreted, rewire_table, rows_of, step_name, step_table, times_said
from .timing import break_even

SHOWN = (0.8, 0.9, 0.95, 0.99)  # sparsities with a column
SAME_SPARSITY = 0.005  # a pattern rounds to whole units
Curve = Mapping[float, float]  # times as fast, by sparsity


def write_page(path: Path, marker: str, tables: str) -> None:
    """Puts `tables` between the markers of the file at `path`.

    Args:
        path: a text file with both markers.
        marker: their name.
        tables: as Markdown.

    Raises:
        ConfigError: if the file cannot be read, or lacks a marker.
    """
    try:
        write_between_markers(path, marker, tables)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def as_markdown(documents: Sequence[Document], plot: str | None) -> str:
    """The tables, the plot, and the machine they are true of.

    Args:
        documents: what was measured.
        plot: where the plot lies, as the page links to it; None shows none.
    """
    if any(document.machine.get("device", "cpu") != "cpu" for document in documents):
        return gpu_markdown(documents)
    refuse_interpreted(documents)
    parts = [_machine(documents[0])]
    if layers := rows_of(documents, LayerRow):
        parts.append(_layer_table(layers))
    if plot is not None:
        parts.append(f"![Speed-up over dense against sparsity]({plot})")
    if points := break_even_lines(documents):
        parts.append("\n".join(f"* {line}" for line in points))
    if steps := rows_of(documents, StepRow):
        parts += [step_table(steps), phase_table(steps)]
        if compiled := [row for row in steps if row.compiled_over_compiled]:
            parts.append(_compiled_table(compiled))
    if memory := rows_of(documents, MemoryRow):
        parts.append(memory_table(memory))
    if scale := rows_of(documents, ScaleRow):
        parts.append(_scale_table(scale))
    if rewirings := rows_of(documents, RewireRow):
        parts.append(rewire_table(rewirings))
    parts += inference_tables(rows_of(documents, InferenceRow))
    return "\n\n".join(parts)


def curves(documents: Iterable[Document]) -> tuple[str, dict[tuple[str, int], Curve]]:
    """The layer and batch measured at most sparsities: its name, and times as fast by (direction, threads)."""
    found: dict[str, dict[tuple[str, int], dict[float, float]]] = {}
    for row in rows_of(documents, LayerRow):
        of_layer = found.setdefault(f"{row.layer}, batch {row.batch}", {})
        of_layer.setdefault((row.direction, row.threads), {})[row.sparsity] = row.times_as_fast["sparse"]
    if not found:
        raise ConfigError("a plot needs what `truesparse bench linear` or `conv` measured")
    name = max(found, key=lambda name: max(len(curve) for curve in found[name].values()))
    return name, dict(sorted(found[name].items()))


def break_even_lines(documents: Iterable[Document]) -> list[str]:
    """Where the layer of the plot becomes as fast as dense, a line for each direction and number of threads."""
    if not rows_of(documents, LayerRow):
        return []
    name, of_layer = curves(documents)
    lines = []
    for (direction, threads), curve in of_layer.items():
        if len(curve) > 1:
            at = break_even(curve)
            said = f"at {at:.0%} sparsity" if at is not None else _no_crossing(curve)
            lines.append(f"{name}, {direction}, {threads_said(threads)}: as fast as dense {said}")
    return lines


def _no_crossing(curve: Curve) -> str:
    if min(curve.values()) >= 1:
        return f"at {min(curve):.0%} sparsity already, or below"
    return f"at none of the sparsities from {min(curve):.0%} to {max(curve):.0%}"


def _machine(document: Document) -> str:
    machine = document.machine
    return f"{machine['processor']}, {machine['instruction_set']}, {document.dtype}, torch {machine['torch']}. " + (
        "Times as fast as dense PyTorch in the same run: medians of interleaved calls."
    )


def _layer_table(rows: Sequence[LayerRow]) -> str:
    cells: dict[tuple[str, int, int], dict[tuple[float, str], float]] = {}
    for row in rows:
        name = row.layer if row.pattern == "Unstructured()" else f"{row.layer}, {row.pattern}"
        for column in SHOWN:
            if abs(row.sparsity - column) < SAME_SPARSITY:
                cells.setdefault((name, row.batch, row.threads), {})[column, row.direction] = row.times_as_fast["sparse"]
    lines = table_head("forward / forward + backward", "batch", "threads", *(f"{column:.0%}" for column in SHOWN))
    for (name, batch, threads), found in cells.items():
        pairs = [(found.get((column, FORWARD)), found.get((column, BOTH))) for column in SHOWN]
        lines.append(table_row(name, batch, threads, *(" / ".join(map(times_said, pair)) if any(pair) else "" for pair in pairs)))
    return "\n".join(lines)


def _compiled_table(rows: Sequence[StepRow]) -> str:
    said = ("dense", "truesparse", "dense, compiled", "truesparse, compiled", "compiled over compiled", "over dense")
    lines = table_head("whole training step under torch.compile", "batch", "threads", *said)
    for row in rows:
        times = (f"{row.seconds[way] * 1e3:.1f} ms" for way in ("dense", "sparse", "dense_compiled", "sparse_compiled"))
        ratios = (f"**{row.compiled_over_compiled:.2f}**", f"{row.times_as_fast['sparse_compiled']:.2f}")
        lines.append(table_row(step_name(row), row.batch, row.threads, *times, *ratios))
    return "\n".join(lines)


def _scale_table(rows: Sequence[ScaleRow]) -> str:
    said = ("connections", "first step", "step", "rewiring", "million connections a second", "bytes per connection, live", "peak")
    lines = table_head("neurons, SGD with momentum, GSE", *said)
    for row in rows:
        times = (f"{own:.2f} s" for own in (row.first_step_seconds, row.step_seconds, row.rewiring_seconds))
        held = (f"{own:.1f}" for own in (row.bytes_per_connection, row.peak_bytes_per_connection))
        lines.append(table_row(f"{row.neurons:,}", f"{row.connections:,}", *times, f"{row.connections_per_second / 1e6:.1f}", *held))
    return "\n".join(lines)
