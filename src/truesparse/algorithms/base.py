"""What is an algorithm that evolves a topology? A frozen record of settings with one pure method."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, dataclass_transform, runtime_checkable

import torch
from torch import Tensor

from ..topology import Move, Topology
from ..topology.patterns import AbsentGradients, Pattern
from ..topology.schedules import remaining
from ..topology.select import highest_of_all, shared_out

ALGORITHMS: dict[str, type] = {}
"""Every registered algorithm by name: the name of its file."""


Memory = Mapping[str, float | Tensor]
"""What an algorithm for whole networks remembers from one update to the next: numbers and tensors by name. Empty at the start."""


def _not_given(what: str) -> Callable[[], Any]:
    def refuse() -> Any:
        raise RuntimeError(f"there are no {what} here: they are known only while a Rewirer trains a model")

    return refuse


@dataclass(frozen=True)
class Signals:
    """What an algorithm may see of one layer when it decides.

    Attributes:
        topology: which connections exist now.
        values: [nnz] weights, in the order of the topology.
        pattern: the rule the layer's topology obeys; it drops and grows accordingly.
        absent: the dense gradient whose entries at the connections are `gradients`, for growing where it is largest; never held whole.
        absent_momentum: the same smoothed over the last `window` steps as the optimizer smooths it. See `Algorithm`.
        progress: 0 at the start of training, 1 when rewiring ends.
        last: no rewiring follows this one.
        generator: CPU generator for every random choice; None is torch's global one.
        name: of the layer in the model.
        output: whether its rows are the answers (classes): it is the model's last layer with weights. Nowhere, if that one is dense.
        budget: connections the layer had when training began.
        acting: [nnz] bool, which connections act in the forward pass; None: all of them. See `Move`.
        learning_rate: of the optimizer for this layer, at this step; NaN where it has none (transformers' Adafactor with relative steps).
        read_gradients, read_momentum, read_previous: give the properties of those names when an algorithm asks for them.
    """

    topology: Topology
    values: Tensor
    pattern: Pattern
    absent: AbsentGradients = field(repr=False)
    absent_momentum: AbsentGradients = field(repr=False)
    progress: float = 0.0
    last: bool = False
    generator: torch.Generator | None = None
    name: str = ""
    output: bool = False
    budget: int = 0
    acting: Tensor | None = None
    learning_rate: float = 0.0
    read_gradients: Callable[[], Tensor] = field(default=_not_given("gradients"), repr=False)
    read_momentum: Callable[[], Tensor] = field(default=_not_given("momenta"), repr=False)
    read_previous: Callable[[], Tensor] = field(default=_not_given("previous values"), repr=False)

    @property
    def gradients(self) -> Tensor:
        """[nnz] gradients of the values as they are at `Rewirer.step()`, in the order of the topology."""
        return self.read_gradients()

    @property
    def momentum(self) -> Tensor:
        """[nnz] what the optimizer makes of the gradients so far, in the order of the topology.

        The momentum of SGD; the first moment over the root of the second for Adam and its kin; the gradients where the
        optimizer keeps neither.
        """
        return self.read_momentum()

    @property
    def previous(self) -> Tensor:
        """[nnz] values before the last step of the optimizer, for algorithms with `sees_previous`."""
        return self.read_previous()


@runtime_checkable
class Algorithm(Protocol):
    """Any object with this method is an algorithm.

    An algorithm whose layers share one budget has `update_network` in its place, see `NetworkAlgorithm`. Optional, all of them:

    * `rewires = False`: no topology ever changes (Static), so that a schedule without a rewiring is no mistake.
    * `replaces_step = True`: a topology update takes the place of the optimizer's step (RigL), otherwise it follows the step.
    * `each_epoch = True`: the paper rewires once an epoch (SET), which the command line then does by default.
    * `each_step = True`: the paper rewires after each step (Deep R), likewise.
    * `rewiring_ends = share`: of the training, where the paper's is not 0.75; the command line's default for `until`.
    * `sees_previous = True`: `signals.previous` is wanted.
    * `sees_absent = False`: `signals.absent` and `signals.absent_momentum` are not wanted, so that nothing needs to be recorded for them.
    * `keeps_count = False`: the number of connections changes. Otherwise it is kept, by each layer or, in a `NetworkAlgorithm`, by all
      layers together.
    * `start_sparsity`: the model is made with that sparsity, and connections go until the setting `sparsity` is reached (GMP).
    * `needs_end = True`: the rewirings must have an end, `until`.
    * `window = n`: `signals.absent_momentum` smooths over the last n steps; their inputs and output gradients are kept meanwhile.
    * `default_pattern`: the pattern that the paper trains with, where that is not `Unstructured()`.
    * `check_pattern(pattern)`: raises a ValueError that says why, for a pattern the algorithm cannot keep.
    * `penalty(signals)`: [nnz] what is added to the gradients before each step of the optimizer.
    """

    def update(self, topology: Topology, signals: Signals) -> Topology | Move:
        """The next topology; its input stays as it is.

        Returned as a `Topology`, every connection found in both keeps its value and optimizer state. A `Move` can say more:
        which connections start anew although they existed before, and at which values.
        """
        ...


@runtime_checkable
class NetworkAlgorithm(Protocol):
    """An algorithm that decides for all layers together: connections may move from one layer to another."""

    def update_network(self, layers: Mapping[str, Signals], memory: Memory) -> tuple[Mapping[str, Topology | Move], Memory]:
        """The next topology of each layer, in terms of `Algorithm.update`, and what to remember until the next update.

        Args:
            layers: what may be seen of each layer by name, in the order of the model.
            memory: what the last update returned; empty at the first.
        """
        ...


AnyAlgorithm = Algorithm | NetworkAlgorithm


def updated(algorithm: AnyAlgorithm, layers: Mapping[str, Signals], memory: Memory) -> tuple[Mapping[str, Topology | Move], Memory]:
    """One update of all `layers` by an algorithm of either kind."""
    if not layers:
        return {}, memory
    if isinstance(algorithm, NetworkAlgorithm):
        return algorithm.update_network(layers, memory)
    return {name: algorithm.update(signals.topology, signals) for name, signals in layers.items()}, memory


A = TypeVar("A", bound=type)


@dataclass_transform(frozen_default=True)
def register(algorithm: A) -> A:
    """Make a class a frozen dataclass and list it in `ALGORITHMS` under the name of its file.

    Raises:
        ValueError: if that name is taken.
    """
    return registered(algorithm, ALGORITHMS, "an algorithm")


def registered(kind: A, known: dict[str, type], said: str) -> A:
    """`kind`, made a frozen dataclass and put among the `known` under the name of its file.

    Raises:
        ValueError: if that name is taken.
    """
    name = kind.__module__.rsplit(".", 1)[-1]
    if name in known:
        raise ValueError(f"{said} named {name!r} is already registered by {known[name].__module__}")
    known[name] = dataclass(frozen=True)(kind)
    return kind


def check_fraction(name: str, value: float) -> None:
    """
    Raises:
        ValueError: if `value` is not a share between 0 and 1.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a share of the connections and lies in [0, 1], got {value}")


def check_at_least_zero(name: str, value: float) -> None:
    """
    Raises:
        ValueError: if `value` is negative, infinite or no number.
    """
    if not 0.0 <= value < float("inf"):
        raise ValueError(f"{name} is a number of at least 0, got {value}")


def held_at_least(layer: Signals) -> int:
    """Connections that a layer keeps when layers share one count: one unit in each group of its pattern, unless it has less.

    A layer without any passes nothing on, and what shares out by what survives or by momentum would never give it one again.
    """
    return min(layer.pattern.step(layer.topology.shape), layer.topology.nnz)


def due_together(layers: Iterable[Signals], memory: Memory) -> int:
    """Connections that layers sharing one count have together: what they hold, and the `owed` that did not fit at the last update.

    Not the sum of their budgets: a layer that was frozen for a while has come away with more than its own, or with less.
    """
    return sum(layer.topology.nnz for layer in layers) + int(memory.get("owed", 0))


def pruned_so_far(layer: Signals) -> float:
    """The progress of a pruning that is complete at the last rewiring."""
    return 1.0 if layer.last else layer.progress


def left_to_each(
    layers: Mapping[str, Signals], sparsity: float, scores: Mapping[str, Tensor], shares: Sequence[float] | None = None
) -> dict[str, int]:
    """How many connections each layer keeps when all together go along the cubic to `sparsity`, and none goes altogether.

    Warns of layers with fewer connections left than they have rows and than they have columns.

    Args:
        layers: what may be seen of each, by name.
        sparsity: in the end, of all of them together.
        scores: [nnz] of each, how much each connection matters.
        shares: in what proportion; None: as the highest scores of all are distributed.
    """
    given = list(layers.values())
    steps, least = [one.pattern.step(one.topology.shape) for one in given], [held_at_least(one) for one in given]
    present, size = [one.topology.nnz for one in given], sum(one.topology.size for one in given)
    total = remaining(sum(one.budget for one in given), size, sparsity, pruned_so_far(given[0]), sum(steps))
    total = max(min(total, sum(present)), sum(least))
    if shares is None:
        shares = highest_of_all([scores[name] for name in layers], total, least)
    above = [max(share - few, 0) for share, few in zip(shares, least, strict=True)]
    counts = dict(zip(layers, shared_out(total, above, least, present, steps), strict=True))
    for name, one in layers.items():
        if counts[name] < min(one.topology.shape) and counts[name] < one.topology.nnz:
            # The same words at each update: Python shows them once.
            warnings.warn(
                f"layer {name!r} is nearly pruned away: fewer connections are left than it has outputs or inputs. Its scores are low "
                "beside those of other layers: exclude it, prune each layer by itself (GMP(across='layers')), or ask for less sparsity",
                stacklevel=2,
            )
    return counts


def check_count_may_change(algorithm: AnyAlgorithm, pattern: Pattern) -> None:
    """
    Raises:
        ValueError: if the pattern leaves a layer only one number of connections.
    """
    if pattern.fixes_count:
        raise ValueError(
            f"{type(algorithm).__name__} changes how many connections a layer has, and {pattern} fixes that; "
            "use Unstructured, FanIn or Block, or an algorithm that leaves each layer its count"
        )
