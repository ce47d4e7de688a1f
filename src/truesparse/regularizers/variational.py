"""Which weights are nothing but noise? Each has a variance of its own, which is trained with it; where it is large the weight can go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..nn.selection import Excluded
from .base import Layer, checked_strength, layers_of, parameter_of, tensor_of

K1, K2, K3 = 0.63576, 1.87320, 1.48695
BEGIN = -10.0  # of the logarithm of variances: next to no noise
LARGEST = 8.0  # of log alpha on both sides, beyond which nothing is told apart
SMALLEST_SQUARE = 1e-16
NAME = "log_variance"


def divergence(log_alpha: Tensor) -> Tensor:
    """The divergence from the log-uniform prior to N(w, alpha w^2), approximately: minus equation 14; 0 for large alpha."""
    return K1 + 0.5 * F.softplus(-log_alpha) - K1 * torch.sigmoid(K2 + K3 * log_alpha)


class VariationalDropout:
    """Sparse variational dropout. Molchanov et al. 2017, https://arxiv.org/abs/1701.05369.

        dropout = ts.regularizers.VariationalDropout(model, strength=1 / len(dataset))    # before the optimizer
        optimizer = torch.optim.Adam(model.parameters())
        ...
        (F.cross_entropy(model(x), y) + dropout.loss()).backward()
        ...
        dropout.finish()                                                                  # noise beyond log alpha = 3: zero
        ts.sparsify(model, None, from_weights=True)

    In training mode each output has the noise that its weights give it (local reparametrisation, equation 17), in eval mode none. A
    layer has a parameter more, `log_variance`, until `finish`; a sparse layer cannot be rewired meanwhile.

    Args:
        model: its linear layers and convolutions, dense or sparse.
        strength: factor of the divergence, at least 0: with a loss that is a mean, 1 / (samples of the training set) is the bound of the
            paper. It is often raised from 0 during the first epochs: set `.strength`.
        exclude: layers to leave alone, as in `sparsify`.
        generator: generator of the noise, on the CPU or on the device of the model; None is torch's global one of that device.

    Attributes:
        held: the layers with noise, by name.

    Raises:
        ValueError: if there is no such layer, a name matches nothing, or the strength is negative.
    """

    def __init__(
        self, model: nn.Module, strength: float, exclude: Iterable[Excluded] = (), generator: torch.Generator | None = None
    ) -> None:
        self.strength = checked_strength(strength)
        self.held = layers_of(model, exclude)
        self._generator, self._inside = generator, False
        for layer in self.held.values():
            layer.register_parameter(NAME, nn.Parameter(torch.full(parameter_of(layer).shape, BEGIN, device="cpu").to(parameter_of(layer))))
        self._handles = [layer.register_forward_hook(self._with_noise) for layer in self.held.values()]

    def log_alpha(self, layer: Layer) -> Tensor:
        """Of each weight, the logarithm of its variance over its square, shaped as the parameter."""
        return (getattr(layer, NAME) - (parameter_of(layer).square() + SMALLEST_SQUARE).log()).clamp(-LARGEST, LARGEST)

    def loss(self) -> Tensor:
        """The penalty, a scalar to add to the loss."""
        return self.strength * torch.stack([divergence(self.log_alpha(layer)).sum() for layer in self.held.values()]).sum()

    @torch.no_grad()
    def finish(self, threshold: float = 3.0) -> None:
        """Set the weights to zero whose log alpha is above the threshold (section 4.4: 3), and take the noise away."""
        for layer in self.held.values():
            parameter_of(layer).masked_fill_(self.log_alpha(layer) > threshold, 0.0)
            del layer._parameters[NAME]
        for handle in self._handles:
            handle.remove()
        self.held = {}

    def _with_noise(self, layer: Any, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if self._inside or not layer.training:
            return None
        parameters = {tensor_of(layer): getattr(layer, NAME).exp()}
        if layer.bias is not None:
            parameters["bias"] = torch.zeros_like(layer.bias)
        self._inside = True
        try:
            variance: Tensor = functional_call(layer, parameters, (args[0].square(),))
        finally:
            self._inside = False
        drawn_on = output.device if self._generator is None else self._generator.device
        noise = torch.randn(output.shape, generator=self._generator, dtype=output.dtype, device=drawn_on)
        return output + variance.clamp(min=SMALLEST_SQUARE).sqrt() * noise.to(output.device, non_blocking=True)
