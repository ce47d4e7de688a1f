"""SparseGPT: what stays makes up for what goes, column after column. Frantar & Alistarh 2023, https://arxiv.org/abs/2301.00774"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from ...topology import Topology
from ...topology.patterns import NM, FanIn, Pattern, Unstructured
from ...topology.select import highest
from ..base import Chosen, Evidence, register

Keep = Callable[[int, int, Tensor], Tensor]  # (first column, last + 1, scores [rows, columns of the span]) -> [rows, columns] bool


@register
class SparseGPT:
    """Weights go that cost least, w^2 / [H^-1]_jj, and those in later columns move so that the outputs on the data change least.

    Columns are gone through from left to right, and what goes among a block of them is decided when it is reached, from weights that have
    made up for all that went before: algorithm 1. In each block the layer loses its due share (unstructured), or each row does (fan-in);
    of an N:M pattern every window is decided when it is reached. Connections that a sparse layer lacks count as gone.

    Args:
        dampening: added to the diagonal of the Gram matrix, as a share of its mean: 1 % in the paper.
        block: columns that are decided together, and between which updates wait for one matrix product.

    Warns:
        UserWarning: if a Gram matrix is singular, so that only the dampening says how what stays is to move.
    """

    dampening: float = 0.01
    block: int = 128
    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self) -> None:
        if not self.dampening >= 0:
            raise ValueError(f"dampening is a share of the mean diagonal of the Gram matrix, 0 or more, got {self.dampening}")
        if self.block < 1:
            raise ValueError(f"a block has 1 column or more, got block={self.block}")

    def check_pattern(self, pattern: Pattern) -> None:
        if pattern.couples or not isinstance(pattern, (Unstructured, FanIn, NM)):
            raise ValueError(f"SparseGPT decides column by column: it keeps unstructured, fan-in and N:M patterns, got {pattern}")

    def scores(self, evidence: Evidence) -> Tensor:
        """w^2 / [H^-1]_jj of every weight while all others are there, equation 3 of Optimal Brain Surgeon: for layers that compete."""
        factor = inverse_factor(evidence["gram"], self.dampening)
        cost = evidence.weight.to(factor).square() / factor.square().sum(0)
        return cost * (evidence["gram"].diagonal() > 0)

    def mend(self, evidence: Evidence, topology: Topology) -> Tensor:
        """[rows, columns] the weights once these connections are what stays."""
        kept = topology.mask().to(evidence.weight.device)
        return self._swept(evidence, self.block, self.block, lambda first, last, scores: kept[:, first:last])[1]

    def choose(self, evidence: Evidence, pattern: Pattern, count: int) -> Chosen:
        """
        Raises:
            ValueError: if rows of a sparse layer have fewer connections than the pattern leaves them.
        """
        present = torch.ones_like(evidence.weight, dtype=torch.bool) if evidence.present is None else evidence.present
        if isinstance(pattern, NM):
            span = pattern.m * pattern.apart
            keep = _of_windows(pattern, present)
        else:
            span = self.block
            groups = len(present) if isinstance(pattern, FanIn) else 1
            keep = _in_proportion(evidence.name, present, groups, count // groups)
        kept, weight = self._swept(evidence, span * max(self.block // span, 1), span, keep)
        return Chosen(Topology.from_mask(kept), weight)

    def _swept(self, evidence: Evidence, block: int, span: int, keep: Keep) -> tuple[Tensor, Tensor]:
        """([rows, columns] bool what stays, [rows, columns] with which weights), `span` columns of a `block` decided at a time."""
        factor = inverse_factor(evidence["gram"], self.dampening)
        seen = (evidence["gram"].diagonal() > 0)[:, None]
        # Columns are rows here, and so next to one another in memory.
        weight = evidence.weight.T.to(factor, copy=True, memory_format=torch.contiguous_format)
        kept = torch.empty_like(weight, dtype=torch.bool)
        columns, diagonal = len(weight), factor.diagonal()[:, None]
        for start in range(0, columns, block):
            stop = min(start + block, columns)
            errors = torch.empty_like(weight[start:stop])
            for column in range(start, stop):
                if (column - start) % span == 0:
                    last = min(column + span, stop)
                    scores = (weight[column:last] / diagonal[column:last]).square_() * seen[column:last]
                    kept[column:last] = keep(column, last, scores.T).T
                error = torch.where(kept[column], 0.0, weight[column]).div_(diagonal[column])
                weight[column].mul_(kept[column])
                weight[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
                errors[column - start] = error
            weight[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
        return kept.T.contiguous(), weight.T.to(evidence.weight.dtype, memory_format=torch.contiguous_format)


def inverse_factor(gram: Tensor, dampening: float) -> Tensor:
    """The upper triangular U [columns, columns] with U^T U = H^-1, H the dampened Gram matrix; float32 (of float64: float64).

    Row j of U holds, over its diagonal, the last row of the inverse that is left once all columns before j are done: what SparseGPT needs.

    Warns:
        UserWarning: if the Gram matrix is singular: raised until it is not, if its dampening does not suffice.
    """
    # From the last column backwards H = R R^T with R upper triangular, and then U = R^-1: the inverse itself is never made.
    matrix = gram.double().flip(0, 1)
    diagonal = matrix.diagonal()
    mean = float(diagonal.mean()) or 1.0
    unseen = diagonal == 0
    diagonal.add_(unseen * mean)  # inputs that are always zero tell nothing of their weights, and disturb no others
    lower, failed = torch.linalg.cholesky_ex(matrix)
    noise = torch.finfo(gram.dtype).eps * len(gram) ** 0.5
    singular = bool(failed) or bool((lower.diagonal().square() <= noise * diagonal).any())  # what the other inputs leave unexplained
    share = dampening
    if share:
        diagonal.add_(share * mean)
        lower, failed = torch.linalg.cholesky_ex(matrix)
    while bool(failed) or (singular and not share):
        raised = max(share * 10, 1e-6)
        diagonal.add_((raised - share) * mean)
        share = raised
        lower, failed = torch.linalg.cholesky_ex(matrix)
    if singular:
        warnings.warn(
            "the inputs of a layer depend on one another on this data: their Gram matrix is singular, and dampened by "
            f"{share:.2g} of its mean diagonal. So it is after a norm without biases; otherwise pass more data than the layer has inputs",
            stacklevel=5,
        )
    inverse = torch.linalg.solve_triangular(lower, torch.eye(len(gram), dtype=lower.dtype, device=lower.device), upper=False)
    return inverse.flip(0, 1).to(torch.promote_types(gram.dtype, torch.float32))


def _of_windows(pattern: NM, present: Tensor) -> Keep:
    """The best `n` of each window, or as many as there are."""

    def keep(first: int, last: int, scores: Tensor) -> Tensor:
        there = present[:, first:last]
        # [rows, m, apart] -> windows in rows: their columns stand `apart` from one another
        windows = scores.masked_fill(~there, -torch.inf).view(-1, pattern.m, pattern.apart).transpose(1, 2)
        flat = windows.reshape(-1, pattern.m)
        chosen = highest(flat, (flat > -torch.inf).sum(1).clamp(max=pattern.n))
        return chosen.view(windows.shape).transpose(1, 2).reshape(scores.shape)

    return keep


def _in_proportion(name: str, present: Tensor, groups: int, count: int) -> Keep:
    """The best of each group, `count` of it in all, of every span in proportion to the connections that the group has there."""
    seen = present.view(groups, -1, present.shape[1]).sum(1).cumsum(1)  # [groups, columns] connections up to each column
    if int(seen[:, -1].min()) < count:
        raise ValueError(
            f"layer {name!r} has rows of {int(seen[:, -1].min())} connections, fewer than the {count} that this sparsity leaves: "
            "ask for a higher one, or exclude it"
        )
    due = (2 * count * seen + seen[:, -1:]) // (2 * seen[:, -1:]).clamp(min=1)  # rounded to the nearest

    def keep(first: int, last: int, scores: Tensor) -> Tensor:
        share = due[:, last - 1] - (due[:, first - 1] if first else 0)
        competing = scores.masked_fill(~present[:, first:last], -torch.inf).reshape(groups, -1)
        return highest(competing, share).view(scores.shape)

    return keep
