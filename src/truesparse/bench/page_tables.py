"""What tables are the same on the page of a CPU and on that of a GPU? Those of steps, memory and rewirings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from ..common.markdown import table_head, table_row
from ..runs import ConfigError
from .document import Document, InferenceRow, LayerRow, MemoryRow, RewireRow, Row, ScaleRow, StepRow

RowKind = TypeVar("RowKind", LayerRow, StepRow, MemoryRow, ScaleRow, RewireRow, InferenceRow)


def refuse_interpreted(documents: Iterable[Document]) -> None:
    """
    Raises:
        ConfigError: if Triton's interpreter ran the kernels: a page of it would be taken for one of a GPU.
    """
    if any(document.machine.get("kernels") == "triton" and document.machine.get("device", "cpu") == "cpu" for document in documents):
        raise ConfigError("the kernels ran in Triton's interpreter, no time of which means anything: a page is of what a GPU has measured")


def step_table(rows: Sequence[StepRow]) -> str:
    lines = table_head("whole training step", "batch", "threads", "dense", "dense + mask", "truesparse", "times as fast")
    for row in rows:
        times = (f"{row.seconds[way] * 1e3:.1f} ms" for way in ("dense", "masked", "sparse"))
        lines.append(table_row(step_name(row), row.batch, row.threads, *times, f"**{times_said(row.times_as_fast['sparse'])}**"))
    return "\n".join(lines)


def phase_table(rows: Sequence[StepRow]) -> str:
    phases = ("forward", "backward", "optimizer", "rewiring")
    lines = table_head("where the sparse step's time goes", "threads", *phases)
    for row in rows:
        times = (f"{row.phases['sparse'][phase] * 1e3:.2f} ms" for phase in phases)
        lines.append(table_row(step_name(row), row.threads, *times))
    return "\n".join(lines)


def memory_table(rows: Sequence[MemoryRow]) -> str:
    said = ("connections", "bytes per connection", "peak of the process", "dense would hold")
    lines = table_head("memory in training with AdamW and RigL", *said)
    for row in rows:
        name = f"{row.layers} layers of {row.size} x {row.size} at {row.sparsity:.0%}"
        peak = f"{row.resident_peak / 1e9:.2f} GB ({row.resident_before / 1e9:.2f} before)"
        lines.append(table_row(name, f"{row.connections:,}", f"{row.bytes_per_connection:.1f}", peak, f"{row.dense_bytes / 1e9:.1f} GB"))
    return "\n".join(lines)


def rewire_table(rows: Sequence[RewireRow]) -> str:
    whole = tuple(dict.fromkeys(name for row in rows for name in row.algorithms))
    lines = table_head(
        "rewiring, AdamW, three tenths of the connections",
        "connections",
        "threads",
        "ms",
        "search for the largest gradients / dense forward",
        *(f"whole, {name}, ms" for name in whole),
    )
    for row in rows:
        name = f"{row.layer} at {row.sparsity:.0%}, batch {row.batch}"
        lines.append(
            table_row(
                name,
                f"{row.connections:,}",
                row.threads,
                f"{row.rewiring_seconds * 1e3:.3g}",
                f"{row.top_gradients_over_dense:.1f}",
                *(f"{row.algorithms[of] * 1e3:.3g}" if of in row.algorithms else "-" for of in whole),
            )
        )
    return "\n".join(lines)


def rows_of(documents: Iterable[Document], kind: type[RowKind]) -> list[RowKind]:
    rows: list[Row] = [row for document in documents for row in document.rows]
    return [row for row in rows if isinstance(row, kind)]


def step_name(row: StepRow) -> str:
    return f"{row.named}, {row.density}" + (f" ({row.sparsity:.1%} sparse)" if row.density.startswith("epsilon") else "")


def times_said(ratio: float | None) -> str:
    return f"{ratio:.1f}" if ratio is not None else "-"
