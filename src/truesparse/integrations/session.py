"""What does sparse training need of a framework? A model before its optimizers are made, the optimizers, and how long it lasts."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..algorithms import AnyAlgorithm
from ..metrics import Tracker
from ..nn import TopologyLayer, sparsify, topology_layers
from ..rewiring import Rewirer
from ..rewiring.checks import check_algorithm, held_layers
from ..rewiring.optimizers import optimizers_in

SPARSITY = 0.9
REWIRING_ENDS = 0.75


@dataclass(frozen=True)
class Settings:
    """How to train sparse, before there is a model.

    Args:
        algorithm: of `truesparse.algorithms`, or one's own.
        sparsity: share of the weights to leave out; None: what the algorithm begins with (`GMP`, `GraNet`), else 0.9.
        every: steps of the optimizer between two rewirings.
        until: share of the training after which the topologies stay, in (0, 1]; None: the algorithm's own, else 0.75.
        seed: of topologies and of every random choice after them.
        options: further arguments of `truesparse.sparsify`: budget, pattern, exclude, ...

    Raises:
        TypeError: if the algorithm is none, or `sparsify` has no such argument.
        ValueError: if `until` is no share.
    """

    algorithm: AnyAlgorithm
    sparsity: float | None
    every: int
    until: float | None
    seed: int
    options: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_algorithm(self.algorithm)
        known = set(inspect.signature(sparsify).parameters) - {"model", "sparsity", "generator"}
        unknown = sorted(set(self.options) - known)
        if unknown:
            raise TypeError(f"expected arguments of truesparse.sparsify ({', '.join(sorted(known))}), got {', '.join(unknown)}")
        if self.until is not None and not 0 < self.until <= 1:
            raise ValueError(f"until is a share of the training, in (0, 1], got {self.until!r}")

    def make_sparse(self, model: nn.Module) -> None:
        """Sparsify a dense model in place; one with sparse layers is left as it is.

        Raises:
            ValueError, TypeError: as `sparsify` does; the model is unchanged.
        """
        if topology_layers(model):
            return
        options = {"pattern": getattr(self.algorithm, "default_pattern", None), **self.options}
        sparsity = getattr(self.algorithm, "start_sparsity", SPARSITY) if self.sparsity is None else self.sparsity
        sparsify(model, sparsity, generator=torch.Generator().manual_seed(self.seed), **options)

    def rewiring_ends(self, total_steps: int) -> float:
        """The step of the optimizer, of so many, after which the topologies stay."""
        share = getattr(self.algorithm, "rewiring_ends", REWIRING_ENDS) if self.until is None else self.until
        return share * total_steps


class Session:
    """One training: a `Rewirer` attached to each optimizer that trains sparse layers, and what is measured of them.

    Args:
        model: with sparse layers.
        optimizers: that hold their parameters; or objects that wrap those.
        total_steps: that each optimizer will take.
        measured: whether `measures` knows more than the counts, which takes a `Tracker`.

    Raises:
        ValueError: if no optimizer holds a sparse layer; and what `Rewirer` raises.
    """

    def __init__(
        self, model: nn.Module, optimizers: Sequence[Optimizer | Any], settings: Settings, total_steps: int, measured: bool = True
    ) -> None:
        self.settings = settings
        self.total_steps = total_steps
        self.layers = topology_layers(model)
        held = [held_layers(self.layers, optimizers_in(optimizer)[-1]) for optimizer in optimizers]
        training = [number for number, layers in enumerate(held) if layers] or [0]
        ends = settings.rewiring_ends(total_steps)
        self.rewirers: list[Rewirer] = []
        self.trackers: list[Tracker] = []
        for number in training:
            part = model if len(training) == 1 else _smallest_part(model, held[number])
            generator = torch.Generator().manual_seed(settings.seed + number)
            with warnings.catch_warnings():
                if len(training) > 1:  # another of them may
                    warnings.filterwarnings("ignore", "the optimizer does not hold")
                rewirer = Rewirer(part, optimizers[number], settings.algorithm, settings.every, ends, generator)
            self.rewirers.append(rewirer)
            if measured:
                self.trackers.append(Tracker(part, rewirer))
        _warn_of_the_unheld(self.layers, held)
        for rewirer in self.rewirers:
            rewirer.attach()

    @property
    def rewirings(self) -> int:
        """So far, those of the rewirer that has made most."""
        return max(rewirer.rewirings for rewirer in self.rewirers)

    def measures(self) -> dict[str, float]:
        """The network in a few numbers, by the names that `truesparse.loggers` gives them."""
        size = sum(layer.topology.size for layer in self.layers.values())
        found = sum(layer.connections for layer in self.layers.values())
        measures: dict[str, float] = {
            "model/sparsity": 1 - found / size,
            "model/connections": float(found),
            "model/rewirings": float(self.rewirings),
        }
        lines: dict[TopologyLayer, Mapping[str, Any]] = {}
        for rewirer, tracker in zip(self.rewirers, self.trackers, strict=False):
            report = tracker.report()["layers"]
            lines |= {layer: report[name] for name, layer in held_layers(tracker.layers, rewirer.optimizer).items()}
        if lines:
            explored = sum(line["itop_rate"] * layer.topology.size for layer, line in lines.items())
            measures["model/itop_rate"] = explored / sum(layer.topology.size for layer in lines)
            measures["model/dead_outputs"] = float(sum(line["dead_outputs"] for line in lines.values()))
        return measures

    def state_dict(self) -> dict[str, Any]:
        """Where the session stands, as tensors and plain values."""
        return {
            "algorithm": repr(self.settings.algorithm),
            "every": self.settings.every,
            "rewirers": [rewirer.state_dict() for rewirer in self.rewirers],
            "trackers": [tracker.state_dict() for tracker in self.trackers],
            "patterns": {name: str(layer.pattern) for name, layer in self.layers.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` stood. The model holds the topologies of that moment.

        Raises:
            ValueError: if the state is of another algorithm, of another `every`, or of other optimizers.
        """
        algorithm, own = state["algorithm"], repr(self.settings.algorithm)
        if (algorithm, state["every"]) != (own, self.settings.every):
            raise ValueError(
                f"expected the checkpoint of a training with {own}, every={self.settings.every}, got one with {algorithm}, "
                f"every={state['every']}: go on with the same, or begin anew from its weights alone"
            )
        if len(state["rewirers"]) != len(self.rewirers):
            raise ValueError(
                f"expected the checkpoint of {len(self.rewirers)} optimizers that train sparse layers, got one of {len(state['rewirers'])}"
            )
        for rewirer, one in zip(self.rewirers, state["rewirers"], strict=True):
            rewirer.load_state_dict(one)
        if len(state["trackers"]) == len(self.trackers):
            for tracker, one in zip(self.trackers, state["trackers"], strict=True):
                tracker.load_state_dict(one)

    def end(self) -> None:
        """Leave model and optimizers alone; state and measures stay readable."""
        for tracker in self.trackers:
            tracker.detach()
        for rewirer in self.rewirers:
            rewirer.detach()


def _smallest_part(model: nn.Module, layers: Mapping[str, TopologyLayer]) -> nn.Module:
    """What holds all these layers, and as little else as can be: what an algorithm shall take for one network."""
    paths = zip(*(name.split(".")[:-1] for name in layers), strict=False)
    return model.get_submodule(".".join(parts[0] for parts in takewhile(lambda parts: len({*parts}) == 1, paths)))


def _warn_of_the_unheld(layers: Mapping[str, TopologyLayer], held: Sequence[Mapping[str, TopologyLayer]]) -> None:
    known = {name for names in held for name in names}
    missing = ", ".join(repr(name) for name, layer in layers.items() if name not in known and layer.parameter.requires_grad)
    if len(held) > 1 and missing:
        warnings.warn(f"no optimizer holds the parameters of {missing}: they are neither trained nor rewired", stacklevel=3)
