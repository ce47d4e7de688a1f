"""How is the number of weights itself a penalty? Each has a random gate that is exactly 0 or 1 at times, and whose chance is trained."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from math import log
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import TopologyLayer
from ..nn.selection import Excluded
from .base import Layer, checked_strength, entries_of, layers_of, parameter_of, tensor_of
from .units import Groups, Units, topology_of

TEMPERATURE, BELOW, ABOVE = 2 / 3, -0.1, 1.1  # beta, gamma, zeta of the paper, section 4
NAME = "log_alpha"
SMALLEST_CHANCE = 1e-6  # of a uniform number, whose logarithm is taken


def hard_concrete(log_alpha: Tensor, uniform: Tensor | None = None) -> Tensor:
    """Gates in [0, 1]: equations 10 and 11, drawn with `uniform` in (0, 1); or, without, equation 13, what is used after training."""
    if uniform is None:
        stretched = log_alpha.sigmoid()
    else:
        stretched = ((uniform.logit() + log_alpha) / TEMPERATURE).sigmoid()
    return (stretched * (ABOVE - BELOW) + BELOW).clamp(0, 1)


def chance_of_a_gate(log_alpha: Tensor) -> Tensor:
    """That a drawn gate is not zero, equation 12."""
    return (log_alpha - TEMPERATURE * log(-BELOW / ABOVE)).sigmoid()


class L0:
    """strength x the expected number of weights that are not zero. Louizos et al. 2018, https://arxiv.org/abs/1712.01312.

        l0 = ts.regularizers.L0(model, strength=1e-5)       # before the optimizer: gates are parameters of the model
        optimizer = torch.optim.Adam(model.parameters())
        ...
        (F.cross_entropy(model(x), y) + l0.loss()).backward()
        ...
        l0.finish()                                         # the gates become part of the weights
        ts.sparsify(model, None, from_weights=True)

    In training mode gates are drawn in each forward pass, in eval mode they are what they will be after `finish`. A layer has a parameter
    more, `log_alpha`, until then; a sparse layer cannot be rewired meanwhile.

    Args:
        model: its linear layers and convolutions, dense, sparse or masked.
        strength: factor of the expected number, at least 0.
        groups: weights that share a gate, as in `GroupLasso`; None: each has its own.
        chance: that a gate is not zero in the beginning, in (0, 1).
        exclude: layers to leave alone, as in `sparsify`.
        generator: CPU generator of what is drawn; None is torch's global one.

    Attributes:
        held: the layers with gates, by name.

    Raises:
        ValueError: if there is no such layer, a name matches nothing, blocks do not divide a layer, the strength is negative or the chance
            none.
    """

    def __init__(
        self,
        model: nn.Module,
        strength: float,
        groups: Groups | None = None,
        chance: float = 0.9,
        exclude: Iterable[Excluded] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        self.strength = checked_strength(strength)
        if not 0 < chance < 1:
            raise ValueError(f"chance lies in (0, 1), got {chance}")
        self.held = layers_of(model, exclude)
        self._generator = generator
        self._units = {layer: Units.of(name, layer, groups) for name, layer in self.held.items()} if groups else {}
        self._kept: dict[nn.Module, nn.Parameter] = {}  # while their layer computes with others
        begin = log(chance / (1 - chance)) + TEMPERATURE * log(-BELOW / ABOVE)
        for layer in self.held.values():
            weights = entries_of(layer).detach()
            shape = (self._units[layer].count,) if groups else weights.shape
            layer.register_parameter(NAME, nn.Parameter(weights.new_full(shape, begin)))
        # As a partial, which has no module of its own: what packs or copies a model must not take it for a hook that only watches.
        self._handles = [layer.register_forward_pre_hook(partial(self._open)) for layer in self.held.values()]
        self._handles += [layer.register_forward_hook(self._close, always_call=True) for layer in self.held.values()]

    def expected(self) -> Tensor:
        """The expected number of weights that are not zero, a scalar."""
        counts: list[Tensor] = []
        for layer in self.held.values():
            chances = chance_of_a_gate(getattr(layer, NAME))
            units = self._units.get(layer)
            counts.append((chances if units is None else chances * units.sizes(topology_of(layer), chances)).sum())
        return torch.stack(counts).sum()

    def loss(self) -> Tensor:
        """The penalty, a scalar to add to the loss."""
        return self.strength * self.expected()

    @torch.no_grad()
    def finish(self) -> None:
        """Multiply the weights by their gates and take those away."""
        for layer in self.held.values():
            parameter_of(layer).mul_(self._gates(layer, None))
            del layer._parameters[NAME]
        for handle in self._handles:
            handle.remove()
        self.held, self._units = {}, {}

    def _gates(self, layer: Layer, uniform: Tensor | None) -> Tensor:
        """Those of each weight, shaped as the parameter."""
        gates, units = hard_concrete(getattr(layer, NAME), uniform), self._units.get(layer)
        if units is not None:
            gates = units.spread(gates, topology_of(layer))
        return layer.spread(gates) if isinstance(layer, TopologyLayer) else gates.view_as(layer.weight)

    def _open(self, layer: Any, args: Any) -> None:
        uniform = None
        if layer.training:
            log_alpha = getattr(layer, NAME)
            drawn = torch.rand(log_alpha.shape, generator=self._generator, dtype=torch.float64, device="cpu")
            uniform = drawn.clamp(SMALLEST_CHANCE, 1 - SMALLEST_CHANCE).to(log_alpha)
        weight = parameter_of(layer) * self._gates(layer, uniform)
        self._kept[layer] = layer._parameters[tensor_of(layer)]
        layer._parameters[tensor_of(layer)] = weight  # in its place, so that the order of parameters stays

    def _close(self, layer: Any, args: Any, output: Any) -> None:
        kept = self._kept.pop(layer, None)
        if kept is not None:
            layer._parameters[tensor_of(layer)] = kept
