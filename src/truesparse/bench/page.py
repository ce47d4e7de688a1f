"""What do the documents of several measurements say on one page? Markdown tables, written between markers of a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from ..common.markdown import table_head, table_row, write_between_markers
from ..runs import ConfigError
from ..runs.machine import threads_said
from .document import Document, InferenceRow, LayerRow, MemoryRow, RewireRow, Row, ScaleRow, StepRow
from .layers import BOTH, FORWARD
from .page_inference import inference_tables
from .timing import break_even

SHOWN = (0.8, 0.9, 0.95, 0.99)  # sparsities with a column
SAME_SPARSITY = 0.005  # a pattern rounds to whole units
Curve = Mapping[float, float]  # times as fast, by sparsity
RowKind = TypeVar("RowKind", LayerRow, StepRow, MemoryRow, ScaleRow, RewireRow, InferenceRow)


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
    parts = [_machine(documents[0])]
    if layers := _rows(documents, LayerRow):
        parts.append(_layer_table(layers))
    if plot is not None:
        parts.append(f"![Speed-up over dense against sparsity]({plot})")
    if points := break_even_lines(documents):
        parts.append("\n".join(f"* {line}" for line in points))
    if steps := _rows(documents, StepRow):
        parts += [_step_table(steps), _phase_table(steps)]
        if compiled := [row for row in steps if row.compiled_over_compiled]:
            parts.append(_compiled_table(compiled))
    if memory := _rows(documents, MemoryRow):
        parts.append(_memory_table(memory))
    if scale := _rows(documents, ScaleRow):
        parts.append(_scale_table(scale))
    if rewirings := _rows(documents, RewireRow):
        parts.append(_rewire_table(rewirings))
    parts += inference_tables(_rows(documents, InferenceRow))
    return "\n\n".join(parts)


def curves(documents: Iterable[Document]) -> tuple[str, dict[tuple[str, int], Curve]]:
    """The layer and batch measured at most sparsities: its name, and times as fast by (direction, threads)."""
    found: dict[str, dict[tuple[str, int], dict[float, float]]] = {}
    for row in _rows(documents, LayerRow):
        of_layer = found.setdefault(f"{row.layer}, batch {row.batch}", {})
        of_layer.setdefault((row.direction, row.threads), {})[row.sparsity] = row.times_as_fast["sparse"]
    if not found:
        raise ConfigError("a plot needs what `truesparse bench linear` or `conv` measured")
    name = max(found, key=lambda name: max(len(curve) for curve in found[name].values()))
    return name, dict(sorted(found[name].items()))


def break_even_lines(documents: Iterable[Document]) -> list[str]:
    """Where the layer of the plot becomes as fast as dense, a line for each direction and number of threads."""
    if not _rows(documents, LayerRow):
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
        lines.append(table_row(name, batch, threads, *(" / ".join(map(_times, pair)) if any(pair) else "" for pair in pairs)))
    return "\n".join(lines)


def _step_table(rows: Sequence[StepRow]) -> str:
    lines = table_head("whole training step", "batch", "threads", "dense", "dense + mask", "truesparse", "times as fast")
    for row in rows:
        times = (f"{row.seconds[way] * 1e3:.1f} ms" for way in ("dense", "masked", "sparse"))
        lines.append(table_row(_step_name(row), row.batch, row.threads, *times, f"**{_times(row.times_as_fast['sparse'])}**"))
    return "\n".join(lines)


def _compiled_table(rows: Sequence[StepRow]) -> str:
    said = ("dense", "truesparse", "dense, compiled", "truesparse, compiled", "compiled over compiled", "over dense")
    lines = table_head("whole training step under torch.compile", "batch", "threads", *said)
    for row in rows:
        times = (f"{row.seconds[way] * 1e3:.1f} ms" for way in ("dense", "sparse", "dense_compiled", "sparse_compiled"))
        ratios = (f"**{row.compiled_over_compiled:.2f}**", f"{row.times_as_fast['sparse_compiled']:.2f}")
        lines.append(table_row(_step_name(row), row.batch, row.threads, *times, *ratios))
    return "\n".join(lines)


def _phase_table(rows: Sequence[StepRow]) -> str:
    phases = ("forward", "backward", "optimizer", "rewiring")
    lines = table_head("where the sparse step's time goes", "threads", *phases)
    for row in rows:
        times = (f"{row.phases['sparse'][phase] * 1e3:.2f} ms" for phase in phases)
        lines.append(table_row(_step_name(row), row.threads, *times))
    return "\n".join(lines)


def _memory_table(rows: Sequence[MemoryRow]) -> str:
    said = ("connections", "bytes per connection", "peak of the process", "dense would hold")
    lines = table_head("memory in training with AdamW and RigL", *said)
    for row in rows:
        name = f"{row.layers} layers of {row.size} x {row.size} at {row.sparsity:.0%}"
        peak = f"{row.resident_peak / 1e9:.2f} GB ({row.resident_before / 1e9:.2f} before)"
        lines.append(table_row(name, f"{row.connections:,}", f"{row.bytes_per_connection:.1f}", peak, f"{row.dense_bytes / 1e9:.1f} GB"))
    return "\n".join(lines)


def _scale_table(rows: Sequence[ScaleRow]) -> str:
    said = ("connections", "first step", "step", "rewiring", "million connections a second", "bytes per connection, live", "peak")
    lines = table_head("neurons, SGD with momentum, GSE", *said)
    for row in rows:
        times = (f"{own:.2f} s" for own in (row.first_step_seconds, row.step_seconds, row.rewiring_seconds))
        held = (f"{own:.1f}" for own in (row.bytes_per_connection, row.peak_bytes_per_connection))
        lines.append(table_row(f"{row.neurons:,}", f"{row.connections:,}", *times, f"{row.connections_per_second / 1e6:.1f}", *held))
    return "\n".join(lines)


def _rewire_table(rows: Sequence[RewireRow]) -> str:
    lines = table_head(
        "rewiring, AdamW, three tenths of the connections",
        "connections",
        "threads",
        "ms",
        "search for the largest gradients / dense forward",
    )
    for row in rows:
        name = f"{row.layer} at {row.sparsity:.0%}, batch {row.batch}"
        lines.append(
            table_row(name, f"{row.connections:,}", row.threads, f"{row.rewiring_seconds * 1e3:.0f}", f"{row.top_gradients_over_dense:.1f}")
        )
    return "\n".join(lines)


def _rows(documents: Iterable[Document], kind: type[RowKind]) -> list[RowKind]:
    rows: list[Row] = [row for document in documents for row in document.rows]
    return [row for row in rows if isinstance(row, kind)]


def _step_name(row: StepRow) -> str:
    return f"{row.network}, {row.density}" + (f" ({row.sparsity:.1%} sparse)" if row.density.startswith("epsilon") else "")


def _times(ratio: float | None) -> str:
    return f"{ratio:.1f}" if ratio is not None else "-"
