"""How does one topology differ from the last, and who is connected to how many?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

from ..topology import Move, Topology
from ..topology.geometry import Geometry

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
BINS = 32


@dataclass(frozen=True)
class Change:
    """How two masks of one shape differ.

    Attributes:
        dropped: connections of the old one that the new one lacks.
        grown: connections of the new one that the old one lacked.
        common: connections of both.
        size: positions, rows x columns.
    """

    dropped: int
    grown: int
    common: int
    size: int

    @property
    def hamming(self) -> float:
        """(dropped + grown) / positions: the normalised Hamming distance of the masks.

        The mask distance of You et al. 2020, https://arxiv.org/abs/1909.11957, section 3.2. At most twice the density.
        """
        return (self.dropped + self.grown) / self.size if self.size else 0.0

    @property
    def jaccard(self) -> float:
        """1 - |both| / |either|: the same relative to the connections, 0 (equal) to 1 (nothing in common), at any sparsity.

        Jaccard 1912, https://doi.org/10.1111/j.1469-8137.1912.tb05611.x
        """
        either = self.dropped + self.grown + self.common
        return (self.dropped + self.grown) / either if either else 0.0


def change(old: Topology, new: Topology) -> Change:
    """How `new` differs from `old`.

    Raises:
        ValueError: if the shapes differ.
    """
    move = Move.between(old, new)
    return change_of(move, grown_keys(move))


def change_of(move: Move, grown: Tensor) -> Change:
    """How the masks before and after a move differ.

    A connection dropped and grown again at the same place (SET) is in both masks: here it has not changed.

    Args:
        grown: `grown_keys(move)`.
    """
    common = move.new.nnz - grown.numel() + int(move.old.contains(grown).sum())
    return Change(move.old.nnz - common, move.new.nnz - common, common, move.new.size)


def grown_keys(move: Move) -> Tensor:
    """Ascending positions that start anew, int64."""
    return move.new.keys[move.grown]


def fan_in(topology: Topology, geometry: Geometry | None = None) -> Tensor:
    """Connections of each output neuron, [outputs] int64.

    Args:
        topology: of the layer.
        geometry: of the layer. In a transposed convolution an output neuron is a channel with all its taps; None: every row is one.
    """
    return (topology.fan_in if geometry is None else geometry.fan_in(topology)).long()


def fan_out(topology: Topology, geometry: Geometry | None = None) -> Tensor:
    """Connections of each input neuron, [inputs] int64.

    Args:
        topology: of the layer.
        geometry: of the layer. In a convolution an input neuron is a channel with all its taps; None: every column is one.
    """
    if geometry is None:
        return topology.fan_out
    return torch.bincount(geometry.input_of_each(topology), minlength=geometry.inputs)


def dead_neurons(topology: Topology, geometry: Geometry | None = None) -> tuple[int, int]:
    """(output neurons without a connection into them, input neurons without a connection out of them).

    Neurons with no connection on one side take no part in what the network computes from its inputs (Evci et al. 2022,
    https://arxiv.org/abs/2010.03533; ablated neurons of Lasby et al. 2024, https://arxiv.org/abs/2305.02299). A row without
    connections still gives its bias. Counted layer by layer: the outputs of one are the inputs of the next.
    """
    return int((fan_in(topology, geometry) == 0).sum()), int((fan_out(topology, geometry) == 0).sum())


@dataclass(frozen=True)
class Distribution:
    """How whole numbers are spread.

    Attributes:
        quantiles: at `QUANTILES`: minimum, quarter, median, three quarters, maximum. Each is one of the numbers, no mean of two.
        width: of a bin of the histogram.
        counts: bin `i` has the numbers from `i * width` to `(i + 1) * width - 1`.
    """

    quantiles: tuple[int, ...]
    width: int
    counts: tuple[int, ...]


def distribution(numbers: Tensor) -> Distribution:
    """Of `numbers` [n], whole and at least 0, in `BINS` bins at the most; nothing at all for none."""
    if not numbers.numel():
        return Distribution((), 1, ())
    counts = torch.bincount(numbers.long().cpu())
    width = max(1, ceil(counts.numel() / BINS))
    padded = torch.nn.functional.pad(counts, (0, -counts.numel() % width))
    return Distribution(quantiles(counts), width, tuple(padded.view(-1, width).sum(1).tolist()))


def quantiles(counts: Tensor, at: Sequence[float] = QUANTILES) -> tuple[int, ...]:
    """The least number v such that a share q of all are at most v, for each q of `at`.

    Args:
        counts: [v] how often each of 0, 1, 2, ... occurs; at least one does.
    """
    below = counts.cumsum(0)
    total = int(below[-1])
    ranks = torch.tensor([max(1, ceil(share * total)) for share in at], device="cpu")
    return tuple(torch.searchsorted(below, ranks).tolist())
