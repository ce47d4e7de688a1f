"""Which channels does a network do without? Those whose factor in a batch norm goes to zero under a penalty."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from ..nn import TopologyLayer
from ..nn.kinds import DENSE
from ..nn.selection import Excluded, excluded_from
from ..topology.geometry import Transposed
from .base import Layer, Proximal, entries_of, put
from .l1 import soft_threshold


class Slimming(Proximal[_BatchNorm]):
    """Network slimming: strength x sum of |factor| over all channels of all batch norms, by a proximal step.

    Liu et al. 2017, https://arxiv.org/abs/1708.06519, equation 1, who add a subgradient, prune at a threshold and fine-tune; by proximal
    steps factors are exactly zero, and nothing changes when their channels go:

        slimming = ts.regularizers.Slimming(model, optimizer, strength=1e-4)
        ...                                 # train
        slimming.silence(model, x)          # rows of layers whose channel is multiplied by zero; if they are sparse, drop_zeros(model) too
        small = ts.shrink(model, x)         # what they give is a constant, and goes into biases where no padding is in the way

    Args:
        model: with batch norms that have factors.
        optimizer: of torch, or an object that wraps one.
        strength: factor of the penalty, at least 0.
        exclude: batch norms to leave alone, as in `sparsify`: those before a sum, if all its summands shall keep their channels.

    Raises:
        ValueError: if there is no batch norm with factors, the optimizer holds none of them, a name matches nothing, or the strength is
            negative.
        TypeError: if the optimizer is LBFGS.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | Any, strength: float, exclude: Iterable[Excluded] = ()) -> None:
        left_out = excluded_from(model, exclude)
        norms = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.weight is not None and module not in left_out
        }
        if not norms:
            raise ValueError("found no batch norm with factors: the model has none, or all of them are excluded")
        super().__init__(norms, [norm.weight for norm in norms.values()], optimizer, strength)

    def shrink(self, module: _BatchNorm, threshold: float) -> None:
        module.weight.copy_(soft_threshold(module.weight, threshold))

    @torch.no_grad()
    def silence(self, model: nn.Module, *inputs: Any) -> int:
        """Set the weights to zero that lead to channels whose factor is zero. What the model computes in eval mode stays.

        Args:
            model: that this object was made of.
            inputs: of the model, to run it once and see which layer a norm follows.

        Returns:
            How many channels are silent.

        Raises:
            ValueError: if the output is used elsewhere too, so that it would change. The model is unchanged then.
        """
        pairs = self._pairs(model, inputs)
        modes = {module: module.training for module in model.modules()}
        model.eval()
        before = [one for one in tree_leaves(model(*inputs)) if isinstance(one, Tensor)]
        held = {layer: entries_of(layer).clone() for layer in pairs}
        silent = 0
        for layer, norm in pairs.items():
            zero = norm.weight == 0
            silent += int(zero.sum())
            rows = zero[layer.topology.rows.long()] if isinstance(layer, TopologyLayer) else zero[:, None]
            put(layer, entries_of(layer).masked_fill(rows, 0))
        after = [one for one in tree_leaves(model(*inputs)) if isinstance(one, Tensor)]
        for module, mode in modes.items():
            module.training = mode
        if not all(torch.equal(one, other) for one, other in zip(before, after, strict=True)):
            for layer, entries in held.items():
                put(layer, entries)
            raise ValueError(
                "the output of a layer before a norm is used elsewhere too, or the model draws random numbers: exclude that norm"
            )
        return silent

    def _pairs(self, model: nn.Module, inputs: tuple[Any, ...]) -> dict[Layer, _BatchNorm]:
        """{layer: the norm that takes its output as it is}"""
        made: list[tuple[Tensor, Layer]] = []
        pairs: dict[Layer, _BatchNorm] = {}

        def layer_gave(module: Any, args: Any, output: Tensor) -> None:
            made.append((output, module))

        def norm_takes(module: Any, args: tuple[Any, ...]) -> None:
            pairs.update({layer: module for output, layer in made if output is args[0]})

        layers = [one for one in model.modules() if isinstance(one, (*DENSE, TopologyLayer)) and not _rows_are_inputs(one)]
        handles = [layer.register_forward_hook(layer_gave) for layer in layers]
        handles += [norm.register_forward_pre_hook(norm_takes) for norm in self.held.values()]
        modes = {module: module.training for module in model.modules()}
        try:
            model.eval()(*inputs)
        finally:
            for handle in handles:
                handle.remove()
            for module, mode in modes.items():
                module.training = mode
        return pairs


def _rows_are_inputs(layer: nn.Module) -> bool:
    return isinstance(layer, _ConvTransposeNd) or (isinstance(layer, TopologyLayer) and isinstance(layer.geometry, Transposed))
