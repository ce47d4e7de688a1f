"""How many floating-point operations does a network cost? By the convention of RigL, so that figures can be compared with papers.

Evci et al. 2020, https://arxiv.org/abs/1911.11134, appendix on the calculation of FLOPs. Counted are the multiplications and additions
of layers with weights, for one sample: 2 x weights that exist x output positions (1 for a matrix product, height x width of the output
for a convolution, and of the input for a transposed one, the length for a sequence). Biases, norms, activations, losses, optimizers, and
dropping and growing itself are left out. With f_S for the forward pass of the sparse network and f_D for that of the dense one, a step
costs

    dense                      3 f_D       forward, gradient of the inputs, gradient of the weights
    static, SET                3 f_S
    a dense gradient needed    2 f_S + f_D
    TopKAST                    2 f_S + f_B   f_B: forward with those connections too that are trained without acting

and a method that needs the dense gradient once in `every` + 1 steps (RigL) (3 f_S every + 2 f_S + f_D) / (every + 1) on average.
These are operations that the method needs, whatever program executes it: a masked twin has the figures of the sparse network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ..nn import TopologyLayer
from ..nn.opened import named_once
from ..nn.transposed import TransposedInterface


@dataclass(frozen=True)
class Flops:
    """Of the forward pass of one sample.

    Args:
        sparse: f_S, with the connections that act.
        dense: f_D, with all that there could be.
        trained: with those that exist, whether they act or are only trained (TopKAST); None: all that exist act.
    """

    sparse: int
    dense: int
    trained: int | None = None

    def __add__(self, other: Flops) -> Flops:
        return Flops(self.sparse + other.sparse, self.dense + other.dense, self.gradient + other.gradient)

    @property
    def gradient(self) -> int:
        """Of the gradient of the weights."""
        return self.sparse if self.trained is None else self.trained

    def step(self, every: int | None = None) -> float:
        """Of a training step, one sample, on average.

        Args:
            every: steps between two that need the dense gradient; None: no step does (static, SET), 0: every step does (SNFS).
        """
        without = 2 * self.sparse + self.gradient
        return float(without) if every is None else (without * every + 2 * self.sparse + self.dense) / (every + 1)


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that are counted, by name: sparse and masked ones, and dense linear layers and convolutions."""
    return {name: module for name, module in named_once(model) if isinstance(module, (TopologyLayer, nn.Linear, _ConvNd))}


@torch.no_grad()
def output_positions(model: nn.Module, example: Any, samples: int | None = None) -> dict[str, int]:
    """For each layer with weights, the positions of one sample at which they are used, all calls together. Runs the model once, in `eval`.

    Args:
        model: dense, sparse or masked.
        example: an input of the model.
        samples: in `example`; None: its first dimension.

    Raises:
        TypeError: if `samples` is left out and `example` is not a tensor.
    """
    if samples is None:
        if not isinstance(example, Tensor):
            raise TypeError(f"expected a tensor as example, got {type(example).__name__}: say how many samples it has with samples=")
        samples = len(example)
    counted: dict[str, int] = {}
    layers = weight_layers(model)
    handles = [layer.register_forward_hook(_counter(counted, name, layer), with_kwargs=True) for name, layer in layers.items()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        model(example)
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    return {name: counted.get(name, 0) // max(samples, 1) for name in layers}


def layer_flops(model: nn.Module, positions: Mapping[str, int]) -> dict[str, Flops]:
    """The operations of each layer, with the connections it has now.

    Args:
        positions: as `output_positions` gives them.
    """
    return {name: _flops(layer, positions[name]) for name, layer in weight_layers(model).items()}


def _flops(layer: nn.Module, positions: int) -> Flops:
    dense = prod(shape_of(layer))
    acting, trained = (layer.connections, layer.topology.nnz) if isinstance(layer, TopologyLayer) else (dense, dense)
    return Flops(2 * acting * positions, 2 * dense * positions, 2 * trained * positions)


def shape_of(layer: nn.Module) -> tuple[int, ...]:
    """Of the dense weight."""
    if isinstance(layer, TopologyLayer):
        return layer.geometry.weight_shape
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return tuple(weight.shape)


def _counter(counted: dict[str, int], name: str, layer: nn.Module) -> Callable[[nn.Module, Any, Any, Tensor], None]:
    rows, transposed = shape_of(layer)[0], isinstance(layer, (_ConvTransposeNd, TransposedInterface))

    def count(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
        # The rows of a transposed convolution are the channels of its input.
        of_rows = (args[0] if args else named["input"]) if transposed else output
        counted[name] = counted.get(name, 0) + of_rows.numel() // max(rows, 1)

    return count
