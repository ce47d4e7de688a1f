"""How often is a network right, how long does it take to answer, and what does its backward pass spend its time on?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from ..common.devices import CPU, elapsed
from ..metrics.flops import weight_layers


@torch.no_grad()
def inference_seconds(models: Mapping[str, nn.Module], inputs: Any, rounds: int = 30, device: torch.device = CPU) -> dict[str, float]:
    """Median seconds of each model on `inputs`; the models take turns, so that a slow moment meets them all.

    On a GPU they are those from the call to the answer.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    modes = {name: model.training for name, model in models.items()}
    for model in models.values():
        model.eval()
    for round_ in range(-2, rounds):
        for name, model in models.items():
            once = elapsed(lambda model=model: model(inputs), device)
            if round_ >= 0:
                seconds[name].append(once)
    for name, model in models.items():
        model.train(modes[name])
    return {name: median(times) for name, times in seconds.items()}


MOST_SECONDS = 1.0
LEAST_ROUNDS = 3
MOST_ROUNDS = 10


def share_of_dx(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> float:
    """The share of the backward pass that gradients of activations take; the rest is gradients of weights. 0 to 1.

    A backward pass that no parameter wants a gradient of, but the output of each layer with weights does, computes nothing else. It and
    the whole one take turns, for a second or ten rounds.

    Args:
        model: a copy to train on: its gradients and whatever a forward pass changes are lost.
        loss: of the model, a scalar.
    """

    def want(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        if not output.requires_grad and output.is_floating_point():
            output.requires_grad_()

    handles = [layer.register_forward_hook(want) for layer in weight_layers(model).values()]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    end = time.perf_counter() + MOST_SECONDS
    for round_ in range(-1, MOST_ROUNDS):
        for whole in (True, False):
            for parameter in parameters:
                parameter.requires_grad_(whole)
                parameter.grad = None
            value = loss(model)
            once = elapsed(value.backward if value.requires_grad else lambda: None, value.device)
            if round_ >= 0:
                seconds[whole].append(once)
        if round_ + 1 >= LEAST_ROUNDS and time.perf_counter() > end:
            break
    for handle in handles:
        handle.remove()
    return min(1.0, median(seconds[False]) / median(seconds[True]))


def right_answers(outputs: Any, targets: Tensor) -> tuple[Tensor | int, int]:
    """(right answers, answers); (0, 0) where outputs are not scores of classes. The former are not read here: a device counts on."""
    if isinstance(outputs, Tensor) and outputs.ndim > 1 and not targets.is_floating_point():
        best = outputs.argmax(1)
        if best.shape == targets.shape:
            return (best == targets).sum(), targets.numel()
    return 0, 0
