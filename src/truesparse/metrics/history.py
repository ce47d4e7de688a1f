"""What has become of a layer's connections so far? Immutable values that follow its moves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ..topology import Move, Topology, merge

LARGEST_EXACT = 2**22
"""Positions of the largest layer whose explored positions are all kept; of larger ones a sample of about so many positions is."""


@dataclass(frozen=True, eq=False)
class Explored:
    """Which positions have ever held a connection: in-time over-parameterization.

    R_s = |union of all masks so far| / positions. Liu et al. 2021, https://arxiv.org/abs/2102.02887, section 3.
    A layer of more than `LARGEST_EXACT` positions is followed at a pseudo-random one in `one_in` of its positions, chosen by a hash:
    its rate is an estimate, the count at the beginning (known exactly) plus `one_in` times what the sample has met since. The standard
    error is about sqrt(one_in x positions met since) / positions.

    Attributes:
        size: positions, rows x columns.
        one_in: 1 is exact.
        began: connections at the beginning.
        sampled: how many of them are in the sample.
        keys: ascending int64 positions of the sample explored so far, on the CPU.
    """

    size: int
    one_in: int
    began: int
    sampled: int
    keys: Tensor

    @classmethod
    def begin(cls, topology: Topology, largest_exact: int = LARGEST_EXACT) -> Self:
        """With the connections of `topology`."""
        one_in = 1
        while topology.size > largest_exact * one_in:
            one_in *= 2
        keys = _sample(topology.keys.cpu(), one_in)
        return cls(topology.size, one_in, topology.nnz, keys.numel(), keys)

    def after(self, grown: Tensor) -> Self:
        """With the ascending int64 positions `grown`."""
        grown = _sample(grown.cpu(), self.one_in)
        keys, _ = merge.accepted(grown[:0], self.keys, grown)
        return type(self)(self.size, self.one_in, self.began, self.sampled, keys)

    @property
    def rate(self) -> float:
        """R_s, from the density at the beginning to 1."""
        met = self.began + self.one_in * (self.keys.numel() - self.sampled)
        return min(met / self.size, 1.0) if self.size else 0.0


@dataclass(frozen=True, eq=False)
class Lineage:
    """Which rewiring grew each connection that lives, and how many it grew.

    A connection that an algorithm drops and grows again at once is the same one where it keeps its weight (RigL), and another
    where it starts anew (SET).

    Attributes:
        born: [nnz] int32, the number of the rewiring; 0 for those of the beginning.
        grown: how many each rewiring grew; entry 0 is how many there were at the beginning.
    """

    born: Tensor
    grown: tuple[int, ...]

    @classmethod
    def begin(cls, topology: Topology) -> Self:
        """With the connections of `topology`."""
        return cls(torch.zeros(topology.nnz, dtype=torch.int32, device="cpu"), (topology.nnz,))

    def after(self, move: Move) -> Self:
        """With the connections after `move`."""
        source = move.source.cpu()
        return type(self)(merge.moved(self.born, source, len(self.grown)), (*self.grown, int((source < 0).sum())))

    @property
    def alive(self) -> Tensor:
        """[rewirings + 1] int64, how many of those that each rewiring grew still live."""
        return torch.bincount(self.born, minlength=len(self.grown))

    @property
    def survival(self) -> Tensor:
        """[rewirings + 1] the share of those that each rewiring grew that still live; NaN where it grew none."""
        return self.alive / torch.tensor(self.grown, dtype=torch.float64, device="cpu")


def _sample(keys: Tensor, one_in: int) -> Tensor:
    """Those of the positions that are in the sample."""
    if one_in == 1:
        return keys
    # splitmix64, Steele et al. 2014, https://doi.org/10.1145/2714064.2660195. int64 wraps as uint64 does, but shifts in copies of its sign.
    mixed = keys + _wrapped(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> shift & (1 << 64 - shift) - 1)) * _wrapped(factor)
    mixed ^= mixed >> 31 & (1 << 33) - 1
    return keys[mixed & one_in - 1 == 0]


def _wrapped(unsigned: int) -> int:
    return unsigned - (1 << 64) if unsigned >= 1 << 63 else unsigned
