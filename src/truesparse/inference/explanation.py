"""What became of each layer of a packed network, told as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..common.shown import Table
from .graph.simplify import LayerChange
from .layouts import Columns


@dataclass(frozen=True)
class PackedRow:
    """What became of one layer.

    Args:
        layer: its name, or the names of layers that became one.
        change: what the graph lost there: neurons, inputs, connections before and after.
        sparsity: of what is left, 0 to 1.
        zeros: the share of zeros in the input that the example gave the layer, 0 to 1; None if there was none.
        layout: in words.
        bytes: of the layout.
        follows: what is done with it in one go: "sum", the name of an activation, "max-pool".
        seconds, dense_seconds: of one call at the example's batch, the layout and a dense one of the same layer; None if not measured.
    """

    layer: str
    change: LayerChange
    sparsity: float
    zeros: float | None
    layout: str
    bytes: int
    seconds: float | None
    dense_seconds: float | None
    follows: tuple[str, ...] = ()

    @property
    def dense_bytes(self) -> int:
        """Of the dense weight and bias as they were, before anything was removed."""
        return self.change.dense_bytes

    @property
    def times_as_fast(self) -> float | None:
        """Ratio to dense; None if not measured."""
        return None if self.seconds is None or self.dense_seconds is None else self.dense_seconds / self.seconds


@dataclass(frozen=True)
class Explanation:
    """What `pack` did, a row for each layer. As text it is a table.

    Args:
        batch: first dimension of the example.
        threads: for which layouts were chosen.
        rows: in the order of the graph.
        untraced: why the network is no graph, so that each layer was taken by itself; or "".
        whole: names of modules or layers that stay as they are: nobody looked inside, or they were not called with the example.
        hooked: {name of a module on which a hook of yours is: "forward hook" or "forward pre-hook"}. The hook goes on to be called. Such
            a layer is not packed, of such a module each layer is by itself.
        native: how many of the layers run one after the other without Python between them.
        gpu: its name, if layouts were chosen for one; or "".
    """

    batch: int
    threads: int
    rows: tuple[PackedRow, ...]
    untraced: str = ""
    whole: tuple[str, ...] = ()
    hooked: Mapping[str, str] = field(default_factory=dict)
    native: int = 0
    gpu: str = ""

    def table(self) -> Table:
        """A row for each layer; times are of one call, in microseconds."""
        heads = ("layer", "sparsity", "zeros read", "removed", "layout", "bytes", "us", "dense us", "times as fast")
        said = f"batch {self.batch}, {self.gpu or f'{self.threads} thread' + 's' * (self.threads > 1)}"
        if any(row.layout.startswith(Columns.name) for row in self.rows):
            said += "; columns are chosen for as many zeros as the example has: with fewer the result is as right, and takes longer"
        if self.whole:
            said += f"; left as they were: {', '.join(self.whole)}"
        if self.hooked:
            named = ", ".join(f"{name or 'the model itself'} ({kinds})" for name, kinds in self.hooked.items())
            said += f"; not looked into, since hooks of yours are on them: {named}"
        if self.untraced:
            said += f"; each layer by itself, nothing folded, removed or joined: {self.untraced}"
        if self.native:
            said += f"; {self.native} of {len(self.rows)} layers run without Python between them"
        return Table(heads, tuple(map(_cells, self.rows)), numeric=frozenset({1, 2, 5, 6, 7, 8}), caption=said)

    def by_layout(self) -> Table:
        """A row for each shape of layer and layout, for models of many that are alike; times are of a call of all, in milliseconds."""
        kinds: dict[tuple[str, str], list[PackedRow]] = {}
        for row in self.rows:
            kinds.setdefault((f"{row.change.inputs[1]:,} to {row.change.neurons[1]:,}", row.layout), []).append(row)
        heads = ("inputs to outputs", "layout", "layers", "sparsity", "bytes", "ms", "dense ms", "times as fast")
        rows = [(shape, layout, str(len(own)), *_together(own)) for (shape, layout), own in kinds.items()]
        total = ("all", "", str(len(self.rows)), *_together(self.rows)) if len(rows) > 1 else ()
        return Table(heads, tuple(rows), total, numeric=frozenset(range(2, len(heads))))

    def __str__(self) -> str:
        table = self.table()
        lines = [table.heads, *table.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(table.heads))]
        aligned = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*aligned, table.caption])

    def _repr_html_(self) -> str:
        return self.table().html()


def _cells(row: PackedRow) -> tuple[str, ...]:
    change = row.change
    counts = {"neurons": change.neurons, "inputs": change.inputs, "connections": change.connections}
    removed = ", ".join(f"{before - after} {what}" for what, (before, after) in counts.items() if before > after)
    times = ("-" if seconds is None else f"{seconds * 1e6:.1f}" for seconds in (row.seconds, row.dense_seconds))
    ratio = "-" if row.times_as_fast is None else f"{row.times_as_fast:.1f}"
    zeros = "-" if row.zeros is None else f"{row.zeros:.1%}"
    layout = ", ".join((row.layout, *row.follows))
    return row.layer, f"{row.sparsity:.1%}", zeros, removed or "-", layout, f"{row.bytes:,}", *times, ratio


def _together(rows: Sequence[PackedRow]) -> tuple[str, ...]:
    """Sparsity, bytes, milliseconds, dense ones and their ratio, of layers one after the other."""
    connections, size = sum(row.change.connections[1] for row in rows), sum(row.change.neurons[1] * row.change.inputs[1] for row in rows)
    sums = [sum(getattr(row, what) or 0.0 for row in rows) for what in ("seconds", "dense_seconds")]
    times = [f"{seconds * 1e3:.2f}" for seconds in sums] if all(sums) else ["-", "-"]
    ratio = f"{sums[1] / sums[0]:.1f}" if all(sums) else "-"
    return f"{1 - connections / max(size, 1):.1%}", f"{sum(row.bytes for row in rows):,}", *times, ratio
