"""Is a result right, so that its time is worth knowing?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runs import RunError
from ..topology import Topology

# Largest difference over largest entry. Sums of thousands of float32 products in another order differ by 1e-5 or so; bfloat16 has 8 bits.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
TOLERANCE_OF_TF32 = 4e-3  # 11 bits of each factor, as float16 has


class WrongResult(RunError):
    """What was to be timed computes something else."""


def refuse_if_wrong(what: str, actual: Tensor | None, expected: Tensor, tolerance: float) -> None:
    """Compares a result with the same in float64.

    Args:
        what: names the result in the message.
        actual: the result; None if there is none.
        expected: float64.
        tolerance: largest error that is rounding, as a share of the largest entry.

    Raises:
        WrongResult: if there is none, its shape is another, or the largest error is more than rounding, or NaN.
    """
    if actual is None:
        raise WrongResult(f"{what} was not computed; nothing is timed")
    if actual.shape != expected.shape:
        raise WrongResult(f"{what} has shape {tuple(actual.shape)} instead of {tuple(expected.shape)}; nothing is timed")
    if not expected.numel():
        return
    error, size = float((actual.detach().double() - expected).abs().max()), float(expected.abs().max())
    if not error <= tolerance * size:
        raise WrongResult(f"{what} is wrong: off by {error:.2e}, where the largest entry is {size:.2e}; nothing is timed")


def refuse_if_far(what: str, actual: Tensor | None, expected: Tensor, tolerance: float, least: float = 0.0) -> None:
    """As `refuse_if_wrong`, by Euclidean norms: through a whole network, one ReLU near zero may fall on the other side.

    Raises:
        WrongResult: if there is none, or |actual - expected| > tolerance x the larger of |expected| and `least`, or NaN.
    """
    if actual is None:
        raise WrongResult(f"{what} was not computed; nothing is timed")
    error, size = float((actual.detach().double() - expected).norm()), float(expected.norm())
    if not error <= tolerance * max(size, least):
        raise WrongResult(f"{what} is wrong: off by {error:.2e} of {size:.2e} (Euclidean norms); nothing is timed")


def of_connections(gradient: Tensor | None, topology: Topology) -> Tensor | None:
    """The gradient of the connections [nnz], in whichever form a way leaves it: one number each, dense, or torch's CSR."""
    if gradient is None or (gradient.layout == torch.strided and gradient.ndim == 1):
        return gradient
    return (gradient if gradient.layout == torch.strided else gradient.to_dense()).flatten()[topology.keys]
