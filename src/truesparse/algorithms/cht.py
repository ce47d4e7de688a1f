"""CHT: drop the smallest weights, grow by paths of three. Zhang et al. 2024, https://openreview.net/forum?id=iayEcORsGd"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..topology import Topology
from ..topology.paths import grow
from ..topology.percolation import check_chain, percolated
from .base import Memory, Signals, check_fraction, register


@register
class CHT:
    """Cannistraci-Hebb training: no gradient, where a connection grows is decided by the shape of the network alone.

    All layers drop; neurons left without inputs or outputs are removed along the chain of layers; then each layer grows what it lost
    where the CH3-L3p score of what is left is highest, and at random if too few positions have one. A connection that is dropped and
    grown again keeps its weight and its optimizer state. The paper rewires after every epoch.

    An update costs a step for each path of three connections, see `paths.paths`: quick at the sparsities the method is made for
    (98 % and more), seconds for large layers at 90 %.

    The paper leaves the last layer dense (`sparsify(..., exclude=...)`): where hubs form, classes may lose their connections. Its
    correlated initial topology (CSTI) needs the data and is not here; start from any topology. The authors' first code drops the
    smallest of each sign, grows all that tie at the threshold and loses what finds no path; its zeta decays over the training.

    Args:
        fraction: zeta, the share of the connections replaced; here it does not decay, as the paper writes (`CHTs(decay=True)` does).
        chain: which layers read one another, for the removal of neurons: see `percolation.CHAINS`.
        stop_overlap: a layer stops changing for good once this share of what it grew is what it had just dropped; 0 never stops one.
    """

    fraction: float = 0.3
    chain: str = "sequential"
    stop_overlap: float = 0.9

    each_epoch: ClassVar[bool] = True
    rewiring_ends: ClassVar[float] = 1.0
    sees_absent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_chain(self.chain)
        check_fraction("stop_overlap", self.stop_overlap)

    def update_network(self, layers: Mapping[str, Signals], memory: Memory) -> tuple[Mapping[str, Topology], Memory]:
        moving = {name: signals for name, signals in layers.items() if name not in memory}
        kept = {name: signals.topology for name, signals in layers.items()}
        for name, signals in moving.items():
            count = int(self.fraction * signals.topology.nnz)
            kept[name] = signals.pattern.drop(signals.topology, signals.values.abs(), count)
        left = percolated(kept, {name: signals.pattern for name, signals in layers.items()}, self.chain)
        new, stopped = {name: signals.topology for name, signals in layers.items()}, dict(memory)
        for name, signals in moving.items():
            new[name] = grow(left[name], signals.topology.nnz, signals.pattern, "CH3-L3p", signals.generator)
            if self.stop_overlap and _overlap(signals.topology, left[name], new[name]) >= self.stop_overlap:
                stopped[name] = 1.0
        return new, stopped


def _overlap(old: Topology, left: Topology, new: Topology) -> float:
    """Share of what grew that had been there before."""
    grown = new.nnz - left.nnz
    return (int(old.contains(new.keys).sum()) - left.nnz) / grown if grown else 0.0
