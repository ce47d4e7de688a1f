"""How are gradients kept from being too large? Their common norm is cut. Pascanu et al. 2013, https://arxiv.org/abs/1211.5063"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..rewiring import Rewirer


def clip_gradients(model: nn.Module, max_norm: float, rewirer: Rewirer | None = None) -> Tensor:
    """Scale all gradients so that their common Euclidean norm is at most `max_norm` (algorithm 1 of the paper).

    Call it after `loss.backward()` and before `rewirer.step()`. This is `torch.nn.utils.clip_grad_norm_`, and tells the rewirer, which
    scales the gradients of absent connections by the same factor: algorithms that rank both together need that.

    Args:
        model: whose parameters' gradients are scaled in place.
        max_norm: greater than 0.
        rewirer: of the model.

    Returns:
        The norm before.

    Raises:
        ValueError: if `max_norm` is not greater than 0.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be greater than 0, got {max_norm}")
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    if rewirer is not None:
        # The factor that torch has just used, its guard against 0 included.
        rewirer.scale_gradients(min(1.0, float(max_norm / (norm + 1e-6))))
    return norm
