"""What does the page show of its runs? Plain values, from which its own script draws everything."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from typing import Any

from torch import Tensor

from ..runs.machine import hardware
from ..topology.geometry import Matrix, Transposed
from .drawing import MOST_CHANGES, MOST_FRAMES, Drawing
from .evolution import Evolution, evolution
from .run import Run, RunLayer

MOST_BIRTHS = 12  # groups of connections told apart by age
MOST_BINS = 40
DIGITS = 5  # significant, of measures


def page_content(runs: Sequence[Run]) -> dict[str, Any]:
    """As plain values for JSON.

    Raises:
        RunError: if a file of a run is missing or damaged.
    """
    return {"runs": [_run(run, name, len(runs)) for run, name in zip(runs, _names(runs), strict=True)]}


def _names(runs: Sequence[Run]) -> list[str]:
    """Of their folders, with as many folders above them as tell them apart."""
    paths = [run.path.resolve() for run in runs]
    for depth in range(1, max(len(path.parts) for path in paths)):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(path) for path in paths]


def _run(run: Run, name: str, count: int) -> dict[str, Any]:
    variant = run.sparse_variant
    return {
        "name": name,
        "recipe": run.recipe,
        "notes": run.notes,
        "config": {key: value for key, value in run.config.items() if not key.endswith("sha256")},
        "hardware": ran_on(run),
        "steps": run.steps,
        "samples": run.inference_samples,
        "table": [_row(run, variant) for variant in run.variants if run.metrics[variant]],
        "curves": {variant: _curves(run, variant) for variant in run.variants if run.metrics[variant]},
        "seconds": {variant: parts for variant in run.variants if (parts := _step_seconds(run, variant))},
        "shown": variant,
        "gradients": {} if variant is None else {name: _gradient_norms(run, variant, name) for name in run.layers},
        "sample": run.sample,
        "layers": [] if variant is None or not run.metrics[variant] else _layers(run, variant, MOST_CHANGES / count),
        "zeroInputs": {} if variant is None or not run.metrics[variant] else _zero_inputs(run, variant),
        "pruning": run.pruning,
    }


def ran_on(run: Run) -> str:
    """The class of machine in one line; of a run that went on elsewhere, the types of devices in their order first."""
    if not run.machine:
        return "unknown"
    devices = dict.fromkeys(str(line["device"]) for lines in run.metrics.values() for line in lines if "device" in line)
    versions = [f"{name} {run.machine[name]}" for name in ("torch", "truesparse") if name in run.machine]
    said = [" then ".join(devices)] if len(devices) > 1 else []
    return ", ".join(part for part in (*said, hardware(run.machine), *versions) if part)


def _row(run: Run, variant: str) -> dict[str, Any]:
    """The closing table's line, or what is known so far of a run that has not finished."""
    last, closing = run.metrics[variant][-1], run.results.get(variant, {})
    seconds = sorted(line["seconds"] for line in run.metrics[variant])
    return {
        "variant": variant,
        "epochs": last["epoch"],
        "accuracy": last["test_accuracy"],
        "loss": last["test_loss"],
        "weights": last["connections"],
        "bytes": last["bytes"],
        "flops": last.get("flops", {}).get("inference"),  # not known of every network
        "energy": last.get("energy", {}).get("inference"),
        "seconds": closing.get("seconds_per_epoch", seconds[len(seconds) // 2]),
        "inference": closing.get("inference_seconds"),
    }


def _curves(run: Run, variant: str) -> dict[str, Any]:
    lines = run.metrics[variant]
    known = all("flops" in line for line in lines)
    return {
        "first": lines[0]["epoch"],
        "seconds": [_rounded(seconds) for seconds in accumulate(line["seconds"] for line in lines)],
        "flops": [line["flops"]["training"] for line in lines] if known else None,
        "train_loss": [_rounded(line["train_loss"]) for line in lines],
        "test_loss": [_rounded(line["test_loss"]) for line in lines],
        "accuracy": None if lines[0]["test_accuracy"] is None else [_rounded(line["test_accuracy"]) for line in lines],
    }


def _step_seconds(run: Run, variant: str) -> dict[str, float] | None:
    """Of the closing table; of a run that has not finished, with dx and dW together."""
    if variant in run.results:
        return run.results[variant].get("step_seconds")
    lines = [line["seconds_of"] for line in run.metrics[variant] if "seconds_of" in line]
    return {phase: sum(line[phase] for line in lines) / len(lines) / run.steps for phase in lines[0]} if lines else None


def _gradient_norms(run: Run, variant: str, layer: str) -> list[float | None]:
    return [line.get("layers", {}).get(layer, {}).get("gradient_norm") for line in run.metrics[variant]]


def _zero_inputs(run: Run, variant: str) -> dict[str, float]:
    """The share of zeros in what each layer read at the end; of those of which it is known."""
    layers = run.metrics[variant][-1].get("layers", {})
    return {name: own["zero_inputs"] for name, own in layers.items() if "zero_inputs" in own}


def _layers(run: Run, variant: str, most_changes: float) -> list[dict[str, Any]]:
    counts = {name: run.change_counts(variant, name) for name in run.layers}
    drawn = {name: max(sum(dropped + grown for _, dropped, grown in own), 1) for name, own in counts.items()}
    every = max(1, ceil(max((len(own) for own in counts.values()), default=0) / MOST_FRAMES))
    contents = []
    for name, layer in run.layers.items():
        drawing = Drawing(run, layer, every, drawn[name], most_changes / len(run.layers))
        lived = evolution(layer.geometry, drawing.watch(run.stages(variant, name)), _births(len(counts[name])))
        contents.append(_layer(run, layer, lived, drawing))
    return contents


def _layer(run: Run, layer: RunLayer, lived: Evolution, drawing: Drawing) -> dict[str, Any]:
    frames = [frame["stage"] for frame in drawing.frames]
    return {
        "name": layer.name,
        "title": title(layer),
        "rows": layer.shape[0],
        "columns": layer.shape[1],
        "inputs": layer.geometry.inputs,
        "isConvolution": not isinstance(layer.geometry, Matrix),
        "pattern": layer.pattern,
        "budget": layer.budget,
        "steps": lived.steps,
        "connections": lived.connections,
        "hamming": _all_rounded(lived.hamming),
        "jaccard": _all_rounded(lived.jaccard),
        "itop": _all_rounded(lived.itop),
        "itopOneIn": lived.itop_one_in,
        "survival": _all_rounded(lived.survival),
        "births": {"steps": [lived.steps[stage] for stage in lived.births], "alive": lived.alive.T.tolist()},
        "ages": _quantiles(lived),
        "deadOutputs": lived.dead_outputs,
        "deadInputs": lived.dead_inputs,
        "fanIn": _histograms([lived.fan_in[stage] for stage in frames]),
        "fanOut": _histograms([lived.fan_out[stage] for stage in frames]),
        "drawing": drawing.content(),
    }


def title(layer: RunLayer) -> str:
    """What it is, in words."""
    geometry = layer.geometry
    if isinstance(geometry, Matrix):
        return f"linear, {geometry.columns:,} → {geometry.rows:,}"
    kind, own = ("transposed convolution", geometry.of) if isinstance(geometry, Transposed) else ("convolution", geometry)
    return f"{kind} {' × '.join(map(str, own.kernel))}, {geometry.in_channels} → {geometry.out_channels} channels"


def _births(updates: int) -> list[int]:
    """Where groups of connections begin: those of the beginning, then as many updates together as are needed."""
    return [0, *range(1, updates + 1, max(1, ceil(updates / (MOST_BIRTHS - 1))))]


def _quantiles(lived: Evolution) -> dict[str, int] | None:
    """Of the age of the connections at the end, in steps."""
    total, below, found = sum(lived.ages.values()), 0, {}
    for age, count in lived.ages.items():
        below += count
        for name, share in (("quarter", 0.25), ("median", 0.5), ("three_quarters", 0.75)):
            if name not in found and below >= share * total:
                found[name] = age
    return found or None


def _histograms(counts: Sequence[Tensor]) -> dict[str, Any]:
    """Neurons by their number of connections, in bins of one width for all frames: a power of two, so that those of runs can be joined."""
    least, most = min(int(own.nonzero().min()) for own in counts), max(own.numel() for own in counts)
    width = 1
    while width * MOST_BINS < most - least:
        width *= 2
    least -= least % width
    binned = []
    for own in counts:
        shifted = own[least:]
        padded = Tensor.new_zeros(shifted, ceil(shifted.numel() / width) * width)
        padded[: shifted.numel()] = shifted
        binned.append(padded.view(-1, width).sum(1).tolist())
    bins = max(len(own) for own in binned)
    return {"least": least, "width": width, "counts": [own + [0] * (bins - len(own)) for own in binned]}


def _all_rounded(values: Sequence[float]) -> list[float]:
    return [_rounded(value) for value in values]


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
