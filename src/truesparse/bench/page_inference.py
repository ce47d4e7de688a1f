"""What do measurements of inference say on a page? Markdown tables, and where sparse begins to pay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..common.markdown import table_head, table_row
from ..runs.machine import threads_said
from .document import InferenceRow

RIVALS = {
    "dense": "dense",
    "ablated": "dense without ablated neurons",
    "csr": "torch CSR",
    "csr_features_first": "torch CSR with features first",
}
PATTERNS = {"Unstructured()": "", "FanIn()": "constant fan-in"}


def inference_tables(rows: Sequence[InferenceRow]) -> list[str]:
    """The tables that these lines make; none without lines.

    Layers by sparsity; layers with ablated neurons, beside their rivals; networks; what narrow values cost.
    """
    layers = [row for row in rows if row.kind == "layer" and not row.ablated and not _window(row)]
    windows = [row for row in rows if _window(row)]
    ablated = [row for row in rows if row.ablated]
    networks = [row for row in rows if row.kind == "network"]
    parts = [
        *([_layer_table(layers)] if layers else []),
        *([_layer_table(windows)] if windows else []),
        *([_ablated_table(ablated), _short_said(ablated)] if ablated else []),
        *([_network_table(networks)] if networks else []),
    ]
    if rows and _compares_values(rows):
        parts.append(_error_table(rows))
    return parts


def faster_from(rows: Iterable[InferenceRow]) -> float | None:
    """The lowest of the measured sparsities from which on a sparse layout was faster than dense; None if not even the highest."""
    found = None
    for row in sorted(rows, key=lambda row: row.sparsity, reverse=True):
        if not row.pays:
            break
        found = row.sparsity
    return found


def short_of(rows: Iterable[InferenceRow]) -> list[str]:
    """Where the packed layer was not the fastest of all ways, and by how much: a text for each rival and sparsity."""
    found: dict[str, list[str]] = {}
    for row in rows:
        for way, said in RIVALS.items():
            ratio = times_as_fast_as(row, way)
            if ratio is not None and ratio <= 1:
                found.setdefault(f"{said} at {row.sparsity:.0%}, {threads_said(row.threads)}", []).append(f"{row.batch} ({ratio:.2f})")
    return [f"{said}: batch {', '.join(batches)}" for said, batches in found.items()]


def _layer_table(rows: Sequence[InferenceRow]) -> str:
    """A line for each layer, pattern, values, batch and number of threads."""
    columns = sorted({_column(row) for row in rows})
    lines: dict[tuple[object, ...], list[InferenceRow]] = {}
    for row in rows:
        lines.setdefault((_layer_name(row), row.batch, row.threads), []).append(row)
    text = table_head("times as fast as dense", "batch", "threads", *(f"{column:.0%}" for column in columns), "faster from")
    for name, own in lines.items():
        ratios = {_column(row): f"{row.times_as_fast['packed']:.1f}" for row in own}
        start = faster_from(own)
        said = f"{start:.0%}" if start is not None else f"above {max(row.sparsity for row in own):.0%}"
        text.append(table_row(*name, *(ratios.get(column, "") for column in columns), said))
    return "\n".join(text)


def _ablated_table(rows: Sequence[InferenceRow]) -> str:
    shares = {_column(row): row.ablated for row in rows}
    head = (f"{column:.0%} ({share:.0%} ablated)" for column, share in sorted(shares.items()))
    text = table_head(f"times as fast as {' / '.join(RIVALS.values())}", "batch", "threads", *head)
    lines: dict[tuple[object, ...], dict[float, str]] = {}
    for row in rows:
        ratios = (times_as_fast_as(row, way) for way in RIVALS)
        said = " / ".join("-" if ratio is None else f"{ratio:.1f}" for ratio in ratios)
        lines.setdefault((row.model, row.batch, row.threads), {})[_column(row)] = said
    text += [table_row(*name, *(found.get(column, "") for column in sorted(shares))) for name, found in lines.items()]
    return "\n".join(text)


def _short_said(rows: Sequence[InferenceRow]) -> str:
    short = short_of(rows)
    return f"Not the fastest beside {'; beside '.join(short)}." if short else "The packed layer is the fastest of all in every cell."


def _network_table(rows: Sequence[InferenceRow]) -> str:
    names = ("network", "batch", "threads", "values", "dense", "dense + mask", "torch CSR", "packed", "times as fast as dense", "as mask")
    text = table_head(*names)
    for row in rows:
        times = (as_time(row.seconds.get(way)) for way in ("dense", "masked", "csr", "packed"))
        ratios = (times_as_fast_as(row, "dense"), times_as_fast_as(row, "masked"))
        said = ("-" if ratio is None else f"**{ratio:.1f}**" for ratio in ratios)
        text.append(table_row(row.model, row.batch, row.threads, row.values, *times, *said))
    return "\n".join(text)


def _compares_values(rows: Sequence[InferenceRow]) -> bool:
    """Whether each model is there with several kinds of values."""
    kinds: dict[tuple[object, ...], set[str]] = {}
    for row in rows:
        kinds.setdefault((row.model, row.pattern, row.sparsity), set()).add(row.values)
    return all(len(own) > 1 for own in kinds.values())


def _error_table(rows: Sequence[InferenceRow]) -> str:
    """A line for each model and kind of values; of several sparsities the largest errors."""
    accuracy = any(row.accuracy for row in rows)
    names = ("values", "", "layers that hold them", "bytes of dense", "largest error / largest output", "error / output, Euclidean")
    text = table_head(*names, *(["accuracy", "before"] if accuracy else []))
    lines: dict[tuple[str, str], list[InferenceRow]] = {}
    for row in rows:
        lines.setdefault((row.model, row.values), []).append(row)
    for (model, values), own in lines.items():
        sparsities = ", ".join(f"{row.sparsity:.0%}" for row in own)
        sizes = ", ".join(f"{row.bytes / row.dense_bytes:.1%}" for row in own)
        errors = (f"{max(row.largest_error for row in own):.1e}", f"{max(row.rms_error for row in own):.1e}")
        shares = [f"{own[-1].accuracy[name]:.2%}" if name in own[-1].accuracy else "" for name in ("packed", "before")] if accuracy else []
        text.append(table_row(values, f"{model} at {sparsities}", _held(own), sizes, *errors, *shares))
    return "\n".join(text)


def _held(rows: Sequence[InferenceRow]) -> str:
    """Of the layers, how many have a layout that holds its row's kind of values: it says so in its name, float32 apart."""
    held = sum(count for row in rows for name, count in row.layouts.items() if row.values == "float32" or row.values in name)
    return f"{held} of {sum(sum(row.layouts.values()) for row in rows)}"


def as_time(seconds: float | None) -> str:
    """For people: microseconds below one millisecond."""
    if seconds is None:
        return "-"
    return f"{seconds * 1e6:.0f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def times_as_fast_as(row: InferenceRow, way: str) -> float | None:
    """Ratio of the seconds of `way` to those of the packed form; None if it was not timed."""
    return row.seconds[way] / row.seconds["packed"] if way in row.seconds else None


def _window(row: InferenceRow) -> str:
    """Of N:M: the M, as text. Each N has a sparsity of its own, and so a column."""
    found = re.fullmatch(r"NM\(n=\d+, m=(\d+)\)", row.pattern)
    return found[1] if found else ""


def _layer_name(row: InferenceRow) -> str:
    own = f"N:{_window(row)}" if _window(row) else PATTERNS.get(row.pattern, row.pattern)
    pattern = f", {own}" if own else ""
    return f"{row.model}{pattern}{'' if row.values == 'float32' else f', {row.values}'}"


def _column(row: InferenceRow) -> float:
    return round(row.sparsity, 3)
