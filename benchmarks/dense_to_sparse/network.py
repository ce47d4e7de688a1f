"""What must be known of a trained network before it is pruned, scored and fine-tuned? And what is fine-tuning, for all of them?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Batch = Any


def called(model: nn.Module, batch: Batch) -> Any:
    """The model on the first part of a batch."""
    return model(batch[0])


@dataclass(frozen=True)
class Network:
    """A dense network with all that its rows of the table want.

    Args:
        title: of its rows.
        measure: what the score is.
        model: trained, in eval mode.
        score: of a network like this one, in percent.
        calibration: batches (input, target) for criteria that look at data.
        samples: the same, fewer, for those that look at the gradient of each sample alone, which takes longer.
        loss: of (output, target).
        tune: trains a network like this one, dense or sparse, a round.
        forward: calls the model on a batch.
        exclude: layers that stay dense.
        own_teacher: fine-tuning is towards what the dense network says, which has nothing to learn from it.
    """

    title: str
    measure: str
    model: nn.Module
    score: Callable[[nn.Module], float]
    calibration: Sequence[Batch]
    samples: Sequence[Batch]
    loss: Callable[[Any, Tensor], Tensor]
    tune: Callable[[nn.Module], None]
    forward: Callable[[nn.Module, Batch], Any] = called
    exclude: Sequence[str] = ()
    own_teacher: bool = False


def fitted(
    model: nn.Module, batches: Iterable[Batch], steps: int, loss: Callable[[Batch], Tensor], rate: float, decay: float = 0.0
) -> None:
    """A plain loop: AdamW, its rate rising over a tenth of the steps and falling to zero as a cosine does. Sparse layers need no more.

    Args:
        model: in training mode from here on.
        batches: `steps` of them.
        steps: number of updates.
        loss: of a batch.
        rate: the highest learning rate.
        decay: of the weights.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / (0.1 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for batch in batches:
        optimizer.zero_grad()
        loss(batch).backward()
        optimizer.step()
        schedule.step()
