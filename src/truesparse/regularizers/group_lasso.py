"""How do whole neurons, channels or blocks become zero? A penalty on the length of each, by a proximal step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..nn.selection import Excluded
from ..topology import Topology
from .base import Layer, Proximal, entries_of, layers_of, parameter_of, put
from .units import Groups, Units, topology_of


def group_soft_threshold(entries: Tensor, units: Units, topology: Topology | None, threshold: float) -> Tensor:
    """The proximal operator of threshold x sum of sqrt(size) x length over units: each is shortened by that, to zero if it is shorter.

    Args:
        entries: [rows, columns], or [nnz] with a topology.
    """
    lengths = units.sums(entries.square(), topology).sqrt()
    less = threshold * units.sizes(topology, entries).sqrt()
    factors = torch.where(lengths > less, 1 - less / lengths, 0)
    return entries * units.spread(factors, topology)


class GroupLasso(Proximal[Layer]):
    """strength x sum over groups of sqrt(weights in it) x their length, by a proximal step after each step of the optimizer.

    Yuan & Lin 2006, https://doi.org/10.1111/j.1467-9868.2005.00532.x, equation 2.2; for networks Wen et al. 2016,
    https://arxiv.org/abs/1608.03665. `Proximal` says what the step is for which optimizer.

    Args:
        model: its linear layers and convolutions, dense, sparse or masked. In a sparse layer a group is its connections.
        optimizer: of torch, or an object that wraps one.
        strength: factor of the penalty, at least 0.
        groups: "rows", the weights of a neuron or output channel (in a transposed convolution: of an input channel); "columns", those
            that read an input feature or channel; (height, width), blocks of the flattened weight [rows, columns].
        exclude: layers to leave alone, as in `sparsify`: the last one, if "rows".

    Raises:
        ValueError: if there is no such layer, the optimizer holds none of them, a name matches nothing, blocks do not divide a layer, or
            the strength is negative.
        TypeError: if the optimizer is LBFGS.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Any,
        strength: float,
        groups: Groups = "rows",
        exclude: Iterable[Excluded] = (),
    ) -> None:
        layers = layers_of(model, exclude)
        self._units: dict[nn.Module, Units] = {layer: Units.of(name, layer, groups) for name, layer in layers.items()}
        super().__init__(layers, map(parameter_of, layers.values()), optimizer, strength)

    def shrink(self, module: Layer, threshold: float) -> None:
        put(module, group_soft_threshold(entries_of(module), self._units[module], topology_of(module), threshold))
