"""What becomes of the weights of a model while somebody trains it? Hooks on their gradients sum it up, in any loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..nn import TopologyLayer
from ..nn.kinds import Dense
from ..topology import Move, Topology
from .probe import Probe, parameter_of


class History:
    """The sum of -w g of each weight over all backward passes from now on, g its gradient in that pass: learning rates do not count.

        history = ts.pruning.History(model)
        ...                                    # train: loss.backward(), optimizer.step(), or whatever a framework does
        ts.prune(model, 0.85, ts.criteria.Movement(history))

    Layers that are sparse already take part, also where a `Rewirer` changes them: what grows starts at zero. A gradient scaler's factor is
    part of the gradients.

    Args:
        model: whose linear layers and convolutions are followed, those that are trained. Copies of it are not.
    """

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[nn.Module, Tensor] = {}
        self._topologies: dict[nn.Module, Topology] = {}  # those that the sums are in the order of
        self._removes: list[Callable[[], None]] = []
        for layer in model.modules():
            if isinstance(layer, (nn.Linear, _ConvNd, TopologyLayer)):
                parameter = parameter_of(layer)
                if parameter.requires_grad:
                    self._sums[layer] = torch.zeros_like(parameter.detach())
                    if isinstance(layer, TopologyLayer):
                        self._topologies[layer] = layer.topology
                    self._removes.append(parameter.register_hook(partial(self._hear, layer)).remove)

    def remove(self) -> None:
        """Follow the model no longer."""
        while self._removes:
            self._removes.pop()()

    def movement(self, probe: Probe) -> Mapping[str, Tensor]:
        """A statistic: the sums, [groups, rows, columns].

        Raises:
            ValueError: if a layer has not been followed.
        """
        missing = [name for name, one in probe.layers.items() if one.module not in self._sums]
        if missing:
            raise ValueError(
                f"the history knows nothing of {', '.join(map(repr, missing))}: make it of this very model before it is trained, or "
                "exclude them"
            )
        return {name: one.grouped(self._sum(one.module)) for name, one in probe.layers.items()}

    def _hear(self, layer: Dense | TopologyLayer, gradient: Tensor) -> None:
        with torch.no_grad():
            self._sum(layer).addcmul_(parameter_of(layer), gradient, value=-1)

    def _sum(self, layer: Dense | TopologyLayer) -> Tensor:
        """Its sums, shaped as its parameter is now."""
        if isinstance(layer, TopologyLayer):
            before, now = self._topologies[layer], layer.topology
            if before is not now:
                self._sums[layer], self._topologies[layer] = layer.moved(Move.between(before, now), self._sums[layer]), now
        return self._sums[layer]
