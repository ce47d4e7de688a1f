"""What does a run folder say? `read_run` reads it into plain, frozen values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..runs import RunError
from ..runs.folder import PRUNING
from ..runs.layers import geometry_of
from ..runs.updates import Update, from_arrays, mask_change
from ..topology import Topology
from ..topology.geometry import Geometry, Matrix
from ..topology.merge import position_in
from .files import Stored, damaged, read_json, read_lines, read_tensors

PREFERRED = ("sparse", "masked")


@dataclass(frozen=True)
class RunLayer:
    """A layer with a topology.

    Attributes:
        geometry: what dense operation it stands for.
        pattern: the rule its topology obeys, in words; None if the run does not say.
        budget: connections it has been given; at the end, where the algorithm prunes on the way.
        sees_sample: whether samples come to it as they are, or flattened; False if the run does not say.
    """

    name: str
    geometry: Geometry
    pattern: str | None
    budget: int
    sees_sample: bool

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        return self.geometry.shape


@dataclass(frozen=True, eq=False)
class Stage:
    """A topology of a layer, and how it came about. A connection dropped and grown again at the same place has not changed.

    Attributes:
        step: steps of training behind it.
        topology: after the update.
        dropped: ascending int64 positions (row x columns + column) that the update took out; none at the first stage.
        grown: positions that it put in.
    """

    step: int
    topology: Topology
    dropped: Tensor
    grown: Tensor


@dataclass(frozen=True, eq=False)
class Run:
    """A run, as its folder says.

    Attributes:
        path: the folder.
        config: every choice, as `truesparse.runs.RunConfig` names them.
        machine: what it ran on; empty if the run has not said.
        results: the closing table, a mapping for each variant; empty before the end of the run.
        inference_samples: samples of the inference times in it; 0 before the end.
        metrics: for each variant, those of each complete epoch, in order. docs/guide/metrics.md says what they are.
        layers: the layers with a topology, in the order of the model; none if only a dense network was trained.
        steps: of an epoch; 1 if the run does not say, so that `step / steps` is always a number of epochs.
        sample: shape of an input sample; None if the run does not say.
        has_updates: whether topologies are known after each update, or only after each epoch.
        pruning: what pruning has removed before the training, as `runs.pruned.described` says it; None of a network that was not pruned.
        notes: what a reader should know: what is missing, and why.
    """

    path: Path
    config: Mapping[str, Any]
    machine: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    inference_samples: int
    metrics: Mapping[str, tuple[Mapping[str, Any], ...]]
    layers: Mapping[str, RunLayer]
    steps: int
    sample: tuple[int, ...] | None
    has_updates: bool
    pruning: Mapping[str, Any] | None
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.resolve().name

    @property
    def recipe(self) -> str:
        """Short name of what was trained."""
        return Path(str(self.config["task"])).stem

    @property
    def variants(self) -> tuple[str, ...]:
        """Those trained: "dense", "masked", "sparse"."""
        return tuple(self.config["variants"])

    @property
    def sparse_variant(self) -> str | None:
        """The variant whose topologies tell most: the truly sparse one, or the masked one if there is no other; None if all is dense."""
        return next((name for name in PREFERRED if name in self.variants), None)

    @property
    def effort(self) -> int:
        """How much there is to read: connections x updates of all layers, of the variant whose topologies tell most.

        Raises:
            RunError: if a file is missing or damaged.
        """
        variant = self.sparse_variant
        if variant is None or not self.layers:
            return 0
        # All layers have the same updates.
        updates = len(self.change_counts(variant, next(iter(self.layers))))
        return (1 + updates) * sum(layer.budget for layer in self.layers.values())

    def topologies(self, variant: str, layer: str) -> tuple[Stage, ...]:
        """The topologies of a layer, from the start on, one after each update recorded (of a run without updates: after each epoch).

        Raises:
            RunError: if a file is missing or damaged.
            KeyError: if there is no such variant with topologies, or no such layer.
        """
        return tuple(self.stages(variant, layer))

    def stages(self, variant: str, layer: str) -> Iterator[Stage]:
        """The same one by one: for layers whose topologies together are too much for the memory."""
        self._check(variant, layer)
        return self._stages(variant, self.layers[layer])

    def change_counts(self, variant: str, layer: str) -> tuple[tuple[int, int, int], ...]:
        """(step, dropped, grown) of each update, without reading what they are. Raises as `stages` does."""
        self._check(variant, layer)
        if not self.has_updates:
            return tuple((stage.step, stage.dropped.numel(), stage.grown.numel()) for stage in self.stages(variant, layer) if stage.step)
        counts: list[tuple[int, int, int]] = []
        for epoch in self._epochs(variant):
            names = ("steps", f"{layer}.dropped_counts", f"{layer}.grown_counts")
            tensors = read_tensors(_updates_path(self.path, variant, epoch), names).tensors
            counts += zip(*(tensors[name].tolist() for name in names), strict=True)
        return tuple(counts)

    def _check(self, variant: str, layer: str) -> None:
        if variant not in self.variants or variant not in PREFERRED:
            known = ", ".join(name for name in self.variants if name in PREFERRED) or "none"
            raise KeyError(f"the run has no variant {variant!r} with topologies; it has {known}")
        if layer not in self.layers:
            raise KeyError(f"the run has no sparse layer {layer!r}; it has {', '.join(self.layers) or 'none'}")

    def _epochs(self, variant: str) -> range:
        """Those that are complete. The first one is another than 1 where the network has begun later in the training (lottery tickets)."""
        lines = self.metrics[variant]
        first = lines[0]["epoch"] if lines else 1
        return range(first, first + len(lines))

    def _stages(self, variant: str, layer: RunLayer) -> Iterator[Stage]:
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        epochs = self._epochs(variant)
        now = self._topology(variant, epochs.start - 1, layer)
        yield Stage(0, now, none, none)
        for epoch in epochs:
            end = self._topology(variant, epoch, layer)
            if not self.has_updates:
                dropped, grown = mask_change(now, end)
                yield Stage(epoch * self.steps, end, dropped, grown)
                now = end
                continue
            path = _updates_path(self.path, variant, epoch)
            for update in _updates(path, layer.name):
                dropped, grown = update.changes[layer.name]
                now = _after(path, layer, now, dropped, grown)
                yield Stage(update.step, now, dropped, grown)
            if not now.equal(end):
                raise damaged(path, f"the updates of layer {layer.name!r} do not lead to the topology at the end of the epoch")

    def _topology(self, variant: str, epoch: int, layer: RunLayer) -> Topology:
        path = _topology_path(self.path, variant, epoch)
        stored = read_tensors(path, (f"{layer.name}.indptr", f"{layer.name}.indices"))
        try:
            return Topology(layer.shape, *(torch.from_numpy(stored.tensors[f"{layer.name}.{part}"]) for part in ("indptr", "indices")))
        except (ValueError, TypeError) as error:
            raise damaged(path, f"layer {layer.name!r}: {error}") from error


def read_run(path: Path | str) -> Run:
    """The run in the folder `path`, finished or not. Topologies are read when asked for.

    Raises:
        RunError: if there is no run, nothing of it is complete yet, or a file is damaged.
    """
    path = Path(path)
    config = _config(path)
    variants = tuple(config["variants"])
    pruning = _pruning(path)
    metrics = _metrics(path, variants, pruning is not None)
    results = _results(path, variants)
    has_topologies = any(variant in PREFERRED for variant in variants)
    described = read_json(path / "layers.json") if (path / "layers.json").exists() else None
    try:
        layers, steps, sample = _layers(path, variants, described)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(path / "layers.json", str(error)) from error
    trained = any(metrics.values())
    old = trained and has_topologies and not _has_updates(path, variants)
    notes = []
    epochs = {variant: lines[-1]["epoch"] if lines else 0 for variant, lines in metrics.items()}
    if not trained:
        notes.append("pruned, and not trained since")
    elif min(epochs.values()) < config["epochs"]:
        counts = ", ".join(f"{name} {count}" for name, count in epochs.items())
        notes.append(f"not finished: of {config['epochs']} epochs are complete: {counts}")
    if old:
        notes.append("from a version that recorded topologies after each epoch only: updates within an epoch are not known")
    if described is None:
        notes.append("from a version that did not say what its layers are: convolutions appear as the matrices they are stored as")
    return Run(
        path=path,
        config={name: value for name, value in config.items() if name != "machine"},
        machine=config.get("machine", {}),
        results={line["variant"]: line for line in results.get("variants", ())},
        inference_samples=results.get("samples", 0),
        metrics=metrics,
        layers=layers,
        steps=steps,
        sample=sample,
        has_updates=not old,
        pruning=pruning,
        notes=tuple(notes),
    )


def _config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").exists():
        what = "has no config.json" if path.is_dir() else "is no folder" if path.exists() else "does not exist"
        raise RunError(f"expected the folder of a run of truesparse train, but {path} {what}")
    config = read_json(path / "config.json")
    if not isinstance(config, dict) or not {"task", "variants", "epochs"} <= config.keys():
        raise damaged(path / "config.json", "expected task, variants and epochs")
    return config


def _pruning(path: Path) -> Mapping[str, Any] | None:
    file = path / PRUNING
    if not file.exists():
        return None
    found = read_json(file)
    try:
        rounds = [(one["sparsity"], one["accuracy"], tuple(one["layers"])) for one in found["rounds"]]
        if len({layers for *_, layers in rounds}) != 1 or not isinstance(found["sensitivity"], dict):
            raise ValueError("expected rounds of the same layers, and the sensitivity of layers")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(file, str(error)) from error
    return found


def _metrics(path: Path, variants: Sequence[str], may_be_untrained: bool) -> dict[str, tuple[Mapping[str, Any], ...]]:
    file = path / "metrics.jsonl"
    if not file.exists() and may_be_untrained:
        return dict.fromkeys(variants, ())
    if not file.exists():
        raise RunError(f"no epoch of the run in {path} is complete yet; look again later, or go on with it: truesparse train --resume")
    lines = read_lines(file)
    metrics = {variant: tuple(line for line in lines if line.get("variant") == variant) for variant in variants}
    for variant, own in metrics.items():
        first = own[0].get("epoch") if own else 1
        if not isinstance(first, int) or [line.get("epoch") for line in own] != list(range(first, first + len(own))):
            raise damaged(file, f"the epochs of {variant} are {[line.get('epoch') for line in own]}")
    if not any(metrics.values()):
        raise damaged(file, "it has no line")
    return metrics


def _results(path: Path, variants: Sequence[str]) -> Mapping[str, Any]:
    file = path / "results.json"
    if not file.exists():
        return {}
    results = read_json(file)
    try:
        if [line["variant"] for line in results["variants"]] != list(variants):
            raise ValueError(f"expected lines of {', '.join(variants)}")
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(file, str(error)) from error
    return results


def _layers(
    path: Path, variants: Sequence[str], described: Mapping[str, Any] | None
) -> tuple[dict[str, RunLayer], int, tuple[int, ...] | None]:
    """(layers, steps of an epoch, shape of a sample)."""
    if described is None:
        named = next((name for name in PREFERRED if name in variants), None)
        if named is None:
            return {}, 1, None
        stored = read_tensors(_topology_path(path, named, 0))
        shapes = stored.described["shapes"]
        return {name: _undescribed(name, shapes[name], stored) for name in sorted(shapes, key=_counted)}, 1, None
    layers = {
        name: RunLayer(name, geometry_of(layer["geometry"]), layer["pattern"], layer["budget"], layer["sees_sample"])
        for name, layer in described["layers"].items()
    }
    sample = described["sample"]
    return layers, described["steps"], None if sample is None else tuple(sample)


def _undescribed(name: str, shape: Sequence[int], stored: Stored) -> RunLayer:
    return RunLayer(name, Matrix(*shape), None, stored.tensors[f"{name}.indices"].size, False)


def _counted(name: str) -> list[tuple[bool, int, str]]:
    """Sorts "10" after "9": such a file has lost the order of the model, in which layers are usually numbered."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in name.split(".")]


