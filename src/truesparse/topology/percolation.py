"""Which neurons are cut off at one end, without inputs or without outputs? What still leads to or from them is of no use.

A topology ends where its layer does, so this takes a guess at which layer reads which.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from math import prod

import torch
from torch import Tensor

from .patterns import Pattern
from .topology import Topology

CHAINS = ("sequential", "neighbours", "none")
"""Which layers read one another. Always neighbours in the model, the columns of the second a whole number for each row of the first
(kernel positions of a channel, pixels of a flattened one).

* sequential: only two that also stand in one `nn.Sequential`, by their names ("mlp.0" and "mlp.2"). In a residual network or a
  transformer these are the hidden layers of a block; a neuron that a skip connection feeds or reads is never taken for cut off.
* neighbours: any two. For a plain stack that is no `nn.Sequential`; wrong where layers branch (query and key, skip connections).
* none: no neuron is removed.

A dense layer between two sparse ones that keeps the number of neurons deceives both guesses, as does a grouped convolution.
"""


def check_chain(chain: str) -> None:
    """
    Raises:
        ValueError: if there is no such guess.
    """
    if chain not in CHAINS:
        raise ValueError(f"chain is one of {', '.join(CHAINS)}, got {chain!r}")


def percolated(topologies: Mapping[str, Topology], patterns: Mapping[str, Pattern], chain: str) -> dict[str, Topology]:
    """The topologies without what leads to or from a neuron that is cut off at one end, all along the chain.

    First backward, what leads to neurons without outputs; then forward, what comes from neurons without inputs. Inputs of the first
    layer of a chain and outputs of its last are never cut off. Zhang et al. 2024, https://openreview.net/forum?id=iayEcORsGd

    Args:
        topologies: by name, in the order of the model.
        patterns: of each; a unit goes when all its connections do.
        chain: of `CHAINS`, which layers read one another.
    """
    left = dict(topologies)
    joints = [(before, after) for before, after in pairwise(left) if _joined(before, after, left, chain)]
    for before, after in reversed(joints):
        width = left[after].shape[1] // left[before].shape[0]
        is_read = left[after].fan_out.view(-1, width).sum(1) > 0
        left[before] = _without(left[before], patterns[before], ~is_read[left[before].rows])
    for before, after in joints:
        width = left[after].shape[1] // left[before].shape[0]
        is_fed = left[before].fan_in > 0
        left[after] = _without(left[after], patterns[after], ~is_fed[left[after].indices // width])
    return left


def _joined(before: str, after: str, topologies: Mapping[str, Topology], chain: str) -> bool:
    rows, columns = topologies[before].shape[0], topologies[after].shape[1]
    if chain == "none" or not rows or not columns or columns % rows:
        return False
    (outer, _, first), (other_outer, _, second) = before.rpartition("."), after.rpartition(".")
    return chain == "neighbours" or (outer == other_outer and first.isdigit() and second.isdigit())


def _without(topology: Topology, pattern: Pattern, useless: Tensor) -> Topology:
    size = prod(pattern.unit(topology.shape))
    whole = pattern.pool(topology, useless.to(torch.float32)) == size
    return pattern.drop_units(topology, whole.nonzero().squeeze(1)) if bool(whole.any()) else topology
