"""How does a penalty on the absolute value of each weight make zeros? By soft thresholding; or, smoothed, nearly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..nn.selection import Excluded
from .base import Layer, Proximal, checked_strength, entries_of, layers_of, parameter_of, put

Shape = Literal["root", "huber"]


def soft_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    """The proximal operator of threshold x |w|: sign(w) max(|w| - threshold, 0)."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)


class L1(Proximal[Layer]):
    """strength x sum of |w|, by a proximal step after each step of the optimizer (`Proximal` says what that is for which optimizer).

        penalty = ts.regularizers.L1(model, optimizer, strength=1e-4)

    and nothing else in the loop. Biases are not penalised.

    Args:
        model: its linear layers and convolutions, dense, sparse or masked.
        optimizer: of torch, or an object that wraps one.
        strength: factor of the penalty, at least 0.
        exclude: layers to leave alone, as in `sparsify`.

    Raises:
        ValueError: if there is no such layer, the optimizer holds none of them, a name matches nothing, or the strength is negative.
        TypeError: if the optimizer is LBFGS.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | Any, strength: float, exclude: Iterable[Excluded] = ()) -> None:
        layers = layers_of(model, exclude)
        super().__init__(layers, map(parameter_of, layers.values()), optimizer, strength)

    def shrink(self, module: Layer, threshold: float) -> None:
        put(module, soft_threshold(entries_of(module), threshold))


class SmoothL1:
    """strength x the sum of a smooth |w|, a term of the loss, where a gradient is wanted everywhere. Weights become small, not zero.

        penalty = ts.regularizers.SmoothL1(model, strength=1e-4, width=1e-3)
        (F.cross_entropy(model(x), y) + penalty.loss()).backward()

    Args:
        model: its linear layers and convolutions.
        strength: factor of the penalty, at least 0.
        width: about where |w| begins: above 0.
        shape: "root", sqrt(w^2 + width^2) - width; "huber", w^2 / (2 width) up to width and |w| - width / 2 above, which is the Moreau
            envelope of |w|.
        exclude: layers to leave alone, as in `sparsify`.

    Raises:
        ValueError: if there is no such layer, a name matches nothing, the strength is negative or the width not positive.
    """

    def __init__(
        self, model: nn.Module, strength: float, width: float = 1e-3, shape: Shape = "root", exclude: Iterable[Excluded] = ()
    ) -> None:
        if not 0 < width < float("inf"):
            raise ValueError(f"width must be above 0, got {width}")
        if shape not in get_args(Shape):
            raise ValueError(f"shape is {' or '.join(map(repr, get_args(Shape)))}, got {shape!r}")
        self.strength, self.width, self.shape = checked_strength(strength), width, shape
        self.held = layers_of(model, exclude)

    def loss(self) -> Tensor:
        """The penalty, a scalar to add to the loss."""
        return self.strength * torch.stack([self._of(entries_of(layer)) for layer in self.held.values()]).sum()

    def _of(self, weights: Tensor) -> Tensor:
        if self.shape == "root":
            return ((weights.square() + self.width**2).sqrt() - self.width).sum()
        return nn.functional.huber_loss(weights, torch.zeros_like(weights), reduction="sum", delta=self.width) / self.width
