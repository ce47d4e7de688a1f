"""What does the C of a network take, layer by layer: flash, memory, multiply-adds?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..common.shown import Table


@dataclass(frozen=True)
class Row:
    """One step.

    Args:
        layer: name of the module.
        operation: in words.
        connections: that exist, of `weights`; both 0 without weights, or if they are those of a row before.
        flash: bytes of its constants, structures aside.
        memory: bytes of the block that are in use during it.
        multiply_adds: in one call.
        dense_multiply_adds: if all weights existed.
    """

    layer: str
    operation: str
    connections: int
    weights: int
    flash: int
    memory: int
    multiply_adds: int
    dense_multiply_adds: int


@dataclass(frozen=True)
class Exported:
    """A network written as C.

    Args:
        path: of the header.
        name: with which all its names begin.
        values: "float32" or "int8".
        rows: a row a step.
        labels: of each step, what its constants are called after the name of all.
        memory: bytes of the block that a call needs, besides input and output.
        input_bytes, output_bytes: of what the caller holds.
    """

    path: Path
    name: str
    values: str
    rows: tuple[Row, ...]
    labels: tuple[str, ...]
    memory: int
    input_bytes: int
    output_bytes: int

    @property
    def flash(self) -> int:
        """Bytes of all constants. The code of the functions comes on top: `size` compiles it."""
        return sum(row.flash for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self.rows)

    def table(self) -> Table:
        """A row for each step."""
        heads = ("layer", "operation", "connections", "sparsity", "flash", "memory", "multiply-adds", "dense")
        total = ("in all", "", f"{sum(row.connections for row in self.rows):,}", "", f"{self.flash:,}", f"{self.memory:,}")
        adds = f"{self.multiply_adds:,}", f"{sum(row.dense_multiply_adds for row in self.rows):,}"
        return Table(heads, tuple(map(cells, self.rows)), total=(*total, *adds), numeric=frozenset(range(2, 8)))

    def lines(self) -> list[str]:
        """The table as lines of text."""
        table = self.table()
        every = [table.heads, *table.rows, table.total]
        widths = [max(len(line[column]) for line in every) for column in range(len(table.heads))]
        return [
            "  ".join(
                cell.rjust(width) if place in table.numeric else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in every
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        return self.table().html()


def cells(row: Row) -> tuple[str, ...]:
    """A row in words."""
    if not row.weights:
        adds = (f"{row.multiply_adds:,}", f"{row.dense_multiply_adds:,}") if row.multiply_adds else ("", "")
        return row.layer, row.operation, "", "", f"{row.flash:,}" if row.flash else "", f"{row.memory:,}", *adds
    sparsity = f"{1 - row.connections / row.weights:.1%}"
    counts = f"{row.connections:,}", sparsity, f"{row.flash:,}", f"{row.memory:,}"
    return row.layer, row.operation, *counts, f"{row.multiply_adds:,}", f"{row.dense_multiply_adds:,}"
