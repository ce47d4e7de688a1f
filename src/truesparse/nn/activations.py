"""Which activation functions make zeros? The layer after one reads few of its inputs, which `truesparse.pack` turns into time."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class TopK(nn.Module):
    """The k largest units of each sample and position stay as they are, all others become 0: k-winners.

        nn.Sequential(nn.Linear(784, 1024), ts.nn.TopK(0.1), nn.Linear(1024, 10))   # 102 of 1024 units
        nn.Sequential(nn.Conv2d(3, 64, 3), ts.nn.TopK(8, dim=1), ...)               # 8 channels at each position

    Makhzani & Frey 2013, https://arxiv.org/abs/1312.5663; Ahmad & Scheinkman 2019, "How Can We Be So Dense?",
    https://arxiv.org/abs/1903.11257, equations 4 to 9, which adds `boost`. Gradients flow through the winners alone. Exactly k
    units win: of units that are equal those that come first do. NaN wins, and is seen in the output. A winner may be negative, or 0.

    With `boost` > 0, units compete with their value times exp(boost * (k / units - duty)), where the duty of a unit is the share of
    samples that it has won lately: those that never win are lifted until they do. What stays is the value, not the product. Duties
    change in training mode only; they compete in both.

    Args:
        k: how many units win, at least 1; or, as a float between 0 and 1, which share of them, rounded, at least one.
        dim: along which units compete; -1 for features, 1 for the channels of images.
        boost: strength, at least 0.
        units: how many compete; needed for `boost`.
        momentum: weight of a batch in the average that duties are, more than 0, at most 1.

    Attributes:
        duty: [units] float32, only with `boost`; k / units at first.

    Raises:
        ValueError: if an argument is out of its range, or `boost` comes without `units`; in a call, if fewer than k units compete, or
            others than `units`.
    """

    duty: Tensor | None

    def __init__(self, k: int | float, dim: int = -1, *, boost: float = 0.0, units: int | None = None, momentum: float = 0.1) -> None:
        super().__init__()
        if isinstance(k, bool) or not (k >= 1 if isinstance(k, int) else 0 < k < 1):
            raise ValueError(f"k is a number of winners, an int of at least 1, or their share, a float between 0 and 1; got {k!r}")
        if not 0 <= boost < math.inf:
            raise ValueError(f"boost must be at least 0, got {boost}")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be more than 0 and at most 1, got {momentum}")
        if boost and units is None:
            raise ValueError("boost needs a duty for each unit: pass units=, how many of them compete")
        if units is not None and units < 1:
            raise ValueError(f"units must be at least 1, got {units}")
        self.k, self.dim, self.boost, self.units, self.momentum = k, dim, boost, units, momentum
        duty = torch.full((units,), self._winners(units) / units, device=None) if boost and units is not None else None
        self.register_buffer("duty", duty)

    def forward(self, input: Tensor) -> Tensor:
        units = input.shape[self.dim]
        if self.units is not None and units != self.units:
            raise ValueError(f"made for {self.units} units that compete, but dimension {self.dim} of the input has {units}")
        k = self._winners(units)
        if k > units:
            raise ValueError(f"{k} units shall win, but dimension {self.dim} of the input has only {units}: pass a smaller k, or a share")
        scores = input.detach()
        if self.duty is not None:
            scores = scores * self._along(torch.exp(self.boost * (k / units - self.duty.float())), input.ndim)
        won = _largest(scores, k, self.dim)
        if self.duty is not None and self.training:
            others = [dim for dim in range(input.ndim) if dim != self.dim % input.ndim]
            share = won.float().mean(others) if others else won.float()
            self.duty.copy_(torch.lerp(self.duty.float(), share, self.momentum))
        return torch.where(won, input, 0)

    def _winners(self, units: int) -> int:
        return self.k if isinstance(self.k, int) else max(1, round(self.k * units))

    def _along(self, of_units: Tensor, ndim: int) -> Tensor:
        """[units] as a tensor of `ndim` dimensions, of which the units have theirs."""
        shape = [1] * ndim
        shape[self.dim] = of_units.numel()
        return of_units.view(shape)

    def extra_repr(self) -> str:
        boost = f", boost={self.boost}, units={self.units}, momentum={self.momentum}" if self.boost else ""
        return f"{self.k}, dim={self.dim}{boost}"


class ThresholdReLU(nn.Module):
    """What is not larger than a threshold becomes 0: FATReLU, or with `shift` the shifted ReLU, max(x - threshold, 0).

    Kurtz et al. 2020, "Inducing and Exploiting Activation Sparsity", https://proceedings.mlr.press/v119/kurtz20a.html (forced
    activation threshold); Mirzadeh et al. 2023, "ReLU Strikes Back", https://arxiv.org/abs/2310.04564, section 5.3 (shifted). A larger
    threshold makes more zeros. That of a trained network can be set afterwards, from what the activation is given:

        relu.threshold.fill_(given.float().quantile(0.9))   # nine in ten become 0

    The gradient is 1 above the threshold, else 0. NaN stays NaN.

    Args:
        threshold: finite; 0 is the ReLU.
        shift: subtract it from what is larger, so that there is no jump.

    Attributes:
        threshold: a buffer without dimensions.

    Raises:
        ValueError: if the threshold is not finite.
    """

    threshold: Tensor

    def __init__(self, threshold: float = 0.0, *, shift: bool = False) -> None:
        super().__init__()
        if not math.isfinite(threshold):
            raise ValueError(f"threshold must be finite, got {threshold}")
        self.shift = shift
        self.register_buffer("threshold", torch.tensor(float(threshold), device=None))

    def forward(self, input: Tensor) -> Tensor:
        return torch.where(input <= self.threshold, 0, input - self.threshold if self.shift else input)

    def extra_repr(self) -> str:
        return f"{float(self.threshold):g}{', shift=True' if self.shift else ''}"


def _largest(scores: Tensor, k: int, dim: int) -> Tensor:
    """Where the k largest are along a dimension, bool; of equal ones the first."""
    scores = torch.where(scores.isnan(), math.inf, scores)
    least = scores.topk(k, dim).values.amin(dim, keepdim=True)
    above, equal = scores > least, scores == least
    return above | (equal & (equal.cumsum(dim) <= k - above.sum(dim, keepdim=True)))
