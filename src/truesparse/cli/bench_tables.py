"""How are the documents of `truesparse bench` shown?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.table import Table

from ..bench import Document, InferenceRow, LayerRow, MemoryRow, RewireRow, ScaleRow, StepRow
from ..bench.page_inference import as_time
from ..runs.machine import hardware, threads_said
from ..runs.results import NAMES
from .results import wide_console

WAYS = ("dense", "masked", "csr", "sparse")
ALL_NAMES = {
    **NAMES,
    "csr": "torch CSR",
    "csr_features_first": "CSR, features first",
    "ablated": "ablated dense",
    "sparse": "truesparse",
    "dense_compiled": "dense, compiled",
    "sparse_compiled": "truesparse, compiled",
    "packed": "packed",
    "dense_tf32": "dense, TF32",
    "dense_bfloat16": "dense, bfloat16",
    "dense_float16": "dense, float16",
    "sparse_bfloat16": "truesparse, bfloat16",
    "sparse_float16": "truesparse, float16",
    "two_four": "2:4, bfloat16",
}


def print_document(document: Document) -> None:
    """The tables on stdout, and below them the machine."""
    console = wide_console()
    layers = [row for row in document.rows if isinstance(row, LayerRow)]
    steps = [row for row in document.rows if isinstance(row, StepRow)]
    memory = [row for row in document.rows if isinstance(row, MemoryRow)]
    scale = [row for row in document.rows if isinstance(row, ScaleRow)]
    rewirings = [row for row in document.rows if isinstance(row, RewireRow)]
    inference = [row for row in document.rows if isinstance(row, InferenceRow)]
    for table in (
        *([_layer_table(layers)] if layers else []),
        *([_step_table(steps), _phase_table(steps)] if steps else []),
        *([_compiled_table(compiled)] if (compiled := [row for row in steps if row.compiled_over_compiled]) else []),
        *([_memory_table(memory)] if memory else []),
        *([_scale_table(scale)] if scale else []),
        *([_rewire_table(rewirings)] if rewirings else []),
        *([_inference_table(inference)] if inference else []),
    ):
        console.print(table)
    left_out = Counter((ALL_NAMES[way], why) for row in layers for way, why in row.left_out.items())
    for (way, why), lines in left_out.items():
        console.print(f"{way} left out of {lines} lines: {why}", highlight=False)
    machine = document.machine
    ran_on, gpu = hardware(machine), machine.get("device", "cpu") != "cpu"
    console.print(f"{ran_on}, {document.dtype}, torch {machine['torch']}", highlight=False)
    for peaks in document.peaks:
        rates = f"{peaks.multiply_adds / 1e9:.0f} G multiply-adds/s, memory {peaks.bytes / 1e9:.1f} GB/s"
        console.print(f"peaks measured on {'the GPU' if gpu else threads_said(peaks.threads)}: {rates}", highlight=False)


def _table(title: str, caption: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(*names, title=title, caption=caption)
    for number in numbers:
        table.add_column(number, justify="right")
    return table


def _layer_table(rows: Sequence[LayerRow]) -> Table:
    beside = [way for way in ALL_NAMES if way not in WAYS and any(way in row.seconds for row in rows)]
    ways = (*WAYS, *beside)
    caption = "medians of interleaved calls, in brackets times as fast as dense. Peaks: share of multiply-adds / of memory bandwidth"
    names = ("layer", "sparsity", "batch", "threads", "direction")
    table = _table("layers", caption, names, [*(ALL_NAMES[way] for way in ways), "of peaks"])
    for row in rows:
        shares = f"{row.share_of_multiply_adds:.0%} / {row.share_of_bandwidth:.0%}"
        given = (row.layer, f"{row.sparsity:.1%}", str(row.batch), str(row.threads), row.direction)
        table.add_row(*given, *(_time(way, row.seconds, row.times_as_fast) for way in ways), shares)
    return table


def _step_table(rows: Sequence[StepRow]) -> Table:
    ways = ("dense", "masked", "sparse")
    caption = f"forward, loss, backward, AdamW, RigL every {rows[0].every} steps; in brackets times as fast as dense"
    names = ("network", "density", "budget", "sparsity", "batch", "threads")
    table = _table("whole training steps", caption, names, [*(ALL_NAMES[way] for way in ways), "of peak"])
    for row in rows:
        given = (row.named, row.density, row.budget, f"{row.sparsity:.1%}", str(row.batch), str(row.threads))
        table.add_row(*given, *(_time(way, row.seconds, row.times_as_fast) for way in ways), f"{row.share_of_multiply_adds:.0%}")
    return table


def _compiled_table(rows: Sequence[StepRow]) -> Table:
    ways = ("dense", "sparse", "dense_compiled", "sparse_compiled")
    names = ("network", "density", "threads")
    without = {f"{ALL_NAMES[way]} of {row.named}: {given}" for row in rows for way, given in row.compile_options.items()}
    caption = "; ".join(["in brackets times as fast as dense without torch.compile", *sorted(without)])
    table = _table(
        "whole training steps under torch.compile", caption, names, [*(ALL_NAMES[way] for way in ways), "compiled over compiled"]
    )
    for row in rows:
        times = (_time(way, row.seconds, row.times_as_fast) for way in ways)
        table.add_row(row.named, row.density, str(row.threads), *times, f"{row.compiled_over_compiled:.2f}")
    return table


def _phase_table(rows: Sequence[StepRow]) -> Table:
    phases = ("forward", "backward", "optimizer", "rewiring")
    caption = f"medians in ms, dense > truesparse; rewiring: of one in {rows[0].every} steps, shared out, and what it takes itself"
    table = _table("where the step's time goes", caption, ("network", "density", "threads"), [*phases, "one rewiring"])
    for row in rows:
        given = (row.named, row.density, str(row.threads))
        times = (f"{row.phases['dense'][phase] * 1e3:.2f} > {row.phases['sparse'][phase] * 1e3:.2f}" for phase in phases)
        table.add_row(*given, *times, f"{(row.rewiring_seconds['sparse'] - row.plain_seconds['sparse']) * 1e3:.1f}")
    return table


def _memory_table(rows: Sequence[MemoryRow]) -> Table:
    kinds = ("weights", "gradients", "optimizer", "topology")
    caption = "training with AdamW and RigL in a process of its own; dense: weights, gradients and two moments, by arithmetic"
    numbers = ("connections", *kinds, "bytes / connection", "peak", "before", "dense", "step", "rewiring step")
    table = _table("memory", caption, ("layers", "sparsity"), numbers)
    for row in rows:
        held = (f"{row.bytes[kind] / 1e6:.1f} MB" for kind in kinds)
        sizes = (f"{size / 1e9:.2f} GB" for size in (row.resident_peak, row.resident_before, row.dense_bytes))
        times = (f"{row.step_seconds * 1e3:.0f} ms", f"{row.rewiring_seconds * 1e3:.0f} ms")
        given = (f"{row.layers} of {row.size} x {row.size}", f"{row.sparsity:.1%}", f"{row.connections:,}")
        table.add_row(*given, *held, f"{row.bytes_per_connection:.1f}", *sizes, *times)
    return table


def _scale_table(rows: Sequence[ScaleRow]) -> Table:
    caption = "three hidden layers, SGD with momentum, GSE, each size in a process of its own; live: from the optimizer's step to zero_grad"
    numbers = ("connections", "making", "first step", "step", "rewiring", "M connections / s", "bytes / connection, live", "peak")
    table = _table("scale", caption, ("neurons", "batch", "threads"), numbers)
    for row in rows:
        times = (f"{own:.2f} s" for own in (row.making_seconds, row.first_step_seconds, row.step_seconds, row.rewiring_seconds))
        held = (f"{own:.1f}" for own in (row.bytes_per_connection, row.peak_bytes_per_connection))
        given = (f"{row.neurons:,}", str(row.batch), str(row.threads), f"{row.connections:,}")
        table.add_row(*given, *times, f"{row.connections_per_second / 1e6:.1f}", *held)
    return table


def _rewire_table(rows: Sequence[RewireRow]) -> Table:
    parts = tuple(rows[0].parts)
    caption = (
        "medians in ms under AdamW, three tenths of the connections replaced; top gradients: finding as many of the largest absent ones"
    )
    names = ("layer", "sparsity", "connections", "batch", "threads")
    whole = tuple(dict.fromkeys(name for row in rows for name in row.algorithms))
    table = _table(
        "rewiring", caption, names, [*parts, "all", "top gradients", "dense forward", "ratio", *(f"all of {name}" for name in whole)]
    )
    for row in rows:
        given = (row.layer, f"{row.sparsity:.1%}", f"{row.connections:,}", str(row.batch), str(row.threads))
        times = (*(row.parts[part] for part in parts), row.rewiring_seconds, row.top_gradients_seconds, row.dense_forward_seconds)
        all_of = (f"{row.algorithms[name] * 1e3:.1f}" if name in row.algorithms else "-" for name in whole)
        table.add_row(*given, *(f"{own * 1e3:.1f}" for own in times), f"{row.top_gradients_over_dense:.2f}", *all_of)
    return table


def _inference_table(rows: Sequence[InferenceRow]) -> Table:
    ways = [way for way in ("dense", "masked", "ablated", "csr", "csr_features_first", "packed") if any(way in row.seconds for row in rows)]
    names = ("model", "pattern", "sparsity", "batch", "threads")
    caption = "medians of interleaved calls without gradients, in brackets times as fast as dense; error: largest of the packed output"
    narrow = any(row.values != "float32" for row in rows)
    accuracy = any(row.accuracy for row in rows)
    table = _table("inference", caption, names, [*(ALL_NAMES[way] for way in ways), "error", *(["accuracy"] if accuracy else [])])
    table.add_column("CSR by")
    table.add_column("layouts")
    for row in rows:
        pattern = row.pattern.removesuffix("()") + (f", {row.ablated:.0%} ablated" if row.ablated else "")
        given = (row.model, pattern + (f", {row.values}" if narrow else ""), f"{row.sparsity:.1%}", str(row.batch), str(row.threads))
        times = (_short_time(way, row.seconds, row.times_as_fast) for way in ways)
        layouts = ", ".join(f"{count} {name}" if row.kind == "network" else name for name, count in row.layouts.items())
        shown = [" > ".join(f"{row.accuracy[name]:.2%}" for name in ("before", "packed") if name in row.accuracy)] if accuracy else []
        table.add_row(*given, *times, f"{row.largest_error:.0e}", *shown, row.csr or "-", layouts)
    return table


def _short_time(way: str, seconds: Mapping[str, float], times_as_fast: Mapping[str, float]) -> str:
    ratio = f" ({times_as_fast[way]:.2f}x)" if way in times_as_fast else ""
    return as_time(seconds.get(way)) + ratio


def _time(way: str, seconds: Mapping[str, float], times_as_fast: Mapping[str, float]) -> str:
    if way not in seconds:
        return "-"
    ratio = f" ({times_as_fast[way]:.2f}x)" if way in times_as_fast else ""
    return f"{seconds[way] * 1e3:.2f} ms{ratio}"
