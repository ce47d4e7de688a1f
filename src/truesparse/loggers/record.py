"""What of a training goes into a log, under which names? The same for every logger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..metrics import Distribution
from ..nn import topology_layers
from ..topology import Topology
from ..topology.picture import pixels
from .protocol import Logger, Setting

MOST_PICTURES = 8
"""Layers that are drawn: the first of them."""

NAMES = {
    "train_loss": "loss/train",
    "test_loss": "loss/test",
    "test_accuracy": "accuracy/test",
    "ema_test_loss": "loss/test_ema",
    "ema_test_accuracy": "accuracy/test_ema",
    "seconds": "seconds/training",
    "peak_bytes": "bytes/peak",
    "seconds_measuring": "seconds/measuring",
}

# Of each layer. None where a layer has no such thing.
OF_LAYERS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "connections": lambda layer: layer.get("connections"),
    "itop_rate": lambda layer: layer.get("itop_rate"),
    "dropped": lambda layer: sum(layer["changes"]["dropped"]) if "changes" in layer else None,
    "grown": lambda layer: sum(layer["changes"]["grown"]) if "changes" in layer else None,
    "mask_distance": lambda layer: _mean(layer["changes"]["jaccard"]) if "changes" in layer else None,
    "survival": lambda layer: layer["survival"]["first"] if "survival" in layer else None,
    "median_age": lambda layer: _median(layer["age"]["steps"]) if "age" in layer else None,
    "dead_outputs": lambda layer: layer.get("dead_outputs"),
    "dead_inputs": lambda layer: layer.get("dead_inputs"),
    "gradient_norm": lambda layer: layer.get("gradient_norm"),
    "flops": lambda layer: layer.get("flops"),
    "zero_inputs": lambda layer: layer.get("zero_inputs"),
}
HISTOGRAMS = ("fan_in", "fan_out")


def log_model(logger: Logger, model: nn.Module, report: Mapping[str, Any], step: int) -> None:
    """Log what a `Tracker` says of a model, as `truesparse train` does: numbers, histograms and pictures of the masks.

    Args:
        logger: any.
        model: that the report is about.
        report: of `truesparse.metrics.Tracker.report()`; further numbers may be added to it under names of your own.
        step: of the log.
    """
    log_report(logger, report, {name: layer.topology for name, layer in topology_layers(model).items()}, step)


def log_report(
    logger: Logger, report: Mapping[str, Any], topologies: Mapping[str, Topology], step: int, before: Mapping[str, Topology] | None = None
) -> None:
    """Log a line of metrics.jsonl, or what a `Tracker` reports.

    Args:
        before: the topologies of the last picture; what has changed since is then coloured.
    """
    log_pictures(logger, topologies, step, before)
    log_numbers(logger, report, topologies, step)


def log_numbers(logger: Logger, report: Mapping[str, Any], topologies: Mapping[str, Topology], step: int) -> None:
    """The same without pictures."""
    for name, distribution in histograms(report).items():
        logger.histogram(name, distribution, step)
    logger.scalars(scalars(report, {name: topology.size for name, topology in topologies.items()}), step)


def log_pictures(logger: Logger, topologies: Mapping[str, Topology], step: int, before: Mapping[str, Topology] | None = None) -> None:
    """Pictures of the first layers: white unchanged, red dropped, green grown."""
    for name, topology in list(topologies.items())[:MOST_PICTURES]:
        logger.image(f"mask/{_said(name)}", change_picture((before or topologies)[name], topology), step)


def change_picture(old: Topology, new: Topology) -> Tensor:
    """[height, width, 3] uint8: what has become of the connections of `old`; see `truesparse.topology.picture`."""
    stays, was = new.contains(old.keys), old.contains(new.keys)
    return pixels(new.shape, old.keys[stays], old.keys[~stays], new.keys[~was])


def scalars(report: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, float]:
    """The numbers of a report by their names in the log; what is None or no number is left out.

    Args:
        report: a line of metrics.jsonl, or what a `Tracker` reports.
        sizes: rows x columns of each layer with a topology.
    """
    found: dict[str, float | None] = {}
    for name, value in report.items():
        if name in ("layers", "variant", "epoch"):
            continue
        if isinstance(value, Mapping):
            found |= {f"{name}/{part}": number for part, number in value.items()}
        else:
            found[NAMES.get(name, f"model/{name}")] = value
    layers: Mapping[str, Mapping[str, Any]] = report.get("layers", {})
    for layer, line in layers.items():
        found |= {f"{measure}/{_said(layer)}": of(line) for measure, of in OF_LAYERS.items()}
        if sizes.get(layer):
            found[f"sparsity/{_said(layer)}"] = 1 - line["connections"] / sizes[layer]
    with_topology = [name for name in layers if sizes.get(name)]
    if with_topology:
        size = sum(sizes[name] for name in with_topology)
        found["model/sparsity"] = 1 - sum(layers[name]["connections"] for name in with_topology) / size
        found["model/itop_rate"] = sum(layers[name]["itop_rate"] * sizes[name] for name in with_topology) / size
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def histograms(report: Mapping[str, Any]) -> dict[str, Distribution]:
    """The distributions of a report by their names in the log."""
    layers: Mapping[str, Mapping[str, Any]] = report.get("layers", {})
    return {
        f"{kind}/{_said(name)}": Distribution(tuple(layer[kind]["quantiles"]), layer[kind]["width"], tuple(layer[kind]["counts"]))
        for kind in HISTOGRAMS
        for name, layer in layers.items()
        if kind in layer and layer[kind]["counts"]
    }


def settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Setting]:
    """Nested choices as one level: numbers, bools and text."""
    found: dict[str, Setting] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= settings(value, f"{prefix}{name}/")
        elif isinstance(value, list | tuple):
            found[prefix + name] = ", ".join(map(str, value))
        else:
            found[prefix + name] = value if isinstance(value, bool | int | float | str) else "none" if value is None else str(value)
    return found


def results(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of the closing table by their names in the log."""
    flat = settings({name: value for name, value in line.items() if name != "variant"})
    return {f"results/{name}": float(value) for name, value in flat.items() if isinstance(value, int | float)}


def _said(layer: str) -> str:
    return layer or "model"


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _median(quantiles: list[float]) -> float | None:
    return quantiles[len(quantiles) // 2] if quantiles else None
