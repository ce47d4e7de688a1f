"""How do the connections that are left get back the values they had, at the beginning or a little later? Lottery tickets need that."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nn import TopologyLayer, topology_layers
from ..topology import Move
from ..topology.merge import position_in


class Rewind:
    """Remembers the weights of a model now; called on the model after pruning, it gives them back to the connections that are left.

        start = ts.pruning.Rewind(model)                 # at initialisation, or after step k of the training
        train(model)
        for sparsity in ts.pruning.rounds(0.95, 8):
            ts.prune(model, sparsity, across="network")  # what was small after training is gone
            start(model)                                 # leave this out for learning-rate rewinding
            train(model)                                 # from step k on: optimizer and schedule as they were then

    Everything else of the model's state (biases, norms, running statistics) is put back too. To step k: Frankle et al. 2020,
    https://arxiv.org/abs/1912.05671; learning-rate rewinding: Renda et al. 2020, https://arxiv.org/abs/2003.02389. Of another model of
    the same shape, freshly made, it draws the same ticket anew: the control of Frankle and Carbin 2019.

    Args:
        model: dense or sparse, or partly so. Its weights are copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = {name: (layer.topology, _values(layer).clone()) for name, layer in topology_layers(model).items()}
        self._tensors = {name: tensor.clone() for name, tensor in _others(model).items()}

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> None:
        """Give the model what it had, but for the connections that are gone.

        Args:
            model: the one remembered, or another with the same names: its connections are among those there were.

        Raises:
            ValueError: if it has a layer, a tensor or a connection that was not there. The model is unchanged then.
        """
        layers = topology_layers(model)
        found = {layer: self._of_layer(name, layer) for name, layer in layers.items()}
        others = [(mine, self._of_tensor(name, mine)) for name, mine in _others(model).items()]
        for layer, values in found.items():
            layer.parameter.copy_(layer.spread(values.to(layer.parameter)))
        for mine, remembered in others:
            mine.copy_(remembered)

    def _of_layer(self, name: str, layer: TopologyLayer) -> Tensor:
        """[nnz] what the connections of this layer had."""
        topology = layer.topology
        if name in self._layers:
            before, values = self._layers[name]
            here = topology.to(before.device)
            if before.shape != here.shape or bool((position_in(before.keys, here.keys) < 0).any()):
                raise ValueError(f"layer {name!r} has connections that were not there when the weights were remembered")
            return Move.between(before, here)(values)
        weight = self._tensors.get(f"{name}.weight".lstrip("."))
        if weight is None or weight.shape != layer.geometry.weight_shape:
            raise ValueError(
                f"layer {name!r} was not there, or had another shape, when the weights were remembered. Modules that are opened "
                "(attention, LSTM) hold other layers than before: call ts.prune(model, 0.0) first, and remember then"
            )
        return weight.flatten()[topology.keys.to(weight.device)]

    def _of_tensor(self, name: str, mine: Tensor) -> Tensor:
        if name not in self._tensors or self._tensors[name].shape != mine.shape:
            raise ValueError(f"{name!r} of shape {tuple(mine.shape)} was not there when the weights were remembered")
        return self._tensors[name]


def _values(layer: TopologyLayer) -> Tensor:
    return layer.of_connections(layer.parameter.detach())


def _others(model: nn.Module) -> dict[str, Tensor]:
    """Of the model's state all that is not of a connection, as it is: whatever is written there is the model's."""
    layers = topology_layers(model)
    own = {f"{name}.{part}".lstrip(".") for name, layer in layers.items() for part in layer.state_dict() if part != "bias"}
    return {name: tensor for name, tensor in model.state_dict().items() if name not in own and isinstance(tensor, Tensor)}
