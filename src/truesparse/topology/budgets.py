"""How much does each layer keep? A budget turns one overall sparsity into an exact count of connections a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor, prod
from typing import Protocol

WeightShape = tuple[int, ...]


class Budget(Protocol):
    """Any object with this method is a budget."""

    def counts(self, shapes: Mapping[str, WeightShape], sparsity: float) -> dict[str, int]:
        """Connections of each layer.

        Args:
            shapes: dense weight shape of each layer, in the order of the model: (rows, columns, kernel dimensions...).
            sparsity: share of all weights to leave out, in [0, 1).
        """
        ...


@dataclass(frozen=True)
class Uniform:
    """Every layer has the same sparsity; the first one stays dense, as in Evci et al. 2020, section 3.

    Args:
        dense_first: whether the first layer keeps all its connections.
    """

    dense_first: bool = True

    def counts(self, shapes: Mapping[str, WeightShape], sparsity: float) -> dict[str, int]:
        _check_sparsity(sparsity)
        counts = {name: kept(prod(shape), sparsity) for name, shape in shapes.items()}
        if self.dense_first and len(counts) > 1:
            first = next(iter(counts))
            counts[first] = prod(shapes[first])
        return counts


@dataclass(frozen=True)
class ER:
    """Erdos-Renyi: the density of a layer is proportional to (rows + columns) / (rows x columns). Mocanu et al. 2018, equation 1.

    Args:
        epsilon: the factor of proportionality, as in the paper: a layer keeps epsilon (rows + columns) connections, at most
            all. None: the factor that meets the overall sparsity.
    """

    epsilon: float | None = None

    def counts(self, shapes: Mapping[str, WeightShape], sparsity: float) -> dict[str, int]:
        return _erdos_renyi(
            {name: (prod(shape), sum(shape[:2]) / prod(shape[:2])) for name, shape in shapes.items()}, sparsity, self.epsilon
        )


@dataclass(frozen=True)
class ERK:
    """Erdos-Renyi-Kernel: density proportional to sum(shape) / prod(shape), kernel dimensions included. Evci et al. 2020, section 3.

    Layers that this would make more than dense become dense, all that tie at the highest density together, and the rest is
    scaled anew.

    Args:
        epsilon: the factor of proportionality. None: the one that meets the overall sparsity.
    """

    epsilon: float | None = None

    def counts(self, shapes: Mapping[str, WeightShape], sparsity: float) -> dict[str, int]:
        return _erdos_renyi({name: (prod(shape), sum(shape) / prod(shape)) for name, shape in shapes.items()}, sparsity, self.epsilon)


BUDGETS: dict[str, Budget] = {"uniform": Uniform(), "er": ER(), "erk": ERK()}


def budget(name_or_budget: str | Budget) -> Budget:
    """The budget of that name, or the object itself.

    Raises:
        ValueError: if no budget has that name.
    """
    if not isinstance(name_or_budget, str):
        return name_or_budget
    if name_or_budget not in BUDGETS:
        raise ValueError(f"unknown budget {name_or_budget!r}; known: {', '.join(BUDGETS)}")
    return BUDGETS[name_or_budget]


def kept(size: int, sparsity: float) -> int:
    """Connections left of `size` positions at `sparsity`: size - floor(sparsity x size)."""
    # Rounded first: 0.29 x 100 is 28.999999999999996 in floating point, and 29 of 100 must go.
    return size - floor(round(sparsity * size, 6))


def _erdos_renyi(layers: Mapping[str, tuple[int, float]], sparsity: float, epsilon: float | None) -> dict[str, int]:
    """Counts for layers given as (size, probability at factor 1)."""
    if epsilon is not None:
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        return {name: min(round(epsilon * p * size), size) for name, (size, p) in layers.items()}
    _check_sparsity(sparsity)
    dense: set[str] = set()
    factor = 0.0
    while sparse := [name for name in layers if name not in dense]:
        factor = _factor(layers, sparse, dense, sparsity)
        highest = max(layers[name][1] for name in sparse)
        if factor * highest <= 1.0:
            break
        dense.update(name for name in sparse if layers[name][1] == highest)
    return {name: size if name in dense else kept(size, 1.0 - factor * p) for name, (size, p) in layers.items()}


def _factor(layers: Mapping[str, tuple[int, float]], sparse: Sequence[str], dense: set[str], sparsity: float) -> float:
    to_keep = sum(kept(layers[name][0], sparsity) for name in sparse)
    overdrawn = sum(layers[name][0] - kept(layers[name][0], sparsity) for name in dense)
    return (to_keep - overdrawn) / sum(layers[name][0] * layers[name][1] for name in sparse)


def _check_sparsity(sparsity: float) -> None:
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is the share of weights to leave out and lies in [0, 1), got {sparsity}")
