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
    """A moving average of a model's parameters: exponential, average <- decay x average + (1 - decay) x value, or the mean of all.

        average = Average(model, rewirer, decay=0.999)
        ...
        optimizer.step()
        average.update()
        ...
        with average.applied():
            torch.optim.swa_utils.update_bn(loader, model)  # where there are batch norms
            evaluate(model)

    Tarvainen & Valpola 2017, https://arxiv.org/abs/1703.01780, section 3; with `decay=None` the mean of all values so far, which is
    stochastic weight averaging: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407. It begins with the values of the first update, as
    `torch.optim.swa_utils.AveragedModel` does, and is equal to it as long as nothing rewires. That one averages by position; after a
    rewiring a position is another connection. Here the average of a connection that stays goes with it, that of a dropped one is gone,
    and a grown one begins at its value; its mean is of the updates since then. (Yin et al. 2022, https://arxiv.org/abs/2205.15322, average
    over topologies too, and prune the sum back to the sparsity; here the topology is always the present one.) Buffers (statistics of
    norms) are not averaged.

    Args:
        model: dense, sparse or masked.
        rewirer: of the model; None where nothing rewires.
        decay: in [0, 1); None: the mean of all updates.

    Raises:
        ValueError: if `decay` is out of its range.
    """

    def __init__(self, model: nn.Module, rewirer: Rewirer | None = None, decay: float | None = 0.999) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.model, self.decay = model, decay
        self.layers = topology_layers(model)
        self.updates = 0
        self._averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        # By parameter, of each connection: how many updates there had been before the first that counts for it.
        parameters = [] if decay is not None else [layer.parameter for layer in self.layers.values()]
        self._begun = {self._names[id(one)]: torch.zeros(one.shape, dtype=torch.int64, device=one.device) for one in parameters}
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
            elif self.decay is None:
                counted = self.updates + 1 - self._begun.get(name, torch.zeros((), dtype=torch.int64, device=average.device))
                average.lerp_(parameter, counted.to(average).reciprocal())
            else:
                average.lerp_(parameter, 1 - self.decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the model has the averages as its weights; do not train inside.

        Statistics of norms that `update_bn` takes inside are those of the averages. On leaving they are again what they were.
        """
        self._check_trains()
        of_topologies = {id(buffer) for layer in self.layers.values() for buffer in layer.buffers()}
        statistics = [(buffer, buffer.clone()) for buffer in self.model.buffers() if id(buffer) not in of_topologies]
        self._exchange()
        self._applied = True
        try:
            yield
        finally:
            self._applied = False
            self._exchange()
            with torch.no_grad():
                for buffer, before in statistics:
                    buffer.copy_(before)

    @property
    def nbytes(self) -> int:
        """Bytes of the averages."""
        return sum(average.nbytes for average in self._averages.values())

    def detach(self) -> None:
        """Follow rewirings no longer."""
        if self._handle is not None:
            self._handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """The averages by the names of their parameters, how many updates they have seen, and since when each connection has."""
        averages, begun = ({name: held.clone() for name, held in one.items()} for one in (self._averages, self._begun))
        return {"updates": self.updates, "averages": averages, "begun": begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` stood. The model holds the topologies of that moment.

        Raises:
            ValueError: if the averages are not those of this model's parameters, or not of this kind.
        """
        expected = {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}
        found = {name: tuple(average.shape) for name, average in state["averages"].items()}
        if found != expected:
            wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
            raise ValueError(f"the averages of {', '.join(wrong)} do not fit this model: load the model's own state first")
        begun: Mapping[str, Tensor] = state.get("begun", {})
        if begun.keys() != self._begun.keys():
            raise ValueError("the state is of an average with a decay and this one is a mean (decay=None), or the other way round")
        self.updates = state["updates"]
        self._averages = {name: state["averages"][name].detach().clone().to(parameter) for name, parameter in self.model.named_parameters()}
        self._begun = {name: held.clone().to(self._averages[name].device) for name, held in begun.items()}

    @torch.no_grad()
    def _after_rewiring(self, moves: Mapping[str, Move]) -> None:
        self._check_trains()
        for name, move in moves.items():
            layer = self.layers[name]
            key = self._names[id(layer.parameter)]
            grown = _where(layer, move.grown)
            self._averages[key] = torch.where(grown, layer.parameter, layer.moved(move, self._averages[key]))
            if key in self._begun:
                self._begun[key] = layer.moved(move, self._begun[key], self.updates)

    def _check_trains(self) -> None:
        if self._applied:
            raise RuntimeError("the model has its averages as weights: leave applied() before training goes on")

    def _exchange(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.data, self._averages[name] = self._averages[name], parameter.data


def _where(layer: TopologyLayer, connections: Tensor) -> Tensor:
    """A bool for each connection, [nnz], in the shape of the layer's parameter; False where there is none."""
    return layer.spread(connections.to(torch.uint8)).bool()
