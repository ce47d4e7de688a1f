"""What do yes and no of a GPU say? Asked together: the host waits for all that the GPU has to do, each time it asks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Flag = bool | Tensor
"""Known, or [] bool on some device."""


def told(flags: Iterable[Flag]) -> list[bool]:
    """What they say, in order. Those of one device are read at once."""
    given = list(flags)
    asked: dict[torch.device, list[Tensor]] = {}
    for flag in given:
        if isinstance(flag, Tensor):
            asked.setdefault(flag.device, []).append(flag)
    said = {device: iter(torch.stack(those).tolist()) for device, those in asked.items()}
    return [next(said[flag.device]) if isinstance(flag, Tensor) else flag for flag in given]
