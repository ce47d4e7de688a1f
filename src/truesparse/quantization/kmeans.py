"""Which few numbers stand best for many? k-means of numbers on a line, where every cluster is an interval."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

MOST_ROUNDS = 300


def kmeans(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from centroids evenly between the least and the largest value, until nothing changes.

    The linear initialisation of Han, Mao and Dally 2016 (https://arxiv.org/abs/1510.00149, section 3.2), which has centroids where the
    few large weights are. A value as near to two centroids is the lower one's. In float64.

    Args:
        values: [n], finite, at least one.
        count: of clusters to begin with, at least 1. Those that get no value are left out.

    Returns:
        (codebook [k], ascending, float64, each the mean of its values; codes [n] int64, the entry of each value), k at most `count`.
    """
    order = torch.argsort(values.double(), stable=True)
    ascending = values.detach().double()[order].cpu().numpy()
    sums = np.concatenate([[0.0], np.cumsum(ascending)])
    centroids = np.linspace(ascending[0], ascending[-1], count)
    ends = np.zeros(0, dtype=np.int64)
    for _ in range(MOST_ROUNDS):
        between = (centroids[1:] + centroids[:-1]) / 2
        inner = np.searchsorted(ascending, between, side="right")
        edges = np.concatenate([[0], inner, [ascending.size]])
        used = np.diff(edges) > 0
        found = edges[1:][used]
        centroids = np.diff(sums[np.concatenate([[0], found])]) / np.diff(np.concatenate([[0], found]))
        if np.array_equal(found, ends):
            break
        ends = found
    codes = torch.empty(values.numel(), dtype=torch.int64, device="cpu")
    codes[order.cpu()] = torch.from_numpy(np.repeat(np.arange(ends.size), np.diff(np.concatenate([[0], ends]))))
    return torch.from_numpy(centroids).to(values.device), codes.to(values.device)
