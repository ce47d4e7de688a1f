"""What does an optimizer keep for the connections, and what would it have kept for absent ones?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..nn import TopologyLayer
from .absent import Smoothing

# A state entry is moved (True) or belongs to the parameter as a whole and stays (False).
StateMoves = dict[str, tuple[bool, float]]


def state_moves(layer: TopologyLayer, optimizer: Optimizer | None) -> StateMoves:
    """For each entry of the optimizer's state: does it follow the connections, and where do grown ones start?"""
    if optimizer is None:
        return {}
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "LBFGS keeps one history for all parameters together, which cannot follow the connections; use SGD, Adam, AdamW, ..."
        )
    parameter = layer.parameter
    group = group_of(optimizer, parameter)
    moves: StateMoves = {}
    for name, entry in optimizer.state.get(parameter, {}).items():
        if isinstance(entry, Tensor) and entry.shape == parameter.shape and entry.ndim:
            moves[name] = True, _fresh_state(optimizer, name, group)
        elif entry is None or isinstance(entry, (bool, int, float)) or (isinstance(entry, Tensor) and entry.numel() == 1):
            moves[name] = False, 0.0
        else:
            what = f"a tensor of shape {tuple(entry.shape)}" if isinstance(entry, Tensor) else f"a {type(entry).__name__}"
            raise TypeError(
                f"{type(optimizer).__name__} keeps {name!r}, {what}, for a parameter of shape {tuple(parameter.shape)}: it cannot follow "
                "the connections; use an optimizer whose state has the parameter's shape (SGD, Adam, AdamW, RMSprop, Adagrad, NAdam, ...)"
            )
    return moves


def _fresh_state(optimizer: Optimizer, name: str, group: Mapping[str, Any]) -> float:
    """What the optimizer itself starts this state at."""
    if isinstance(optimizer, torch.optim.Adagrad) and name == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    if isinstance(optimizer, torch.optim.Rprop) and name == "step_size":
        return float(group["lr"])
    return 0.0


def group_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The settings of the optimizer for this parameter; none if it does not hold it."""
    return next((group for group in optimizer.param_groups if any(held is parameter for held in group["params"])), {})


def momentum_of(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor | None:
    """What the optimizer makes of the gradients so far; None if it keeps nothing of the kind."""
    state = optimizer.state.get(parameter, {})
    if "exp_avg" in state and "exp_avg_sq" in state:
        return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + group_of(optimizer, parameter).get("eps", Smoothing.epsilon))
    return state.get("momentum_buffer")


def smoothing_of(optimizer: Optimizer, group: Mapping[str, Any]) -> Smoothing:
    """How it would have smoothed the gradients of absent connections."""
    if isinstance(optimizer, torch.optim.SGD):
        return Smoothing(first=group.get("momentum", 0.0))
    if "betas" in group and "eps" in group:
        return Smoothing(*map(float, group["betas"]), epsilon=float(group["eps"]))
    return Smoothing()
