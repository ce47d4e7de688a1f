"""Where do paths of three connections suggest a fourth? The scores of Cannistraci-Hebb theory, without a dense matrix.

A layer is a graph with neurons on two sides, its rows and its columns. Row r and column c, not connected, are joined by the paths
r - z2 - z1 - c over a column z2 of r and a row z1 with c. The inner neurons of all of them are the local community of r and c. A
connection of an inner neuron is internal if it leads into the community, external if it leads neither there nor to r or c.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import _core
from . import merge
from .patterns import Pattern
from .topology import Topology

RULES = {"CH3-L3p": _core.PathRule.CH3_L3p, "CH2-L3n": _core.PathRule.CH2_L3n}
"""How a candidate is scored. Zhang et al. 2025, https://arxiv.org/abs/2501.19107, appendix C.

* CH3-L3p: the sum over paths of 1 / sqrt((1 + external(z1)) (1 + external(z2))).
* CH2-L3n: the sum over inner neurons of (1 + internal) / (1 + external).
"""

SLAB_CANDIDATES = 1 << 20  # held at one time, with a score each


def check_rule(rule: str) -> None:
    """
    Raises:
        ValueError: if there is no such rule.
    """
    if rule not in RULES:
        raise ValueError(f"score is one of {', '.join(RULES)}, got {rule!r}")


def grow(kept: Topology, nnz: int, pattern: Pattern, rule: str, generator: torch.Generator | None, sampled: bool = False) -> Topology:
    """`kept` and the candidates of highest scores, `nnz` connections in all: each group of the pattern is filled to its due.

    What a group lacks after its candidates is drawn uniformly. Costs a step for each path of three, `paths(kept).sum()`; holds
    `SLAB_CANDIDATES` candidates (or those of a single row of units) and what is best so far, never rows x columns.

    Args:
        kept: what stays; its paths are counted.
        nnz: connections of the result.
        pattern: obeyed by the result. A unit of several connections has the sum of their scores.
        rule: of `RULES`, how candidates are scored. Of equal scores the earlier position wins.
        generator: CPU generator; None is torch's global one.
        sampled: draw in proportion to the scores, without repeats, instead of taking the highest.
    """
    best = Topology.from_keys(kept.shape, torch.empty(0, dtype=torch.int64, device="cpu"))
    best_scores = torch.empty(0, device="cpu")
    home, kept = kept.device, kept.to("cpu")
    for keys, scores in candidates(kept, rule, pattern.unit(kept.shape)[0]) if nnz > kept.nnz else ():
        found, scores = pattern.pooled(Topology._from_sorted_keys(kept.shape, keys), scores)
        if sampled:
            # The first to arrive, each after a time of its own with this rate, are a sample without repeats.
            scores = scores / torch.empty_like(scores).exponential_(generator=generator)
        best_scores = torch.cat([best_scores, scores])
        best = Topology._from_sorted_keys(kept.shape, torch.cat([best.keys, found.keys]))
        chosen = pattern.best(kept, nnz, best, best_scores)
        best, best_scores = best.keep(chosen), best_scores[chosen]
    return pattern.grow_scored(kept, nnz, best, best_scores, generator).to(home)


def candidates(topology: Topology, rule: str, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Every position without a connection that a path of three joins, slab by slab of rows.

    Args:
        topology: on the CPU.
        rule: of `RULES`, how candidates are scored.
        step: slabs begin at multiples of so many rows.

    Yields:
        (keys, scores): ascending int64 positions and their float32 scores, all above 0. Sums are taken in float64 and rounded once, so
        that equal paths met in another order tie.
    """
    rows, columns = topology.shape
    t_indptr = torch.empty(columns + 1, dtype=torch.int32, device="cpu")
    t_indices, permutation = torch.empty(2, topology.nnz, dtype=torch.int32, device="cpu")
    addresses = topology.indptr.data_ptr(), topology.indices.data_ptr(), t_indptr.data_ptr(), t_indices.data_ptr()
    _core.transpose(rows, columns, *addresses, permutation.data_ptr(), merge.threads_for(topology.nnz))
    work = paths(topology)
    room = torch.minimum(work, columns - topology.fan_in)
    ends = room.cumsum(0)
    start = 0
    while start < rows:
        before = int(ends[start - 1]) if start else 0
        stop = int(torch.searchsorted(ends, before + SLAB_CANDIDATES, right=True)) // step * step
        stop = min(max(stop, start + step), rows)
        slab = room[start:stop]
        starts = ends[start:stop] - slab - before
        counts = torch.empty(stop - start, dtype=torch.int32, device="cpu")
        found, scores = (torch.empty(int(slab.sum()), dtype=dtype, device="cpu") for dtype in (torch.int32, torch.float32))
        written = starts.data_ptr(), counts.data_ptr(), found.data_ptr(), scores.data_ptr()
        threads = merge.threads_for(int(work[start:stop].sum()))
        _core.score_paths(RULES[rule], rows, columns, *addresses, start, stop, *written, threads)
        row = torch.repeat_interleave(torch.arange(start, stop, device="cpu"), counts)
        at = torch.arange(row.numel(), device="cpu") + (starts - counts.cumsum(0) + counts)[row - start]
        yield row * columns + found[at], scores[at]
        start = stop


def paths(topology: Topology) -> Tensor:
    """How many walks of three connections begin at each row, [rows] int64: a bound on its candidates, and what scoring them costs.

    The sum over connections (r, z2) of the fan-ins of the rows of z2, paths that end where r is connected included.
    """
    arrivals = torch.zeros(topology.shape[1], dtype=torch.int64, device=topology.device)
    arrivals.index_add_(0, topology.indices, topology.fan_in.long()[topology.rows])
    sums = torch.zeros(topology.nnz + 1, dtype=torch.int64, device=topology.device)
    torch.cumsum(arrivals[topology.indices], 0, out=sums[1:])
    return sums[topology.indptr].diff()
