"""GSE: drop the smallest weights, grow the largest gradients of a small sample. Heddes et al. 2024, https://arxiv.org/abs/2401.06898"""

from __future__ import annotations

import torch
from torch import Tensor

from ..topology import Topology
from ..topology.schedules import cosine
from ..topology.select import weighted
from .base import Signals, check_at_least_zero, check_fraction, register

SAMPLINGS = ("grabo", "uniform")


@register
class GSE:
    """Guided stochastic exploration: growth by gradient at a cost linear in the connections, layer by layer.

    An update draws `subset` times as many positions as there are connections, with replacement, row and column independently. Those
    not connected are the candidates, whose gradients alone are computed; the largest grow and start at zero. Just as many of the
    smallest |w| go, and those are no candidates. Where half of the positions or more are connected, every other one is a candidate. Should
    there be too few candidates (in a row or window, under a pattern that has them), others are drawn at random.

    * "grabo" draws a row in proportion to the sum of its |dy| over the batch, a column to the sum of its |x|: their product bounds the
      gradient. In a convolution a column has the sum of its channel, where the authors' code leaves out what each offset does not see.
    * "uniform" draws all alike.

    The paper's third distribution, GraEst, sums dy and x under random signs. It is linear too, but needs inputs and output gradients
    sample by sample, which an algorithm does not see.

    The authors' code draws fresh samples for its gradients; here they are those of the last backward pass. It lets the layers of the
    network compete for connections; here each layer keeps its count.

    Args:
        fraction: alpha, the share of the connections replaced at first; it decays to 0 along a cosine.
        sampling: "grabo" or "uniform".
        subset: gamma, positions drawn for each connection.
    """

    fraction: float = 0.2
    sampling: str = "grabo"
    subset: float = 1.0

    def __post_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_at_least_zero("subset", self.subset)
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling is one of {', '.join(SAMPLINGS)}, got {self.sampling!r}")

    def update(self, topology: Topology, signals: Signals) -> Topology:
        pattern = signals.pattern
        if topology.nnz == topology.size:
            return topology
        kept = pattern.drop(topology, signals.values.abs(), int(cosine(self.fraction, signals.progress) * topology.nnz))
        if kept.nnz == topology.nnz:
            return topology
        candidates = self._candidates(topology, signals)
        scores = signals.absent.at(candidates).abs()
        return pattern.grow_scored(kept, topology.nnz, candidates, scores, signals.generator)

    def _candidates(self, topology: Topology, signals: Signals) -> Topology:
        pattern, grid = signals.pattern, signals.pattern.units(topology)
        if 2 * grid.nnz >= grid.size:
            return pattern.complement(topology)
        rows, columns = self._bounds(topology, signals)
        count = int(self.subset * grid.nnz)
        row, column = (_drawn(bounds, extent, count, signals) for bounds, extent in zip((rows, columns), grid.shape, strict=True))
        return pattern.absent_units(topology, Topology._collected(grid.shape, row, column).to(topology.device))

    def _bounds(self, topology: Topology, signals: Signals) -> tuple[Tensor | None, Tensor | None]:
        return (None, None) if self.sampling == "uniform" else signals.absent.bounds()


def _drawn(bounds: Tensor | None, extent: int, count: int, signals: Signals) -> Tensor:
    """`count` of the `extent` rows or columns of units, int32."""
    if bounds is None:
        return torch.randint(extent, (count,), generator=signals.generator, device="cpu").to(torch.int32)
    return weighted(bounds.view(extent, -1).sum(1), count, signals.generator).to(torch.int32)
