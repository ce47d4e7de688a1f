"""How much can each layer spare? Budgets that look at the layers: outliers among their scores, and how deep they are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..topology.budgets import kept
from ..topology.select import shared_out
from .base import Evidence

Layers = Mapping[str, Sequence[Evidence]]


@dataclass(frozen=True)
class OWL:
    """Outlier-weighed layer sparsity: blocks with more outliers keep more. Yin et al. 2023, https://arxiv.org/abs/2310.05175

    The score of a weight is |w| times the norm of its input, as Wanda has it; an outlier is above `outlier` times the mean score of its
    block. With D_i the share of outliers of block i, its density is that of all plus 2 `spread` (D_i - min D) / (max D - min D), less the
    mean of that, section 4. Layers of a block have the same sparsity. A block is what has one number in the names of its layers
    ("model.layers.7", "features.3"); a layer without one is a block of its own.

    Args:
        outlier: the paper's M, 5 or 7.
        spread: the paper's lambda: blocks lie within this of the sparsity of all, or within twice it to one side.
    """

    outlier: float = 5.0
    spread: float = 0.08
    needs: ClassVar[tuple[str, ...]] = ("input_squares",)

    def sparsities(self, layers: Layers, sparsity: float) -> dict[str, float]:
        blocks = blocks_of(layers)
        shares: list[float] = []
        for names in blocks.values():
            scores = [one.weight.abs() * one["input_squares"].sqrt() for name in names for one in layers[name]]
            total = sum(part.numel() for part in scores)
            mean = sum(float(part.sum(dtype=torch.float64)) for part in scores) / total
            shares.append(sum(int((part > self.outlier * mean).sum()) for part in scores) / total)
        lowest, highest = min(shares), max(shares)
        above = [2 * self.spread * (share - lowest) / (highest - lowest) if highest > lowest else 0.0 for share in shares]
        return around(layers, blocks, [-part for part in above], sparsity)


@dataclass(frozen=True)
class Depth:
    """Later blocks lose more: sparsities in arithmetic progression, as in Huang et al. 2025, https://arxiv.org/abs/2502.14770

    What the first blocks lose, all that follow amplify. Blocks are those of `OWL`.

    Args:
        spread: the last block is this much sparser than the mean of all, and the first as much denser; negative: the other way round.
    """

    spread: float = 0.1

    def sparsities(self, layers: Layers, sparsity: float) -> dict[str, float]:
        blocks = blocks_of(layers)
        steps = max(len(blocks) - 1, 1)
        return around(layers, blocks, [self.spread * (2 * place / steps - 1) for place in range(len(blocks))], sparsity)


def blocks_of(names: Mapping[str, object]) -> dict[str, list[str]]:
    """Names of layers by the block that they are in: what stands before the first part of their name after its first number."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        found = re.match(r"(.*?(?:^|\.)\d+)\.", name)
        blocks.setdefault(found.group(1) if found else name, []).append(name)
    return blocks


def around(layers: Layers, blocks: Mapping[str, Sequence[str]], offsets: Sequence[float], sparsity: float) -> dict[str, float]:
    """The sparsity of each layer: `sparsity` and the `offsets` of their blocks, less their mean, so that all together have `sparsity`.

    A layer that would lose more than all or less than nothing keeps one weight, or all, and the others share the difference.
    """
    sizes = {name: sum(one.weight.numel() for one in layers[name]) for name in layers}
    total = sum(kept(size, sparsity) for size in sizes.values())
    offset = {name: part for names, part in zip(blocks.values(), offsets, strict=True) for name in names}
    mean = sum(offset[name] * size for name, size in sizes.items()) / sum(sizes.values())
    density = {name: min(max(1 - sparsity - offset[name] + mean, 0.0), 1.0) for name in sizes}
    most = [sizes[name] for name in sizes]
    least = [min(1, size) for size in most]
    weights = [density[name] * size for name, size in sizes.items()]
    counts = shared_out(total, weights, [0] * len(most), most, [1] * len(most), least)
    return {name: 1 - count / size for (name, size), count in zip(sizes.items(), counts, strict=True)}
