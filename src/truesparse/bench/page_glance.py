"""What does one short table say of all that was measured? A line for each thing, a column for each instruction set: the README's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..common.markdown import table_head, table_row
from ..runs import ConfigError
from ..runs.machine import threads_said
from .document import Document, InferenceRow, LayerRow, MemoryRow, Row, StepRow
from .layers import BOTH

INSTRUCTION_SETS = {"avx2": "AVX2", "avx512": "AVX-512", "neon": "NEON"}  # as people write them
DENSITY = r", ([\d.]+ %|epsilon [\d.]+)$"  # at the end of a network's name; the table has a column for it


@dataclass(frozen=True)
class _Cell:
    """One number of the table.

    Args:
        place: of its line among the kinds of lines.
        name: of its line; cells of one name and several sparsities share it.
        times: as fast as dense, or times fewer bytes.
    """

    place: int
    name: str
    sparsity: float
    times: float


def glance_table(documents: Sequence[Document]) -> str:
    """The table, and below it what it was measured on.

    Layers count with their backward pass, as in training; of networks at inference the saved file counts too.

    Raises:
        ConfigError: if the documents are of different machines, dtypes or numbers of threads; if dense PyTorch was not held to the
            instruction set of the kernels; or if nothing of theirs has a place in the table.
    """
    for document in documents:
        _refuse_unequal_sides(document)
    measured_on = list(dict.fromkeys(_measured_on(document, row) for document in documents for row in document.rows))
    if len(measured_on) > 1:
        raise ConfigError(f"the short table is of one machine, one dtype and one number of threads, got {'; '.join(measured_on)}")
    sets: list[str] = list(dict.fromkeys(document.machine["instruction_set"] for document in documents))
    lines: dict[tuple[int, str], dict[float, dict[str, float]]] = {}
    for document in documents:
        for row in document.rows:
            for cell in _cells(row):
                own = lines.setdefault((cell.place, cell.name), {}).setdefault(round(cell.sparsity, 3), {})
                own[document.machine["instruction_set"]] = cell.times
    if not lines:
        raise ConfigError("nothing of this has a place in the short table: it has steps, layers with backward, memory and inference")
    text = table_head("times as fast as dense PyTorch", "sparsity", *(INSTRUCTION_SETS.get(name, name) for name in sets))
    for (_, name), found in sorted(lines.items(), key=lambda line: line[0][0]):  # stable: within a kind, in the order given
        shares = " / ".join(f"{100 * sparsity:.3g}" for sparsity in found)
        columns = (" / ".join(f"{own[isa]:.1f}" if isa in own else "-" for own in found.values()) for isa in sets)
        text.append(table_row(name, f"{shares} %", *columns))
    held = "In each column dense PyTorch is held to the same instruction set. Medians of interleaved calls."
    return "\n".join([*text, "", f"{measured_on[0]}. {held}"])


def _cells(row: Row) -> Iterator[_Cell]:
    if isinstance(row, StepRow):
        yield _Cell(0, f"training step, {row.named}", row.sparsity, row.times_as_fast["sparse"])
    elif isinstance(row, LayerRow) and row.direction == BOTH:
        yield _Cell(1, f"layer {row.layer}, batch {row.batch}, forward + backward", row.sparsity, row.times_as_fast["sparse"])
    elif isinstance(row, MemoryRow):
        name = f"memory in training with AdamW, layers {row.size} -> {row.size}: times less"
        yield _Cell(2, name, row.sparsity, row.dense_bytes / sum(row.bytes.values()))
    elif isinstance(row, InferenceRow):
        name = re.sub(DENSITY, "", row.model)
        samples = "one sample" if row.batch == 1 else f"{row.batch} samples"
        yield _Cell(3, f"packed for inference, {name}, {samples}", row.sparsity, row.times_as_fast["packed"])
        if row.kind == "network":
            yield _Cell(4, f"saved file, {name}: times smaller", row.sparsity, row.dense_file_bytes / row.file_bytes)


def _refuse_unequal_sides(document: Document) -> None:
    ours, dense = document.machine["instruction_set"], document.machine.get("torch_instruction_set", "an unknown instruction set")
    if ours != dense:
        raise ConfigError(
            f"`bench {document.command}` ran {ours} kernels beside dense PyTorch on {dense}: the short table wants the same on both sides; "
            "`make bench-readme` sets what that takes"
        )


def _measured_on(document: Document, row: Row) -> str:
    machine = document.machine
    return f"{machine['processor']}, {document.dtype}, torch {machine['torch']}, {threads_said(row.threads)}"
