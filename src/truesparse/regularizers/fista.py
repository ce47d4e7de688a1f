"""Where is the minimum of a convex function plus a penalty? By gradient and proximal steps with momentum, for small problems."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import torch
from torch import Tensor


def fista(
    loss: Callable[[Tensor], Tensor],
    start: Tensor,
    proximal: Callable[[Tensor, float], Tensor],
    step: float,
    iterations: int,
    accelerated: bool = True,
) -> Tensor:
    """The minimum of loss(w) + penalty(w). Beck & Teboulle 2009, https://doi.org/10.1137/080716542, equations 4.1 to 4.3.

        fista(lambda w: (y - x @ w).square().mean() / 2, torch.zeros(8), lambda w, step: soft_threshold(w, 0.1 * step), 0.5, 1000)

    Args:
        loss: convex, differentiable, of the weights to a scalar.
        start: the weights to begin with, of any shape; left as they are.
        proximal: of (weights, step), the proximal operator of step x penalty.
        step: at most 1 / the largest curvature of the loss: for mean((y - x w)^2) / 2 that is the largest eigenvalue of x^T x / n.
        iterations: how many, at least 1; the error falls as 1 / iterations^2.
        accelerated: False is ISTA, whose error falls as 1 / iterations.

    Raises:
        ValueError: if the loss is no longer finite, as with too large a step.
    """
    found, ahead, momentum = start.detach(), start.detach(), 1.0
    for _ in range(iterations):
        point = ahead.requires_grad_()
        value = loss(point)
        if not bool(value.isfinite()):
            raise ValueError(f"the loss is no longer finite: step={step} is larger than 1 / its largest curvature")
        (gradient,) = torch.autograd.grad(value, point)
        last, found = found, proximal(point.detach() - step * gradient, step)
        following = (1 + sqrt(1 + 4 * momentum**2)) / 2
        ahead = found + (momentum - 1) / following * (found - last) if accelerated else found.clone()
        momentum = following
    return found
