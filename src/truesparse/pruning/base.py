"""What is a criterion? A frozen record of settings with one pure method, from what is known of a layer to a score for each weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar, dataclass_transform, runtime_checkable

import torch
from torch import Tensor

from ..algorithms.base import registered
from ..topology import Topology
from ..topology.patterns import Neurons, Pattern

CRITERIA: dict[str, type[Criterion]] = {}
"""Every registered criterion by name: the name of its file."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one layer when it is decided which of its weights go. A convolution in groups is as many of these, one a group.

    Attributes:
        name: of the layer in the model.
        weight: [rows, columns] the dense weight, zero where there is no connection.
        taps: columns of each feature of the input: positions of the kernel of a convolution.
        present: [rows, columns] bool, which connections there are; None: all of them.
        bias: [rows], or None.
        whole: [rows of all groups, columns] the weight of the whole layer; None: it is `weight`.
        statistics: what the criterion has asked for in its `needs`, by name: see `STATISTICS`.
        generator: CPU generator of every random choice; None is torch's global one.
    """

    name: str
    weight: Tensor
    taps: int = 1
    present: Tensor | None = None
    bias: Tensor | None = None
    whole: Tensor | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    generator: torch.Generator | None = None

    def __getitem__(self, statistic: str) -> Tensor:
        """What was measured under this name.

        Raises:
            KeyError: if the criterion has not asked for it.
        """
        if statistic not in self.statistics:
            known = ", ".join(self.statistics) or "nothing"
            raise KeyError(f"{statistic!r} was not measured of layer {self.name!r}, but {known}: name it in the criterion's needs")
        return self.statistics[statistic]


class Chosen(NamedTuple):
    """What stays of a layer, and with which values.

    Args:
        topology: over [rows, columns].
        weight: [rows, columns], of which the entries at the connections are taken.
    """

    topology: Topology
    weight: Tensor


@runtime_checkable
class Criterion(Protocol):
    """Any object with this method is a criterion. Optional, all of them:

    * `needs = ("gram",)`: what must be measured before: names of `STATISTICS`, which want data, or functions like those.
    * `across = "layer"`: who competes where nothing else says so; see `prune`.
    * `rounds = 1`: in how many steps the weights go, scores being taken anew after each, of what is left as it was (SynFlow: 100).
    * `choose(evidence, pattern, count) -> Chosen`: where what is chosen, and the values of what stays, depend on one another (SparseGPT).
    * `mend(evidence, topology) -> Tensor`: [rows, columns] new weights of what stays, once it is chosen.
    * `check_pattern(pattern)`: raises a ValueError that says why, for a pattern that it cannot keep.
    """

    def scores(self, evidence: Evidence) -> Tensor:
        """[rows, columns] how much each weight matters: the lowest go. Entries without a connection are not looked at."""
        ...


C = TypeVar("C", bound=type)


@dataclass_transform(frozen_default=True)
def register(criterion: C) -> C:
    """Make a class a frozen dataclass and list it in `CRITERIA` under the name of its file.

    Raises:
        ValueError: if that name is taken.
    """
    return registered(criterion, CRITERIA, "a criterion")


def criterion(name_or_criterion: str | Criterion) -> Criterion:
    """The criterion of that name with its default settings, or the object itself.

    Raises:
        ValueError: if no criterion has that name.
        TypeError: if the object has no `scores`, or is a class.
    """
    if not isinstance(name_or_criterion, str):
        if isinstance(name_or_criterion, type):
            raise TypeError(f"expected a criterion, got a class: pass {name_or_criterion.__name__}()")
        if not isinstance(name_or_criterion, Criterion):
            raise TypeError(f"expected the name of a criterion or an object with scores(evidence), got {name_or_criterion!r}")
        return name_or_criterion
    if name_or_criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {name_or_criterion!r}; known: {', '.join(sorted(CRITERIA))}")
    return CRITERIA[name_or_criterion]()


def check_whole_neurons(criterion: Criterion, pattern: Pattern) -> None:
    """
    Raises:
        ValueError: for a criterion that says how much a row matters, if the pattern takes rows apart.
    """
    if not isinstance(pattern, Neurons):
        raise ValueError(
            f"{type(criterion).__name__} says how much a whole neuron or channel matters: pass pattern='neurons' (and exclude the output "
            f"layer), got {pattern}"
        )


def check_single_connections(criterion: Criterion, pattern: Pattern) -> None:
    """
    Raises:
        ValueError: for a criterion that removes one weight after another, if the pattern removes several at once.
    """
    if pattern.couples:
        raise ValueError(f"{type(criterion).__name__} removes one weight after another, and {pattern} several at once: take another")
