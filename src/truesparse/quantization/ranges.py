"""Between which numbers do the inputs and outputs of layers lie, on data? And how does int8 hold what lies between them?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from ..nn.rounded import LEAST_INPUT, MOST_INPUT
from ..pruning.probe import Batch, Forward, evaluating
from .described import Affine

STEPS = MOST_INPUT - LEAST_INPUT


@dataclass
class Range:
    """The ends over the batches seen: the extremes, or with a percentile the means of what it leaves of each batch."""

    percentile: float
    lows: list[float] = field(default_factory=list)
    highs: list[float] = field(default_factory=list)

    def see(self, x: Tensor) -> None:
        flat = x.detach().flatten().float()
        if not flat.numel():
            return
        left_out = int((100 - self.percentile) * flat.numel() / 100)
        self.lows.append(float(flat.kthvalue(1 + left_out)[0] if left_out else flat.min()))
        self.highs.append(float(flat.kthvalue(flat.numel() - left_out)[0] if left_out else flat.max()))

    def affine(self) -> Affine:
        """Zero lies inside, so that padding, and what ReLU gives, are exact."""
        whole = self.percentile == 100
        low = min(self.lows) if whole else sum(self.lows) / len(self.lows)
        high = max(self.highs) if whole else sum(self.highs) / len(self.highs)
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(torch.tensor((high - low) / STEPS, dtype=torch.float32, device="cpu"))
        if scale == 0.0:
            return Affine(1.0, LEAST_INPUT)
        return Affine(scale, max(LEAST_INPUT, min(MOST_INPUT, round(LEAST_INPUT - low / scale))))


@torch.no_grad()
def ranges_of(
    model: nn.Module, layers: Mapping[str, nn.Module], data: Sequence[Batch], forward: Forward, percentile: float
) -> dict[str, tuple[Affine, Affine]]:
    """(of its inputs, of its outputs) for each layer. The model runs in eval mode.

    Raises:
        ValueError: if no data reaches a layer, or what reaches it is not finite.
    """
    seen = {name: (Range(percentile), Range(percentile)) for name in layers}

    def hear(name: str) -> Callable[..., None]:
        def told(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> None:
            for own, x in zip(seen[name], (given[0] if given else named["input"], output), strict=True):
                own.see(x)

        return told

    handles = [layer.register_forward_hook(hear(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with evaluating(model):
            for batch in data:
                forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name, (inputs, _) in seen.items() if not inputs.lows]
    if missing:
        raise ValueError(
            f"no data reached {', '.join(map(repr, missing))} by a call of the layer: pass data that goes through all layers, exclude "
            "those that it does not, or leave data out, so that activations stay as they are"
        )
    for name, pair in seen.items():
        if not all(isfinite(end) for one in pair for end in (*one.lows, *one.highs)):
            raise ValueError(f"layer {name!r}: its inputs or outputs on this data are not finite: look for NaN or infinity in the data")
    return {name: (inputs.affine(), outputs.affine()) for name, (inputs, outputs) in seen.items()}
