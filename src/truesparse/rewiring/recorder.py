"""What are the gradients of all layers made of, in each of the steps that the next rewiring looks at?"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..distributed import ALONE, Processes
from ..nn import TopologyLayer
from .dense_gradient import DenseGradient
from .flags import told
from .follower import Follower
from .shared_gradient import AnyGradient, SharedGradient, loaded, shared


class Recorder:
    """Follows all layers of a model through the steps that the next rewiring looks at.

    Args:
        layers: by name.
        window: steps to keep.

    Raises:
        ValueError: if `window` is not a number of steps.
    """

    def __init__(self, layers: Mapping[str, TopologyLayer], window: int) -> None:
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"window is a number of steps, at least 1, got {window!r}")
        self.layers = layers
        self._followers: dict[str, Follower] = {}
        self._pass = -1
        self._past: deque[dict[str, AnyGradient]] = deque(maxlen=window - 1)
        self._processes = ALONE
        self._shared: dict[str, SharedGradient] = {}  # what the gradients of the step under way are made of in all processes

    def begin(self, processes: Processes = ALONE) -> None:
        """A step begins that the next rewiring looks at; `processes` train together."""
        self.stop()
        self._processes = processes
        self._followers = {name: Follower(layer, self._before, processes.size > 1) for name, layer in self.layers.items()}

    def end(self) -> None:
        """It is over; the window keeps what it was made of."""
        if self._followers:
            self._past.append({name: self.of(name)[-1] for name in self._followers})
            self.stop()

    def look(self) -> None:
        """The step has its gradients: take in what has been done to them since the last backward pass.

        Where several processes train together, all of them do it together.
        """
        if self._followers and self._processes.size > 1:
            self._look_together()
        elif self._followers:
            self._look()

    @torch.no_grad()
    def _look_together(self) -> None:
        followers = list(self._followers.values())
        found, alike = shared(
            [follower.gradient for follower in followers], [follower.part() for follower in followers], len(self._past), self._processes
        )
        if not alike:
            self._past.clear()  # some have loaded steps that others lack
        self._shared = dict(zip(self._followers, found, strict=True))

    @torch.no_grad()
    def _look(self) -> None:
        followers = list(self._followers.values())
        said = told(flag for follower in followers for flag in follower.look())
        changes = {follower: follower.change(*said[2 * number : 2 * number + 2]) for number, follower in enumerate(followers)}
        # A gradient of zeros does not show what was done to it; loops do the same to all.
        certain = {change for change in changes.values() if change is not None}
        usual = certain.pop() if len(certain) == 1 else 1.0
        for follower, change in changes.items():
            follower.take(usual if change is None else change)

    def settle(self) -> None:
        """The rewiring begins: what the gradients are made of changes no more, and copies of them serve nothing."""
        for follower in self._followers.values():
            follower.settle()

    def stop(self) -> None:
        """Listen no longer."""
        for follower in self._followers.values():
            follower.remove()
        self._followers, self._shared = {}, {}

    def clear(self) -> None:
        """Forget everything."""
        self.stop()
        self._past.clear()

    def of(self, name: str) -> list[AnyGradient]:
        """What the gradients of a layer are made of, step by step, the one under way last."""
        none = DenseGradient(self.layers[name])
        if self._processes.size > 1:
            nowhere = SharedGradient(none, self._processes, heard=False)
            return [*(step.get(name, nowhere) for step in self._past), self._shared.get(name, nowhere)]
        now = self._followers[name].gradient if name in self._followers else none
        return [*(step.get(name, none) for step in self._past), now]

    def state(self) -> list[dict[str, dict[str, Any]]]:
        """What a checkpoint between two steps must hold: nothing, unless it falls into a window of several steps."""
        return [{name: gradient.state() for name, gradient in step.items()} for step in self._past]

    def load(self, state: Sequence[Mapping[str, Mapping[str, Any]]], processes: Processes = ALONE) -> None:
        self.clear()
        for step in state:
            found = {name: loaded(self.layers[name], one, processes) for name, one in step.items()}
            gradients = {name: gradient for name, gradient in found.items() if gradient is not None}
            if len(gradients) < len(found):
                warnings.warn(
                    f"the state is of one of several processes, and not of this one of {processes.size}: the {len(state)} steps that it "
                    "has recorded for the next rewiring are left out, and the momentum of absent connections begins anew",
                    stacklevel=4,
                )
                self._past.clear()
                return
            self._past.append(gradients)

    def _before(self, number: int) -> None:
        if number != self._pass:
            self._pass = number
            if self._followers:
                self._look()
            if self._processes.size > 1:
                # Whatever synchronises the gradients queues itself during the pass: this comes after it.
                queue = torch.autograd.Variable._execution_engine.queue_callback
                queue(lambda: queue(self._synchronised))

    @torch.no_grad()
    def _synchronised(self) -> None:
        for follower in self._followers.values():
            follower.synchronised()
