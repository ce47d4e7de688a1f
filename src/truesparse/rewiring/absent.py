"""What may an algorithm know of connections that do not exist? Their gradient, and what an optimizer would have made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from math import inf, sqrt

import torch
from torch import Tensor

from ..topology import Topology
from ..topology.patterns import Unstructured
from ..topology.spread import row_and_column_factors
from .shared_gradient import AnyGradient

ROUNDING = 1e-5  # share of a second moment that sums of single precision may be off


def _indptr_of(topology: Topology) -> Tensor:
    return topology.indptr.cpu()


@dataclass
class Reads:
    """Notes at how many absent positions of each layer gradients were computed, times the steps looked at."""

    positions: dict[str, int] = field(default_factory=dict)

    def note(self, name: str, positions: int, most: int, steps: int) -> None:
        """Gradients of `steps` steps at `positions` of the `most` absent positions: none is counted twice."""
        before = self.positions.get(name, 0)
        self.positions[name] = max(before, min(before + positions * steps, most * steps))


@dataclass(frozen=True)
class Gradient:
    """The dense gradient at the last `step()`: `AbsentGradients`.

    Its entries at the connections are those of the values' `.grad`.

    Args:
        name: of the layer.
        steps: what was recorded of it, the newest step last.
        reads: notes what is read.
    """

    name: str
    steps: Sequence[AnyGradient]
    reads: Reads

    def rows(self, start: int, stop: int) -> Tensor:
        self._note_rows(start, stop)
        return self._known[-1].rows(start, stop)

    def top(self, kept: Topology, count: int) -> Tensor:
        self._note_rows(0, kept.shape[0])
        return self._known[-1].top(kept, count)

    def at(self, positions: Topology) -> Tensor:
        self._note(positions.nnz)
        return self._known[-1].at(positions)

    def bounds(self) -> tuple[Tensor, Tensor]:
        return self._known[-1].bounds()

    @property
    def _known(self) -> Sequence[AnyGradient]:
        """
        Raises:
            RuntimeError: if the layer took no part in any of the steps, or something was done to its gradient that cannot be told of
                absent connections.
        """
        if all(step.empty for step in self.steps):
            raise RuntimeError(
                f"layer {self.name!r} took part in no backward pass since the last step(): call loss.backward() before step(), "
                "and zero_grad() after it"
            )
        for step in self.steps:
            if step.unknown:
                raise RuntimeError(f"layer {self.name!r}: {step.unknown}")
        return self.steps

    def _note_rows(self, start: int, stop: int) -> None:
        topology = self.steps[-1].layer.topology
        if (start, stop) == (0, topology.shape[0]):
            return self._note(topology.size - topology.nnz)
        indptr = topology.derived(_indptr_of)
        self._note((stop - start) * topology.shape[1] - int(indptr[stop] - indptr[start]))

    def _note(self, positions: int) -> None:
        topology = self.steps[-1].layer.topology
        self.reads.note(self.name, positions, topology.size - topology.nnz, self._steps_read)

    @property
    def _steps_read(self) -> int:
        return 1


@dataclass(frozen=True)
class Smoothing:
    """How an optimizer smooths gradients: m = sum of first^age g, and v = sum of second^age g^2 where it divides by its root.

    Args:
        first: decay of the first moment; 0 keeps only the newest gradient.
        second: decay of the second moment; None for optimizers that do not divide.
        epsilon: added to the root.
    """

    first: float = 0.0
    second: float | None = None
    epsilon: float = 1e-8

    def most(self, steps: int) -> float:
        """What the first moment over the root of the second can be at most after so many steps, by Cauchy and Schwarz."""
        assert self.second is not None
        moments = [((1 - self.first) * self.first**age, (1 - self.second) * self.second**age) for age in range(steps)]
        return sqrt(sum(weight**2 / square if square else inf for weight, square in moments if weight))


@dataclass(frozen=True)
class Momentum(Gradient):
    """What an optimizer would have made of the absent gradients of the recorded steps: `AbsentGradients`.

    Equal to the optimizer's own moments as long as no step before the window has counted; what is missing of the first has weight
    first^window. Of the second moment nearly all is older than a window: what the optimizer holds of it for the connections there are is
    spread over the others, as a factor for each row and one for each column.

    Args:
        smoothing: of the optimizer.
        second_moment: [nnz] of the connections, as the optimizer holds it; None: what is older than the window is left out.
    """

    smoothing: Smoothing = Smoothing()
    second_moment: Tensor | None = None

    def rows(self, start: int, stop: int) -> Tensor:
        self._note_rows(start, stop)
        older = [] if self._older is None else [self._older[0][start:stop, None] * self._older[1]]
        return self._smoothed(lambda step: step.rows(start, stop), *older)

    def at(self, positions: Topology) -> Tensor:
        self._note(positions.nnz)
        older = [] if self._older is None else [self._older[0][positions.rows] * self._older[1][positions.indices]]
        return self._smoothed(lambda step: step.at(positions), *older)

    def top(self, kept: Topology, count: int) -> Tensor:
        if self.smoothing.second is None:
            self._note_rows(0, kept.shape[0])
            return self._first_moment().top(kept, count)
        vacant = torch.tensor([min(count, kept.size - kept.nnz)], device="cpu")
        return Unstructured().highest_absent(kept, kept.shape, vacant, self)

    def bounds(self) -> tuple[Tensor, Tensor]:
        if self.smoothing.second is None:
            return self._first_moment().bounds()
        rows, columns = self._known[-1].bounds()
        return torch.full_like(rows, self.smoothing.most(len(self.steps))), torch.ones_like(columns)

    def _first_moment(self) -> AnyGradient:
        """The gradient is linear: that of several steps is a sum of passes, too."""
        weighted = [
            step.scaled(self.smoothing.first**age) for age, step in enumerate(reversed(self._known)) if self.smoothing.first or not age
        ]
        return reduce(_sum, reversed(weighted))

    @cached_property
    def _older(self) -> tuple[Tensor, Tensor] | None:
        """Factors of rows and columns of what the second moment holds from before the window."""
        second = self.smoothing.second
        if second is None or self.second_moment is None:
            return None
        topology = self._known[-1].layer.topology
        recent = torch.zeros_like(self.second_moment)
        for step in self._known:
            g = step.at(topology)
            recent = second * recent + (1 - second) * g * g
        older = self.second_moment - recent
        # What is no more than rounding is nothing: no step has counted before the window.
        return row_and_column_factors(topology, older * (older > ROUNDING * self.second_moment))

    def _smoothed(self, gradient: Callable[[AnyGradient], Tensor], older: Tensor | float = 0.0) -> Tensor:
        first, second, epsilon = self.smoothing.first, self.smoothing.second, self.smoothing.epsilon
        if second is None:
            return gradient(self._first_moment())
        moment, square = torch.zeros((), device="cpu"), torch.zeros((), device="cpu")
        for step in self._known:
            g = gradient(step)
            moment = first * moment + (1 - first) * g
            square = second * square + (1 - second) * g * g
        return moment / ((square + older).sqrt() + epsilon)

    @property
    def _steps_read(self) -> int:
        return len(self.steps)


def _sum(one: AnyGradient, other: AnyGradient) -> AnyGradient:
    return one.plus(other)  # type: ignore[arg-type]
