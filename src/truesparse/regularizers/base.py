"""Which weights does a regulariser hold, and when does it act? A proximal one after each step of the optimizer, as far as that stepped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..nn import SparseLayer, TopologyLayer, topology_layers
from ..nn.kinds import DENSE, Dense
from ..nn.selection import Excluded, excluded_from
from ..rewiring import rewire
from ..rewiring.optimizers import learning_rate_of, optimizers_in
from ..topology import Move

Layer = Dense | TopologyLayer
Module = TypeVar("Module", bound=nn.Module)


def layers_of(model: nn.Module, exclude: Iterable[Excluded]) -> dict[str, Layer]:
    """The linear layers and convolutions of a model, dense, sparse or masked, by name, each once.

    Modules that hold matrices themselves, as attention and LSTM do, have such layers once `sparsify` has opened them.

    Raises:
        ValueError: if there is none, or a name of `exclude` matches nothing.
    """
    left_out = excluded_from(model, exclude)
    found = {name: module for name, module in model.named_modules() if isinstance(module, (*DENSE, TopologyLayer))}
    found = {name: module for name, module in found.items() if module not in left_out}
    if not found:
        raise ValueError("found no linear layer or convolution to regularise: the model has none, or all of them are excluded")
    return found  # type: ignore[return-value]


def parameter_of(layer: Layer) -> nn.Parameter:
    return layer._parameters[tensor_of(layer)]  # type: ignore[return-value]


def tensor_of(layer: Layer) -> str:
    """The name of that parameter."""
    return "values" if isinstance(layer, SparseLayer) else "weight"


def entries_of(layer: Layer) -> Tensor:
    """The weights that exist: [rows, columns], or [nnz] of a layer with a topology. Differentiable."""
    return layer.of_connections(layer.parameter) if isinstance(layer, TopologyLayer) else layer.weight.flatten(1)


@torch.no_grad()
def put(layer: Layer, entries: Tensor) -> None:
    """Give a layer other weights, laid out as `entries_of` has them."""
    spread = layer.spread(entries) if isinstance(layer, TopologyLayer) else entries.view_as(layer.weight)
    parameter_of(layer).copy_(spread)


def checked_strength(strength: float) -> float:
    """
    Raises:
        ValueError: if it is negative or not finite.
    """
    if not (isfinite(strength) and strength >= 0):
        raise ValueError(f"strength is the factor of the penalty and at least 0, got {strength}")
    return strength


class Proximal(ABC, Generic[Module]):
    """A penalty that is no part of the loss: after each step of the optimizer the weights go to where its proximal operator has them.

    So zeros are exact, which a subgradient in the loss never makes them (Beck & Teboulle 2009, https://doi.org/10.1137/080716542). The
    operator is that of learning rate x strength, with the learning rate of the parameter's group at this step. After SGD this is ISTA:
    the minimum of loss + penalty. After Adam and its kin it is decoupled from the gradient's scale, as the decay of AdamW is, and equal for
    all weights; the minimum is not that of loss + penalty. The proximal operator in Adam's own metric would divide the threshold of a
    weight by sqrt(v) + eps (Yun et al. 2021, https://arxiv.org/abs/2007.11875), and so have no bound where there is next to no gradient.

    Frozen parameters, those that the optimizer does not hold, and those that had no gradient in the step stay as they are. Set `strength`
    whenever you like, for a schedule.

    Attributes:
        strength: factor of the penalty.
        held: the modules whose weights are shrunk, by name.
    """

    def __init__(self, held: Mapping[str, Module], parameters: Iterable[nn.Parameter], optimizer: Optimizer | Any, strength: float) -> None:
        self.strength = checked_strength(strength)
        self.held = dict(held)
        inner = optimizers_in(optimizer)[-1]
        if isinstance(inner, torch.optim.LBFGS):
            raise TypeError("LBFGS takes many steps in one, with a length of its own each: use SGD, Adam, AdamW, ...")
        self._of = dict(zip(parameters, self.held.values(), strict=True))
        trained = {parameter for group in inner.param_groups for parameter in group["params"]}
        if trained.isdisjoint(self._of):
            raise ValueError("the optimizer holds none of the weights to regularise: make it from model.parameters(), after sparsify")
        self._handle = inner.register_step_post_hook(self._after_step)

    @abstractmethod
    def shrink(self, module: Module, threshold: float) -> None:
        """Take the weights of a module to where the proximal operator of `threshold` times the penalty has them, in place."""

    def detach(self) -> None:
        """Act no longer."""
        self._handle.remove()

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self._of and parameter.grad is not None and parameter.requires_grad:
                    rate = learning_rate_of(optimizer, parameter)
                    if not isfinite(rate):
                        raise ValueError(f"{type(optimizer).__name__} has no learning rate that a proximal step could take: pass it one")
                    self.shrink(self._of[parameter], rate * self.strength)


def drop_zeros(model: nn.Module, optimizer: Optimizer | Any = None) -> int:
    """Let the connections of sparse layers go whose value is exactly zero, as proximal steps make it. The optimizer's state follows.

    Args:
        model: whose layers may also be dense: those stay as they are.
        optimizer: whose state follows, as in `rewire`.

    Returns:
        How many connections are gone.

    Raises:
        ValueError: if what is left does not obey the pattern of a layer, which is named. The model is unchanged.
    """
    layers = topology_layers(model)
    left = {name: layer.topology.keep(entries_of(layer).detach() != 0) for name, layer in layers.items()}
    for name, layer in layers.items():
        try:
            layer.pattern.check(left[name])
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}; set its .pattern to Unstructured() first") from error
    before = sum(layer.topology.nnz for layer in layers.values())
    for name, layer in layers.items():
        rewire(layer, optimizer, Move.between(layer.topology, left[name]))
    return before - sum(topology.nnz for topology in left.values())
