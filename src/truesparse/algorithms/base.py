"""What is an algorithm that evolves a topology? A frozen record of settings with one pure method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, dataclass_transform, runtime_checkable

import torch
from torch import Tensor

from ..patterns import AbsentGradients, Pattern
from ..topology import Move, Topology

ALGORITHMS: dict[str, type] = {}
"""Every registered algorithm by name: the name of its file."""


@dataclass(frozen=True)
class Signals:
    """What an algorithm may see of one layer when it decides.

    Attributes:
        values: [nnz] weights, in the order of the topology.
        read_gradients: gives `gradients`; called when an algorithm asks for them.
        absent: the dense gradient, for growing where it is largest; never held whole.
        progress: 0 at the start of training, 1 when rewiring ends.
        pattern: the rule the layer's topology obeys; it drops and grows accordingly.
        generator: CPU generator for every random choice; None is torch's global one.
    """

    values: Tensor
    read_gradients: Callable[[], Tensor] = field(repr=False)
    absent: AbsentGradients = field(repr=False)
    progress: float
    pattern: Pattern
    generator: torch.Generator | None

    @property
    def gradients(self) -> Tensor:
        """[nnz] gradients of the last backward pass, in the order of the topology."""
        return self.read_gradients()


@runtime_checkable
class Algorithm(Protocol):
    """Any object with this method is an algorithm.

    Two optional class attributes: `replaces_step = True` says that a topology update takes the place of the optimizer's step
    (RigL), otherwise the update follows the step; `each_epoch = True` says that the paper rewires once an epoch (SET), which
    the command line then does by default.
    """

    def update(self, topology: Topology, signals: Signals) -> Topology | Move:
        """The next topology; its input stays as it is.

        Returned as a `Topology`, every connection found in both keeps its value and optimizer state. A `Move` can say more:
        which connections start anew although they existed before, and at which values.
        """
        ...


A = TypeVar("A", bound=type)


@dataclass_transform(frozen_default=True)
def register(algorithm: A) -> A:
    """Make a class a frozen dataclass and list it in `ALGORITHMS` under the name of its file.

    Raises:
        ValueError: if that name is taken.
    """
    name = algorithm.__module__.rsplit(".", 1)[-1]
    if name in ALGORITHMS:
        raise ValueError(f"an algorithm named {name!r} is already registered by {ALGORITHMS[name].__module__}")
    ALGORITHMS[name] = dataclass(frozen=True)(algorithm)
    return algorithm


def check_fraction(name: str, value: float) -> None:
    """
    Raises:
        ValueError: if `value` is not a share between 0 and 1.
    """
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a share of the connections and lies in [0, 1], got {value}")
