"""How much does each layer keep? A budget turns one overall sparsity into an exact count of connections a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor, prod
from typing import Protocol

from .select import shared_out

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
    """Counts for layers given as (size, probability at factor 1).

    Together they are what each layer would keep at `sparsity` by itself, to the connection: what does not divide goes to the largest
    fractions. Only where that leaves a layer none, it has one all the same.
    """
    if epsilon is not None:
        if not epsilon > 0:
            raise ValueError(f"epsilon must be positive, got {epsilon}")
        return {name: min(round(epsilon * p * size), size) for name, (size, p) in layers.items()}
    _check_sparsity(sparsity)
    dense: dict[str, int] = {}
    while sparse := {name: layer for name, layer in layers.items() if name not in dense}:
        left = sum(kept(size, sparsity) for size, _ in layers.values()) - sum(dense.values())
        factor = left / sum(size * p for size, p in sparse.values())
        highest = max(p for _, p in sparse.values())
        if factor * highest <= 1.0:
            sizes, weights = [size for size, _ in sparse.values()], [size * p for size, p in sparse.values()]
            least = [min(size, 1) for size in sizes]
            none = [0] * len(sizes)
            counts = shared_out(max(left, sum(least)), weights, none, sizes, [1] * len(sizes), least)
            return {name: dense.get(name, 0) for name in layers} | dict(zip(sparse, counts, strict=True))
        dense |= {name: size for name, (size, p) in sparse.items() if p == highest}
    return {name: dense[name] for name in layers}


def _check_sparsity(sparsity: float) -> None:
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"sparsity is the share of weights to leave out and lies in [0, 1), got {sparsity}")
