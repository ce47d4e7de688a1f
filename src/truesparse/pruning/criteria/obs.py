"""OBS: the weight goes that the others best make up for. Hassibi & Stork 1992, https://papers.nips.cc/paper/647"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from ...topology import Topology
from ...topology.patterns import Pattern
from ..base import Evidence, check_single_connections, register

AT_ONCE = 1 << 25  # entries of the inverses of the rows that are gone through together: 256 MB
DAMPENING = 0.01  # of the mean diagonal, where a Gram matrix is singular


@register
class OBS:
    """By how much the mean squared error of the layer's outputs on the data rises when a weight's turn comes, exactly.

    Weights go one after another, each time the one of least w^2 / [H^-1]_qq, with H the Gram matrix of the layer's inputs over
    what is left of its row; what is left is solved anew. Rows do not depend on one another, so the orders of all rows together are that of
    the layer. In N:M windows the order of the row decides. For small layers: the time goes as rows x columns^3 (`SparseGPT` is for others).

    Warns:
        UserWarning: of a Gram matrix that is singular, as with fewer samples than inputs, and is dampened.
    """

    needs: ClassVar[tuple[str, ...]] = ("gram",)

    def check_pattern(self, pattern: Pattern) -> None:
        check_single_connections(self, pattern)

    def scores(self, evidence: Evidence) -> Tensor:
        present = torch.ones_like(evidence.weight, dtype=torch.bool) if evidence.present is None else evidence.present
        gram = _regular(evidence)
        return torch.cat(
            [_errors(evidence.weight[rows].to(gram, copy=True), _among(gram, left).inverse(), left) for rows, left in _chunks(present)]
        )

    def mend(self, evidence: Evidence, topology: Topology) -> Tensor:
        """[rows, columns] the weights at these connections that change the outputs on the data least: of each row least squares."""
        gram = _regular(evidence)
        targets = evidence.weight.double() @ gram
        solved = [torch.linalg.solve(_among(gram, left), targets[rows] * left) for rows, left in _chunks(topology.mask().to(gram.device))]
        return torch.cat(solved).to(evidence.weight)


def _errors(weight: Tensor, inverse: Tensor, left: Tensor) -> Tensor:
    """[rows, columns] the error of each weight when its turn comes; in a row strictly ascending in the order of their going.

    What becomes cheap once another weight is gone goes right after it, so it stands just above that one.

    Args:
        weight: [rows, columns]; changed.
        inverse: [rows, columns, columns] of the Gram matrix over what is left of the row; changed.
        left: [rows, columns] bool.
    """
    rows, left, found = torch.arange(len(weight), device=weight.device), left.clone(), torch.zeros_like(weight)
    before, infinite = weight.new_zeros(len(weight)), weight.new_tensor(torch.inf)
    for _ in range(int(left.sum(1).max())):
        cost = (weight.square() / inverse.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(weight.dtype).tiny)).masked_fill(~left, torch.inf)
        least, at = cost.min(1)
        goes = least < torch.inf
        before = torch.maximum(least, before.nextafter(infinite)).where(goes, before)
        found[rows, at] = before.where(goes, found[rows, at])
        column = inverse[rows, :, at]
        scaled = column * (goes / column[rows, at].where(goes, infinite))[:, None]
        weight -= weight[rows, at][:, None] * scaled
        inverse.baddbmm_(column[:, :, None], scaled[:, None, :], alpha=-1)
        left[rows, at] = False
    return found


def _chunks(present: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(rows, what is present in them) of as many rows as are gone through together."""
    step = max(AT_ONCE // present.shape[1] ** 2, 1)
    for start in range(0, len(present), step):
        yield slice(start, start + step), present[start : start + step]


def _among(gram: Tensor, left: Tensor) -> Tensor:
    """[rows, columns, columns] the Gram matrix of what is left of each row, and that of the identity elsewhere."""
    return gram * (left[:, :, None] & left[:, None, :]) + torch.diag_embed((~left).to(gram))


def _regular(evidence: Evidence) -> Tensor:
    """The Gram matrix in float64, dampened if it is singular up to the rounding of its dtype."""
    measured = evidence["gram"]
    gram = measured.double()
    ascending = torch.linalg.eigvalsh(gram)
    if float(ascending[0]) > torch.finfo(measured.dtype).eps * len(gram) * float(ascending[-1]):
        return gram
    warnings.warn(
        f"layer {evidence.name!r}: the Gram matrix of its inputs on this data is singular, as with fewer samples than inputs: its diagonal "
        f"is raised by {DAMPENING:.0%} of its mean. More data mends it",
        stacklevel=2,
    )
    return gram + DAMPENING * (float(gram.diagonal().mean()) or 1.0) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
