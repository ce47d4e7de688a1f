"""What do documents of a GPU say on a page? Layers in every dtype that it multiplies, steps, memory, rewirings."""

from __future__ import annotations

from collections.abc import Sequence

from ..common.markdown import table_head, table_row
from ..runs import ConfigError
from ..runs.machine import hardware
from .document import Document, LayerRow, MemoryRow, RewireRow, StepRow
from .page_inference import as_time
from .page_tables import memory_table, phase_table, refuse_interpreted, rewire_table, rows_of, step_table

WAYS = {
    "dense": "dense",
    "dense_tf32": "dense, TF32",
    "dense_bfloat16": "dense, bfloat16",
    "dense_float16": "dense, float16",
    "two_four": "2:4, bfloat16",
    "masked": "dense + mask",
    "csr": "cuSPARSE CSR",
    "sparse": "truesparse",
    "sparse_bfloat16": "truesparse, bfloat16",
    "sparse_float16": "truesparse, float16",
}
HELD = (
    "Medians of interleaved turns; a layer's are of calls that were queued beforehand, so that Python does not count, and in brackets of "
    "calls from Python one after the other. The last column is how many times as fast as dense of the same dtype, by both."
)


def gpu_markdown(documents: Sequence[Document]) -> str:
    """The tables of each dtype, and the GPU they are true of.

    Raises:
        ConfigError: if the documents are of several machines, or of none that is a GPU.
    """
    refuse_interpreted(documents)
    machines = list(dict.fromkeys(f"{hardware(document.machine)}, torch {document.machine['torch']}" for document in documents))
    if len(machines) > 1:
        raise ConfigError(f"a page of a GPU is of one machine, got {'; '.join(machines)}")
    parts = [f"{machines[0]}. {HELD}"]
    for dtype in dict.fromkeys(document.dtype for document in documents):
        own = [document for document in documents if document.dtype == dtype]
        found = []
        if layers := rows_of(own, LayerRow):
            directions = dict.fromkeys(row.direction for row in layers)
            found += [layer_table([row for row in layers if row.direction == direction]) for direction in directions]
        if steps := rows_of(own, StepRow):
            found += [step_table(steps), phase_table(steps)]
        if memory := rows_of(own, MemoryRow):
            found.append(memory_table(memory))
        if rewirings := rows_of(own, RewireRow):
            found.append(rewire_table(rewirings))
        if found:
            parts += [f"**{dtype}**", *found]
    return "\n\n".join(parts)


def layer_table(rows: Sequence[LayerRow]) -> str:
    """One direction: a line for each layer, batch and sparsity, a column for each way."""
    ways = [way for way in WAYS if any(way in row.seconds for row in rows)]
    lines = table_head(rows[0].direction, "batch", "sparsity", "kernel", *(WAYS[way] for way in ways), "times as fast")
    for row in rows:
        name = row.layer if row.pattern == "Unstructured()" else f"{row.layer}, {row.pattern}"
        lines.append(table_row(name, row.batch, f"{row.sparsity:.3g}", row.kernel, *(_both(row, way) for way in ways), _ratio(row)))
    left_out = list(dict.fromkeys(f"{WAYS[way]}: {why}" for row in rows for way, why in row.left_out.items()))
    return "\n".join([*lines, *(["", f"Left out: {'; '.join(left_out)}"] if left_out else [])])


def _both(row: LayerRow, way: str) -> str:
    called = as_time(row.seconds.get(way))
    return f"{as_time(row.device_seconds[way])} ({called})" if way in row.device_seconds else called


def _ratio(row: LayerRow) -> str:
    called = row.times_as_fast["sparse"]
    if not row.device_seconds:
        return f"**{called:.2f}**"
    return f"**{row.device_seconds['dense'] / row.device_seconds['sparse']:.2f}** ({called:.2f})"
