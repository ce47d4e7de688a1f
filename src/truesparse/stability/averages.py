"""How are weights averaged when their places change owners? Each average follows its connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import TopologyLayer, topology_layers
from ..rewiring import Rewirer
from ..topology import Move


class Average:
    """The exponential moving average of a model's parameters: average <- decay x average + (1 - decay) x value.

        average = Average(model, rewirer, decay=0.999)
        ...
        optimizer.step()
        average.update()
        ...
        with average.applied():
            evaluate(model)

    Tarvainen & Valpola 2017, https://arxiv.org/abs/1703.01780, section 3. It begins with the values of the first update, as
    `torch.optim.swa_utils.AveragedModel` does, and is equal to it as long as nothing rewires. That one averages by position; after a
    rewiring a position is another connection. Here the average of a connection that stays goes with it, that of a dropped one is gone,
    and a grown one begins at its value. (Yin et al. 2022, https://arxiv.org/abs/2205.15322, average over topologies too, and prune the sum
    back to the sparsity; here the topology is always the present one.) Buffers (statistics of norms) are not averaged.

    Args:
        model: dense, sparse or masked.
        rewirer: of the model; None where nothing rewires.
        decay: in [0, 1).

    Raises:
        ValueError: if `decay` is out of its range.
    """

    def __init__(self, model: nn.Module, rewirer: Rewirer | None = None, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.model, self.decay = model, decay
        self.layers = topology_layers(model)
        self.updates = 0
        self._averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._applied = False
        self._handle = None if rewirer is None else rewirer.register_hook(self._after_rewiring)

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present values. Call it after each step of the optimizer.

        Raises:
            RuntimeError: inside `applied()`, or if a layer has changed in a way that no rewirer told.
        """
        self._check_trains()
        for name, parameter in self.model.named_parameters():
            average = self._averages[name]
            if average.shape != parameter.shape:
                raise RuntimeError(
                    f"the average of {name!r} has shape {tuple(average.shape)}, its parameter {tuple(parameter.shape)}: "
                    "pass the Rewirer that changes the model to Average(...)"
                )
            if self.updates == 0:
                average.copy_(parameter)
            else:
                average.lerp_(parameter, 1 - self.decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averages as its weights. Nothing is copied; do not train inside."""
        self._check_trains()
        self._exchange()
        self._applied = True
        try:
            yield
        finally:
            self._applied = False
            self._exchange()

    @property
    def nbytes(self) -> int:
        """Bytes of the averages."""
        return sum(average.nbytes for average in self._averages.values())

    def detach(self) -> None:
        """Follow rewirings no longer."""
        if self._handle is not None:
            self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The averages by the names of their parameters, and how many updates they have seen."""
        return {"updates": self.updates, "averages": {name: average.clone() for name, average in self._averages.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` stood. The model holds the topologies of that moment.

        Raises:
            ValueError: if the averages are not those of this model's parameters.
        """
        expected = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        found = {name: tuple(average.shape) for name, average in state["averages"].items()}
        if found != expected:
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise ValueError(f"the averages of {', '.join(wrong)} do not fit this model: load the model's own state first")
        self.updates = state["updates"]
        self._averages = {name: state["averages"][name].detach().clone().to(parameter) for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def _after_rewiring(self, moves: Mapping[str, Move]) -> None:
        self._check_trains()
        for name, move in moves.items():
            layer = self.layers[name]
            key = self._names[id(layer.parameter)]
            grown = _where(layer, move.grown)
            self._averages[key] = torch.where(grown, layer.parameter, layer.moved(move, self._averages[key]))

    def _check_trains(self) -> None:
        if self._applied:
            raise RuntimeError("the model has its averages as weights: leave applied() before training goes on")

    def _exchange(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.data, self._averages[name] = self._averages[name], parameter.data


def _where(layer: TopologyLayer, connections: Tensor) -> Tensor:
    """A bool for each connection, [nnz], in the shape of the layer's parameter; False where there is none."""
    return layer.spread(connections.to(torch.uint8)).bool()
