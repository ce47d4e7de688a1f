"""CHTs: keep a sample of the large weights, grow a sample by paths of three. Zhang et al. 2025, https://arxiv.org/abs/2501.19107"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import ClassVar

import torch
from torch import Tensor

from ..topology import Topology
from ..topology.paths import check_rule, grow
from ..topology.percolation import check_chain, percolated
from ..topology.schedules import cosine
from ..topology.select import lowest
from .base import Memory, Signals, check_fraction, register


@register
class CHTs:
    """Cannistraci-Hebb training with the soft rule (section 3.1 of the paper): what CHT takes, this samples.

    Survivors are drawn without repeats in proportion to importance^T (equation 2), where T = delta / (1 - delta) and delta rises linearly:
    at first much is left to chance, in the end hardly anything. Neurons left without inputs or outputs are removed along the chain of
    layers. Each layer then grows what it lost, drawn without repeats in proportion to the scores of the positions, and uniformly if too
    few have one. A connection that is dropped and grown again keeps its weight and its optimizer state.

    The paper writes delta up to 0.75 in its main part and to 0.9 in its appendix, which is also what the authors published last; their
    code raises T linearly instead of delta. It rewires after every epoch, language models every 100 steps with a fraction of 0.1.
    Not here: the receptive-field initial topology (BRF), heads of attention taken one by one, and CHTss, the decay of density.

    Args:
        fraction: zeta, the share of the connections replaced.
        decay: whether it decays to 0 along a cosine, as in the authors' published commands; the paper has it constant.
        magnitude: alpha, from 1, importance is |w|, to 0, it is |w| relative to all of its row plus |w| relative to all of its column.
        delta_start, delta_end: see above, at least 0 and below 1.
        score: "CH2-L3n" as in the paper, or "CH3-L3p", that of CHT.
        chain: which layers read one another, for the removal of neurons: see `percolation.CHAINS`.
    """

    fraction: float = 0.3
    decay: bool = False
    magnitude: float = 1.0
    delta_start: float = 0.5
    delta_end: float = 0.9
    score: str = "CH2-L3n"
    chain: str = "sequential"

    each_epoch: ClassVar[bool] = True
    rewiring_ends: ClassVar[float] = 1.0
    sees_absent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_fraction("magnitude", self.magnitude)
        for name, delta in (("delta_start", self.delta_start), ("delta_end", self.delta_end)):
            if not 0.0 <= delta < 1.0:
                raise ValueError(f"{name} lies in [0, 1), got {delta}; 0.5 samples in proportion to importance, near 1 takes the largest")
        check_rule(self.score)
        check_chain(self.chain)

    def update_network(self, layers: Mapping[str, Signals], memory: Memory) -> tuple[Mapping[str, Topology], Memory]:
        kept = {name: self._survivors(signals) for name, signals in layers.items()}
        left = percolated(kept, {name: signals.pattern for name, signals in layers.items()}, self.chain)
        new = {
            name: grow(left[name], signals.topology.nnz, signals.pattern, self.score, signals.generator, sampled=True)
            for name, signals in layers.items()
        }
        return new, memory

    def _survivors(self, signals: Signals) -> Topology:
        topology, pattern = signals.topology, signals.pattern
        fraction = cosine(self.fraction, signals.progress) if self.decay else self.fraction
        delta = self.delta_start + (self.delta_end - self.delta_start) * signals.progress
        importance = pattern.pool(topology, _importance(topology, signals.values.abs(), self.magnitude))
        # As in `grow` the first to arrive are the sample; in logarithms, where high powers neither vanish nor overflow.
        times = torch.empty_like(importance, device="cpu").exponential_(generator=signals.generator).to(importance.device)
        rank = delta / (1 - delta) * importance.log() - times.log()
        count = int(fraction * topology.nnz) // prod(pattern.unit(topology.shape))
        return pattern.drop_units(topology, torch.cat([lowest(rank, count), pattern.excess(topology, rank)]))


def _importance(topology: Topology, magnitudes: Tensor, magnitude: float) -> Tensor:
    """[nnz] what equation 2 raises to a power. Equation 1: relative importance."""
    if magnitude == 1:
        return magnitudes
    relative = torch.zeros_like(magnitudes)
    for ends, count in zip((topology.rows, topology.indices), topology.shape, strict=True):
        sums = magnitudes.new_zeros(count).index_add_(0, ends, magnitudes)[ends]
        relative += torch.where(sums > 0, magnitudes / sums, 0.0)
    return magnitude * magnitudes + (1 - magnitude) * relative
