"""What is the gradient of connections that do not exist? Answered from inputs and output gradients, never held whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

from ..nn.base import Sample, TopologyLayer
from ..topology import Topology
from ..topology.patterns import Unstructured

Recorded = dict[str, list[Sample]]


class Records:
    """The (dy, x) of each layer in the last steps before a rewiring.

    Args:
        window: steps to keep.
    """

    def __init__(self, window: int) -> None:
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window is a number of steps, at least 1, got {window!r}")
        self.steps: deque[Recorded] = deque(maxlen=window)
        self.read: dict[str, int] = {}
        self.clear()

    def clear(self) -> None:
        self.steps.clear()
        self.begin_step()

    def begin_step(self) -> None:
        self.steps.append({})

    def add(self, name: str, dy: Tensor, x: Tensor) -> None:
        self.steps[-1].setdefault(name, []).append((dy, x))

    def of(self, name: str) -> list[list[Sample]]:
        """The samples of a layer step by step, the newest last.

        Raises:
            RuntimeError: if it took no part in the newest.
        """
        if name not in self.steps[-1]:
            raise RuntimeError(
                f"layer {name!r} took part in no backward pass since the last step(): call loss.backward() before step(), "
                "or leave the layer out with sparsify(..., exclude=...)"
            )
        return [step.get(name, []) for step in self.steps]

    def scale(self, factor: float) -> None:
        """Multiply the gradients of the newest step."""
        newest = self.steps[-1]
        self.steps[-1] = {name: [(dy * factor, x) for dy, x in samples] for name, samples in newest.items()}

    def note_read(self, name: str, positions: int, most: int, steps: int = 1) -> None:
        """Remember at how many of the `most` absent positions gradients of how many steps were computed: none is counted twice."""
        before = self.read.get(name, 0)
        self.read[name] = max(before, min(before + positions * steps, most * steps))

    def take_read(self) -> dict[str, int]:
        """What `note_read` has heard since the last call, by layer."""
        read, self.read = self.read, {}
        return read

    def state(self) -> list[Recorded]:
        """What a checkpoint must hold: nothing, unless it falls into a window of several steps."""
        return [step for step in self.steps if step]

    def load(self, state: Sequence[Mapping[str, Sequence[Sample]]]) -> None:
        self.steps.clear()
        for step in state:
            self.steps.append({name: [(dy, x) for dy, x in samples] for name, samples in step.items()})
        self.begin_step()


@dataclass(frozen=True)
class Gradient:
    """The dense gradient of the last step: `AbsentGradients`."""

    layer: TopologyLayer
    records: Records
    name: str

    @property
    def _samples(self) -> list[Sample]:
        return self.records.of(self.name)[-1]

    def rows(self, start: int, stop: int) -> Tensor:
        _note_rows(self, start, stop)
        return self.layer.gradient_rows(self._samples, start, stop)

    def top(self, kept: Topology, count: int) -> Tensor:
        _note_rows(self, 0, kept.shape[0])
        return self.layer.top_gradients(self._samples, kept, count)

    def at(self, positions: Topology) -> Tensor:
        _note(self, positions.nnz)
        return self.layer.gradients_at(self._samples, positions)

    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.layer.gradient_bounds(self._samples)


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
class Momentum:
    """What an optimizer would have made of the absent gradients of the recorded steps: `AbsentGradients`.

    Equal to the optimizer's own moments as long as no step before the window has counted; what is missing has weight first^window.
    """

    layer: TopologyLayer
    records: Records
    name: str
    smoothing: Smoothing

    def rows(self, start: int, stop: int) -> Tensor:
        _note_rows(self, start, stop, len(self.records.steps))
        return self._smoothed(lambda samples: self.layer.gradient_rows(samples, start, stop))

    def at(self, positions: Topology) -> Tensor:
        _note(self, positions.nnz, len(self.records.steps))
        return self._smoothed(lambda samples: self.layer.gradients_at(samples, positions))

    def top(self, kept: Topology, count: int) -> Tensor:
        if self.smoothing.second is None:
            _note_rows(self, 0, kept.shape[0], len(self.records.steps))
            return self.layer.top_gradients(self._weighted(), kept, count)
        vacant = torch.tensor([min(count, kept.size - kept.nnz)], device=kept.device)
        return Unstructured().highest_absent(kept, kept.shape, vacant, self)

    def bounds(self) -> tuple[Tensor, Tensor]:
        if self.smoothing.second is None:
            return self.layer.gradient_bounds(self._weighted())
        rows, columns = self.layer.gradient_bounds(self.records.of(self.name)[-1])
        return torch.full_like(rows, self.smoothing.most(len(self.records.of(self.name)))), torch.ones_like(columns)

    def _weighted(self) -> list[Sample]:
        """One list of samples whose gradients add up to the first moment: the gradient is linear in dy."""
        steps = self.records.of(self.name)[::-1]
        weights = [self.smoothing.first**age for age in range(len(steps))]
        return [(dy * weight, x) for weight, step in zip(weights, steps, strict=True) for dy, x in step if weight]

    def _smoothed(self, gradient: Callable[[list[Sample]], Tensor]) -> Tensor:
        first, second, epsilon = self.smoothing.first, self.smoothing.second, self.smoothing.epsilon
        if second is None:
            return gradient(self._weighted())
        moment, square = torch.zeros(()), torch.zeros(())
        for step in self.records.of(self.name):
            g = gradient(step) if step else torch.zeros(())
            moment = first * moment + (1 - first) * g
            square = second * square + (1 - second) * g * g
        return moment / (square.sqrt() + epsilon)


def _note_rows(source: Gradient | Momentum, start: int, stop: int, steps: int = 1) -> None:
    indptr = source.layer.topology.indptr
    present = int(indptr[stop]) - int(indptr[start])
    _note(source, (stop - start) * source.layer.topology.shape[1] - present, steps)


def _note(source: Gradient | Momentum, positions: int, steps: int = 1) -> None:
    topology = source.layer.topology
    source.records.note_read(source.name, positions, topology.size - topology.nnz, steps)