def _topology_path(path: Path, variant: str, epoch: int) -> Path:
    return path / variant / "topologies" / f"epoch-{epoch:04d}.safetensors"


def _updates_path(path: Path, variant: str, epoch: int) -> Path:
    return path / variant / "updates" / f"epoch-{epoch:04d}.safetensors"


def _has_updates(path: Path, variants: Sequence[str]) -> bool:
    return any((path / variant / "updates").is_dir() for variant in variants if variant in PREFERRED)


def _updates(path: Path, layer: str) -> tuple[Update, ...]:
    parts = (f"{layer}.{kind}{counts}" for kind in ("dropped", "grown") for counts in ("", "_counts"))
    stored = read_tensors(path, ("steps", *parts))
    try:
        return from_arrays(stored.tensors, [layer])
    except (KeyError, ValueError, TypeError) as error:
        raise damaged(path, str(error)) from error


def _after(path: Path, layer: RunLayer, topology: Topology, dropped: Tensor, grown: Tensor) -> Topology:
    at = position_in(topology.keys, dropped)
    if bool((at < 0).any()):
        raise damaged(path, f"an update of layer {layer.name!r} drops connections that are not there")
    try:
        return topology.drop(at).grow(grown)
    except ValueError as error:
        raise damaged(path, f"layer {layer.name!r}: {error}") from error
