"""Which layers may lose weights, and how do they take what was chosen for them?"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..nn import TopologyLayer
from ..nn.convert import replaced, sparse_in_place_of
from ..nn.kinds import kind_of
from ..nn.quantized import refuse_quantized
from ..nn.selection import Selection
from ..rewiring import rewire
from ..rewiring.optimizers import following, optimizers_in
from ..topology import Move, Topology
from ..topology.geometry import Geometry
from ..topology.patterns import Pattern
from .base import Chosen, Evidence
from .probe import Probed

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Candidate(Probed):
    """A layer that may lose weights.

    Attributes:
        pattern: the rule of its topology, fitted.
    """

    pattern: Pattern

    @property
    def weight(self) -> Tensor:
        """[rows, columns], zero where there is no connection."""
        return self.matrix(self.pruned(self.parameter.detach()))

    @property
    def connections(self) -> int:
        """How many there are."""
        return self.parameter.numel() if self.topology is None else self.topology.nnz

    def evidence(self, name: str, statistics: Mapping[str, Tensor], generator: torch.Generator | None) -> list[Evidence]:
        """One for each group, whose rows follow on one another."""
        groups, weight, bias = self.geometry.groups, self.weight, self.module.bias
        masks = [None] * groups if self.topology is None else self.topology.mask().chunk(groups)
        biases = bias.detach().chunk(groups) if isinstance(bias, Tensor) and len(bias) == len(weight) else [None] * groups
        return [
            Evidence(
                name=name,
                weight=part,
                taps=self.geometry.taps,
                present=masks[group],
                bias=biases[group],
                whole=weight,
                statistics={statistic: tensor[group] for statistic, tensor in statistics.items()},
                generator=generator,
            )
            for group, part in enumerate(weight.chunk(groups))
        ]


def candidate_of(layer: Any, pattern: Pattern) -> Candidate:
    """
    Args:
        layer: dense, or sparse already, which keeps its own pattern.
        pattern: the rule that the topology of a dense one will obey.
    """
    if isinstance(layer, TopologyLayer):
        return Candidate(layer, layer.geometry, layer.pattern)
    kind = kind_of(layer)
    assert kind is not None
    geometry = kind.sparse.geometry_of(layer)
    return Candidate(layer, geometry, pattern.fitted(geometry))


def candidates_of(selection: Selection, pattern: Pattern) -> dict[str, Candidate]:
    """All layers that were selected, dense and sparse.

    Raises:
        TypeError: if one is quantised.
    """
    refuse_quantized(selection.sparse)
    return {name: candidate_of(layer, pattern) for name, layer in (*selection.layers.items(), *selection.sparse.items())}


def whole(geometry: Geometry) -> Topology:
    """The topology of a layer that has all connections."""
    return Topology.from_mask(torch.ones(geometry.shape, dtype=torch.bool, device="cpu"))


def apply(
    model: Model,
    opened: Mapping[nn.Module, nn.Module],
    candidates: Mapping[str, Candidate],
    chosen: Mapping[str, Chosen],
    optimizer: Any = None,
) -> Model:
    """Give the layers what was chosen: new sparse ones for the dense, a new topology for the sparse."""
    replacements: dict[nn.Module, nn.Module] = dict(opened)
    moves: list[tuple[TopologyLayer, Pattern, Move, Tensor]] = []
    for name, one in candidates.items():
        topology, values = chosen[name].topology, chosen[name].weight.flatten()[chosen[name].topology.keys]
        if isinstance(one.module, TopologyLayer):
            move = Move.between(one.module.topology, topology.to(one.module.topology.device))
            one.pattern.check(move.new)
            following(one.module, optimizer)  # refuses an optimizer before anything has changed
            moves.append((one.module, one.pattern, move, values))
        else:
            replacements[one.module] = sparse_in_place_of(one.module, topology, one.pattern, values)
    _check_optimizer(optimizer, model, replacements)
    for layer, pattern, move, values in moves:
        layer.pattern = pattern
        rewire(layer, optimizer, move)
        with torch.no_grad():
            layer.parameter.copy_(layer.spread(values.to(layer.parameter)))
    return replaced(model, replacements) if replacements else model


def _check_optimizer(optimizer: Any, model: nn.Module, gone: Collection[nn.Module]) -> None:
    """
    Raises:
        ValueError: if it holds weights of modules that are replaced, which it would go on training when others have their place.
    """
    if optimizer is None:
        return
    held = {parameter for group in optimizers_in(optimizer)[-1].param_groups for parameter in group["params"] if parameter.ndim > 1}
    stale = [name for name, module in model.named_modules() if module in gone and not held.isdisjoint(module.parameters())]
    if stale:
        raise ValueError(
            f"the optimizer holds weights of dense layers ({', '.join(map(repr, stale))}), and the sparse ones have parameters of "
            "their own: build it after prune(), or make the layers sparse before it with prune(model, 0.0)"
        )
