"""What does pruning take from a trained network, and what is it worth then? The network of a run, pruned, as the beginning of another."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..export import save
from ..nn import topology_layers
from ..pruning import Criterion, Evidence, Rewind, prune
from ..rewiring import rewire
from ..topology import Topology
from .batches import Batches, derived_seed
from .config import RunConfig
from .errors import ConfigError
from .recipe import Recipe
from .trained import Trained
from .trainer import data_of
from .variant import Beginning

SENSITIVITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
MOST_SAMPLES = 1000  # of the test data, on which sensitivity is measured: it is looked at, and nothing is chosen by it


@dataclass(frozen=True, eq=False)
class Pruned:
    """A pruned network, and what it has come from.

    Attributes:
        said: where it is from, for people.
        model: sparse, in eval mode.
        connections: before, by layer.
        score_shares: of all scores of a layer, the share of what stays; nothing of layers whose criterion gives none.
        accuracy: on the test data (before, after), 0 to 1; None where outputs are not scores of classes.
        nbytes: of its file, as `truesparse.save` writes it (before, after).
        seconds: that pruning took.
        curves: see `sensitivity`.
    """

    said: str
    model: nn.Module
    connections: Mapping[str, int]
    score_shares: Mapping[str, float]
    accuracy: tuple[float | None, float | None]
    nbytes: tuple[int, int]
    seconds: float
    curves: Mapping[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        """Weights of each layer if it were dense."""
        return {name: layer.topology.size for name, layer in topology_layers(self.model).items()}

    @property
    def left(self) -> dict[str, int]:
        """Connections of each layer now."""
        return {name: layer.topology.nnz for name, layer in topology_layers(self.model).items()}

    def described(self, **more: Any) -> dict[str, Any]:
        """`pruning.json`."""
        size = sum(self.sizes.values())
        rounds = [
            round_said(1 - sum(layers.values()) / size, accuracy, layers)
            for layers, accuracy in zip((self.connections, self.left), self.accuracy, strict=True)
        ]
        ends = {"accuracy": self.accuracy, "bytes": self.nbytes}
        both = {name: dict(zip(("before", "after"), pair, strict=True)) for name, pair in ends.items()}
        return described(rounds, self.curves, source=self.said, seconds=round(self.seconds, 4), **both, **more)


def pruned(
    network: Trained,
    config: RunConfig,
    criterion: Criterion,
    across: Any = None,
    data: Sequence[tuple[Any, Tensor]] = (),
    loss: Callable[[Any, Any], Tensor] | None = None,
) -> Pruned:
    """`network`, which is changed, pruned to the sparsity, the pattern and without the excluded layers of `config`.

    Args:
        network: dense or sparse.
        config: of the run to come.
        criterion: what matters.
        across: who competes, see `prune`.
        data: (inputs, targets) of each batch, for criteria that look at some.
        loss: of (outputs, targets), likewise.

    Raises:
        ConfigError: if it cannot be pruned this way.
    """
    accuracy, size = network.accuracy(network.model), file_nbytes(network.model)
    sparse = {name: layer.topology.nnz for name, layer in topology_layers(network.model).items()}
    curves = sensitivity(network, config.exclude)
    pattern, heard = config.make_pattern(), _Heard(criterion)
    began = time.perf_counter()
    try:
        model = prune(
            network.model,
            None if pattern.fixes_count else config.sparsity,
            heard,
            data,
            loss=loss,
            across=across,
            pattern=pattern,
            exclude=config.exclude,
            generator=Generator().manual_seed(derived_seed(config.seed, "prune")),
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(f"cannot prune {network.said}: {error}") from error
    seconds = time.perf_counter() - began
    layers = topology_layers(model)
    shares = {name: share for name, layer in layers.items() if (share := heard.share(name, layer.topology)) is not None}
    connections = {name: sparse.get(name, layer.topology.size) for name, layer in layers.items()}
    ends = (accuracy, network.accuracy(model.eval())), (size, file_nbytes(model))
    return Pruned(network.said, model, connections, shares, *ends, seconds, curves)


def beginning_of(network: nn.Module, values: nn.Module | None = None, step: int = 0) -> Beginning:
    """A network begins with the connections of this one.

    Args:
        network: sparse.
        values: whose values they have: a model with all those connections, dense or sparse; None: the same.
        step: of the training to begin at.
    """
    topologies = {name: layer.topology for name, layer in topology_layers(network).items()}
    rewind = Rewind(network if values is None else values)

    def prepare(model: nn.Module) -> None:
        for name, layer in topology_layers(model).items():
            rewire(layer, None, topologies[name])
        rewind(model)

    return Beginning(prepare, step)


def calibration(config: RunConfig, recipe: Recipe, batches: int) -> list[tuple[Any, Tensor]]:
    """The first batches of the training data in the order of the first epoch, not augmented."""
    return list(islice(Batches(data_of(config, recipe)[0], config.batch_size, config.seed).shuffled(0), batches))


def with_all_connections(model: nn.Module, exclude: Sequence[str] = ()) -> nn.Module:
    """`model` with sparse layers that have every connection, and the names of a pruned one; as it is, if it has sparse layers."""
    return model if topology_layers(model) else prune(model, 0.0, exclude=exclude)


def sensitivity(network: Trained, exclude: Sequence[str] = ()) -> dict[str, list[tuple[float, float]]]:
    """(sparsity, accuracy) of the network when one layer alone loses its smallest weights, for each layer; nothing without classes.

    On the first `MOST_SAMPLES` of the test data.
    """
    few = Trained(network.name, network.said, network.model, lambda: network.test.only(MOST_SAMPLES), network.read_training)
    ready = with_all_connections(deepcopy(network.model), exclude)
    found: dict[str, list[tuple[float, float]]] = {}
    for name, layer in topology_layers(ready).items():
        now = layer.topology.sparsity
        for sparsity in (now, *(one for one in SENSITIVITIES if one > now)):
            accuracy = few.accuracy(prune(deepcopy(ready), {name: sparsity}).eval())
            if accuracy is not None:
                found.setdefault(name, []).append((sparsity, accuracy))
    return found


def round_said(sparsity: float, accuracy: float | None, layers: Mapping[str, int]) -> dict[str, Any]:
    """A round in `pruning.json`: what was left of each layer, and how right the network was then (after training, if it trained)."""
    return {"sparsity": sparsity, "accuracy": accuracy, "layers": dict(layers)}


def described(rounds: Sequence[Mapping[str, Any]], curves: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """`pruning.json`: the `rounds` as `round_said` says them, the first before any pruning, and the `sensitivity` of the layers."""
    return {"rounds": list(rounds), "sensitivity": dict(curves), **more}


def file_nbytes(model: nn.Module) -> int:
    """Of the file that `truesparse.save` makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.safetensors"
        save(model, path)
        return path.stat().st_size


class _Heard:
    """A criterion whose scores are remembered. Whatever else it has, this has."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion
        self._parts: dict[str, list[Tensor]] = {}
        self._last = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._criterion, name)

    def scores(self, evidence: Evidence) -> Tensor:
        found = self._criterion.scores(evidence)
        if evidence.name != self._last:  # groups of a layer come one after the other; a later round begins anew
            self._parts[evidence.name] = []
        self._last = evidence.name
        self._parts[evidence.name].append(found if evidence.present is None else found * evidence.present)
        return found

    def share(self, name: str, topology: Topology) -> float | None:
        """What the topology has of all scores of the layer, where they are none below zero and not all zero."""
        scores = torch.cat(self._parts[name]) if name in self._parts else None
        if scores is None or scores.shape != topology.shape or bool((scores < 0).any()) or not bool(scores.any()):
            return None
        return float(scores.flatten()[topology.keys].double().sum() / scores.double().sum())
