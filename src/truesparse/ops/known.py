"""Which topology is in two tensors, and which geometry in a string? Operators are given these; what is made of them is kept."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.weak import TensorWeakRef, WeakIdKeyDictionary

from ..topology import Topology, geometry
from ..topology.geometry import Geometry
from ..topology.identity import identity_of


class _Known(NamedTuple):
    indptr: TensorWeakRef
    identity: object
    topology: Topology


_known: WeakIdKeyDictionary = WeakIdKeyDictionary()


def topology_in(shape: tuple[int, int], indptr: Tensor, indices: Tensor) -> Topology:
    """The topology that the arrays hold: one object as long as they live and nothing writes into them.

    Raises:
        ValueError, TypeError: if they hold none of this shape.
    """
    known, identity = _known.get(indices), identity_of(indptr, indices)
    if known is not None and known.indptr() is indptr and known.identity == identity and known.topology.shape == shape:
        return known.topology
    # Other tensors of the same memory: what is kept for the arrays must not keep them alive.
    topology = Topology(shape, indptr.detach(), indices.detach())
    _known[indices] = _Known(TensorWeakRef(indptr), identity, topology)
    return topology


@cache
def geometry_in(text: str) -> Geometry:
    """The geometry whose `repr` this is.

    Raises:
        ValueError: if it is that of something else.
    """
    try:
        return _said(ast.parse(text, mode="eval").body)
    except (SyntaxError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"expected the repr of a geometry, such as 'Matrix(rows=4, columns=6)', got {text!r}") from error


def _said(node: ast.expr) -> Any:
    """What an expression of numbers, tuples and geometries stands for."""
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    kind = getattr(geometry, node.func.id)  # type: ignore[attr-defined]
    return kind(**{one.arg: _said(one.value) for one in node.keywords})  # type: ignore[arg-type, reportCallIssue]
