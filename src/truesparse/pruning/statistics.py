"""What can be measured of a layer by running its model on data? A function a statistic, from a probe to a tensor for each layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .probe import Probe, Probed, inputs_of

Statistic = Callable[[Probe], Mapping[str, Tensor]]


def input_squares(probe: Probe) -> Mapping[str, Tensor]:
    """The mean square of what each column is multiplied with, over all samples and positions, [groups, columns]."""
    return _mean(probe, lambda rows: rows.square().sum(1))


def gram(probe: Probe) -> Mapping[str, Tensor]:
    """X^T X of the inputs X [samples and positions, columns], divided by their number, [groups, columns, columns]."""
    return _mean(probe, lambda rows: rows.transpose(1, 2) @ rows)


def _mean(probe: Probe, part: Callable[[Tensor], Tensor]) -> Mapping[str, Tensor]:
    """The sum of `part` over all inputs [groups, samples and positions, columns], divided by their number."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(probe.layers, 0)

    def hear(name: str, layer: Probed, x: Tensor, y: Tensor) -> None:
        rows = inputs_of(layer, x).to(torch.promote_types(x.dtype, torch.float32))
        new = part(rows)
        if name in sums:
            sums[name] += new
        else:
            sums[name] = new
        counts[name] += rows.shape[1]

    with probe.hearing(hear):
        for _ in probe.batches():
            pass
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


STATISTICS: dict[str, Statistic] = {function.__name__: function for function in (input_squares, gram)}
"""Each by name. A layer that no data reached is not in what a statistic returns."""
