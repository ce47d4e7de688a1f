"""How does a model's sparsity live while it trains? Follows a `Rewirer` and says it in plain values, for a line of a log."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..nn import TopologyLayer, topology_layers
from ..rewiring import Rewirer
from ..topology import Move, Topology
from .activations import activations
from .energy import energy_at
from .flops import Flops, layer_flops, output_positions, weight_layers
from .history import Explored, Lineage
from .topologies import change_of, dead_neurons, distribution, fan_in, fan_out, grown_keys, quantiles

MOST_POINTS = 32
"""Looks that a report tells apart; of more, as many as needed are taken together."""

STEPS_BETWEEN_LOOKS = 25
"""A look takes up to a third of a step, as more and more positions are explored."""


class Tracker:
    """Follows the rewirings of a model; `step()` counts operations, `report()` says all of it.

        tracker = Tracker(model, rewirer, example=x[:1])
        ...
        loss.backward()
        tracker.step(len(x))
        if rewirer.step():
            optimizer.step()

    Holds, for each layer, a number a connection (int32) and the explored positions (int64), see `Explored`. Works on rewirings
    and reports; `step()` adds a few numbers.

    Args:
        model: dense, sparse or masked.
        rewirer: of the model; None where nothing rewires.
        example: an input of the model, run once for the output positions of its layers, and at each report for the zeros that they
            read; None: neither is counted.
        samples: in `example`; None: its first dimension.
        every: looks at one in so many rewirings; None: at each, or, where less than `STEPS_BETWEEN_LOOKS` steps lie between them, at
            one in as many as make that. What grows and is dropped between two looks goes unseen, and a connection that is dropped
            and grown again between them is taken to have stayed.

    Attributes:
        steps, samples: counted by `step()`.
        flops, dense_flops: operations of the training so far, and those of a dense network, see `truesparse.metrics.flops`.
        seconds: spent in this object.
    """

    def __init__(
        self,
        model: nn.Module,
        rewirer: Rewirer | None = None,
        example: Any = None,
        samples: int | None = None,
        every: int | None = None,
    ) -> None:
        self.model, self.rewirer, self.example = model, rewirer, example
        self.every = every or (ceil(STEPS_BETWEEN_LOOKS / rewirer.schedule.every) if rewirer is not None else 1)
        self.layers = topology_layers(model)
        self.positions = None if example is None else output_positions(model, example, samples)
        self.steps = self.samples = self.flops = self.dense_flops = 0
        self.seconds = 0.0
        self._last_samples = 0
        self._forward = self._forward_flops()
        self._explored = {name: Explored.begin(layer.topology) for name, layer in self.layers.items()}
        self._lineages = {name: Lineage.begin(layer.topology) for name, layer in self.layers.items()}
        self._now = (0, 0) if rewirer is None else (rewirer.rewirings, rewirer.steps)
        self._looked_at = [self._now]  # (rewirings, steps) at each look; the beginning is one
        self._seen = {name: _bare(layer.topology) for name, layer in self.layers.items()}
        self._changes: dict[str, list[tuple[float, ...]]] = {name: [] for name in self.layers}
        self._handle = None if rewirer is None else rewirer.register_hook(self._after_rewiring)

    def step(self, samples: int = 1) -> None:
        """Count a training step of so many samples. Call it before `rewirer.step()`."""
        self.steps += 1
        self.samples += samples
        self._last_samples = samples
        self.flops += (2 * self._forward.sparse + self._forward.gradient) * samples
        self.dense_flops += 3 * self._forward.dense * samples

    def detach(self) -> None:
        """Follow no longer."""
        if self._handle is not None:
            self._handle.remove()

    def report(self, gradient_norms: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Everything measured, as plain values for JSON. docs/guide/metrics.md says what each is.

        Changes are those since the last report.

        Args:
            gradient_norms: as `gradient_norms` gives them, to go with the layers.
        """
        began = time.perf_counter()
        if self._looked_at[-1] != self._now:
            self._look()
        flops = {} if self.positions is None else layer_flops(self.model, self.positions)
        zeros = {} if self.example is None else activations(self.model, (self.example,)).layers
        norms = gradient_norms or {}
        layers: dict[str, dict[str, Any]] = {}
        for name in weight_layers(self.model):
            line: dict[str, Any] = self._report_of(name, self.layers[name]) if name in self.layers else {}
            if name in norms:
                line["gradient_norm"] = _rounded(norms[name]) if isfinite(norms[name]) else None
            if name in flops:
                line["flops"] = flops[name].sparse
            if name in zeros and (share := zeros[name].share) is not None:
                line["zero_inputs"] = _rounded(share)
            layers[name] = line
        self._changes = {name: [] for name in self.layers}
        report: dict[str, Any] = {"layers": layers}
        if self.positions is not None:
            inference = self._forward
            report["flops"] = {
                "inference": inference.sparse,
                "dense_inference": inference.dense,
                "training": self.flops,
                "dense_training": self.dense_flops,
            }
            estimate = energy_at(self.model, self.positions)
            report["energy"] = {"inference": _rounded(estimate.sparse.total), "dense_inference": _rounded(estimate.dense.total)}
        self.seconds += time.perf_counter() - began
        return report

    def state_dict(self) -> dict[str, Any]:
        """Where this object stands, as tensors and plain values."""
        # Between two looks the model has other topologies than those seen last.
        unseen = self._looked_at[-1] != self._now
        seen = {name: (topology.indptr, topology.indices) for name, topology in self._seen.items() if unseen}
        return {
            "steps": self.steps,
            "samples": self.samples,
            "flops": self.flops,
            "dense_flops": self.dense_flops,
            "seconds": self.seconds,
            "last_samples": self._last_samples,
            "now": self._now,
            "looked_at": list(self._looked_at),
            "seen": seen,
            "explored": {name: vars(explored).copy() for name, explored in self._explored.items()},
            "lineages": {name: vars(lineage).copy() for name, lineage in self._lineages.items()},
            "changes": {name: list(changes) for name, changes in self._changes.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` stood. The model holds the topologies of that moment.

        Raises:
            ValueError: if the state is of other layers, or of layers with other numbers of connections.
        """
        now = {name: layer.topology for name, layer in self.layers.items()}
        # Whatever device a checkpoint was written on or mapped to: topologies are beside those of the layers, all else is on the CPU.
        seen = {
            name: Topology(now[name].shape, *(array.to(now[name].device) for array in arrays)) if name in now else None
            for name, arrays in state["seen"].items()
        }
        held = {name: topology.nnz for name, topology in {**now, **seen}.items() if topology is not None}
        born = {name: len(lineage["born"]) for name, lineage in state["lineages"].items()}
        if born != held:
            raise ValueError(f"expected the state of layers with {held} connections, got {born}: load the model's own state first")
        self.steps, self.samples = state["steps"], state["samples"]
        self.flops, self.dense_flops, self.seconds = state["flops"], state["dense_flops"], state["seconds"]
        self._last_samples = state["last_samples"]
        self._now, self._looked_at = tuple(state["now"]), [tuple(look) for look in state["looked_at"]]
        self._seen = {name: _bare(seen.get(name) or topology) for name, topology in now.items()}
        explored, lineages = (tree_map_only(Tensor, Tensor.cpu, state[part]) for part in ("explored", "lineages"))
        self._explored = {name: Explored(**explored[name]) for name in self.layers}
        self._lineages = {name: Lineage(**lineages[name]) for name in self.layers}
        self._changes = {name: list(state["changes"][name]) for name in self.layers}
        self._forward = self._forward_flops()

    def explored(self, name: str) -> Explored:
        """The positions explored so far of a layer."""
        return self._explored[name]

    def lineage(self, name: str) -> Lineage:
        """Which rewiring grew each connection of a layer."""
        return self._lineages[name]

    def _after_rewiring(self, moves: Mapping[str, Move]) -> None:
        began = time.perf_counter()
        assert self.rewirer is not None
        self._count_dense_gradients(self.rewirer.absent_read)
        self._now = self.rewirer.rewirings, self.rewirer.steps
        partly = self._forward.gradient != self._forward.sparse
        if partly or any(move.old.nnz != move.new.nnz or move.acting is not None for move in moves.values()):
            self._forward = self._forward_flops()
        if self.every == 1:
            self._look(moves)
        elif self._now[0] - self._looked_at[-1][0] >= self.every:
            self._look()
        self.seconds += time.perf_counter() - began

    def _look(self, moves: Mapping[str, Move] | None = None) -> None:
        """Take in what has changed since the last look, or those very moves."""
        self._looked_at.append(self._now)
        for name, layer in self.layers.items():
            seen, lineage = self._seen[name], self._lineages[name]
            move = Move.between(seen, layer.topology) if moves is None else moves.get(name, Move.between(seen, seen))
            if move.old.nnz != seen.nnz:
                raise RuntimeError(
                    f"layer {name!r} had {seen.nnz} connections after the last rewiring and {move.old.nnz} before this one: something "
                    "else has changed it; make the Tracker after loading a model, or load its state too"
                )
            grown = grown_keys(move)
            change = change_of(move, grown)
            self._changes[name].append((change.dropped, change.grown, change.hamming, change.jaccard))
            self._seen[name] = _bare(move.new)
            self._lineages[name] = lineage.after(move)
            self._explored[name] = self._explored[name].after(grown)

    def _count_dense_gradients(self, absent_read: Mapping[str, int]) -> None:
        if self.positions is not None:
            read = sum(count * self.positions[name] for name, count in absent_read.items())
            self.flops += 2 * read * self._last_samples

    def _forward_flops(self) -> Flops:
        return Flops(0, 0) if self.positions is None else sum(layer_flops(self.model, self.positions).values(), Flops(0, 0))

    def _report_of(self, name: str, layer: TopologyLayer) -> dict[str, Any]:
        topology, lineage, explored = layer.topology, self._lineages[name], self._explored[name]
        dead_outputs, dead_inputs = dead_neurons(topology, layer.geometry)
        return {
            "connections": topology.nnz,
            "acting": layer.connections,
            "itop_rate": _rounded(explored.rate),
            "itop_one_in": explored.one_in,
            "changes": _changes(self._changes[name], self.every),
            "survival": _survival(lineage, self.every),
            "age": _ages(lineage, self._looked_at, self._now[0], self.rewirer.steps if self.rewirer is not None else 0),
            "fan_in": asdict(distribution(fan_in(topology))),
            "fan_out": asdict(distribution(fan_out(topology, layer.geometry))),
            "dead_outputs": dead_outputs,
            "dead_inputs": dead_inputs,
        }


@torch.no_grad()
def gradient_norms(model: nn.Module) -> dict[str, float]:
    """The Euclidean norm of each layer's gradient, of its connections only; 0 where there is no gradient.

    Gradient flow is its square: Evci et al. 2022, https://arxiv.org/abs/2010.03533, section 3.
    """
    found: dict[str, Tensor] = {}
    for name, layer in weight_layers(model).items():
        parameter = layer.parameter if isinstance(layer, TopologyLayer) else layer.weight
        gradient: Tensor | None = parameter.grad  # type: ignore[union-attr]
        if gradient is None:
            found[name] = torch.zeros((), device="cpu")
        else:
            found[name] = (layer.of_connections(gradient) if isinstance(layer, TopologyLayer) else gradient).norm().cpu()
    return {name: norm.item() for name, norm in found.items()}


def _changes(changes: Sequence[tuple[float, ...]], every: int) -> dict[str, Any]:
    """Counts added up, distances averaged over looks taken together."""
    together = _together(len(changes))
    groups = [changes[start : start + together] for start in range(0, len(changes), together)]
    columns = [list(zip(*group, strict=True)) for group in groups]
    return {
        "rewirings": together * every,
        "dropped": [sum(column[0]) for column in columns],
        "grown": [sum(column[1]) for column in columns],
        "hamming": [_rounded(sum(column[2]) / len(column[2])) for column in columns],
        "jaccard": [_rounded(sum(column[3]) / len(column[3])) for column in columns],
    }


def _survival(lineage: Lineage, every: int) -> dict[str, Any]:
    """Share of the first connections that live, and of those grown since, look by look or several together; None where there are none."""
    alive, grown = lineage.alive.tolist(), lineage.grown
    together = _together(len(grown) - 1)
    starts = range(1, len(grown), together)
    shares = [(sum(alive[start : start + together]), sum(grown[start : start + together])) for start in starts]
    return {
        "rewirings": together * every,
        "first": _rounded(alive[0] / grown[0]) if grown[0] else None,
        "grown": [_rounded(living / born) if born else None for living, born in shares],
    }


def _ages(lineage: Lineage, looked_at: Sequence[tuple[int, int]], rewirings: int, steps: int) -> dict[str, Any]:
    """Quantiles of the age of the living, in rewirings and in steps."""
    by_age = lineage.alive.flip(0)  # entry a: how many grew a looks ago
    births = [looked_at[-1 - age] for age in quantiles(by_age)] if int(by_age.sum()) else []
    return {"rewirings": [rewirings - born for born, _ in births], "steps": [steps - born for _, born in births]}


def _bare(topology: Topology) -> Topology:
    """The same without the kernel plans that it has derived: those of old topologies shall not stay in memory."""
    return Topology._trusted(topology.shape, topology.indptr, topology.indices)


def _together(count: int) -> int:
    return max(1, ceil(count / MOST_POINTS))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
