"""Layouts, a file each: `candidates` says what is worth a try for a layer. A new layout is a file and a name in `KINDS`."""

from ..graph.layers import Weights
from . import columns, dense, pairs, planes, rearranged, trained, windows
from .base import VALUES, Candidate, Conditions, Epilogue, Finish, Layout
from .columns import Columns, ColumnsCandidate
from .dense import Dense, DenseCandidate
from .pairs import Pairs, PairShape
from .planes import Planes, PlanesCandidate
from .windows import Windows, WindowsCandidate

KINDS = dense, planes, pairs, windows, columns, rearranged, trained


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """What is worth a try, dense first."""
    return [candidate for kind in KINDS for candidate in kind.candidates(weights, conditions)]


__all__ = [
    "VALUES",
    "Candidate",
    "Columns",
    "ColumnsCandidate",
    "Conditions",
    "Dense",
    "DenseCandidate",
    "Epilogue",
    "Finish",
    "Layout",
    "PairShape",
    "Pairs",
    "Planes",
    "PlanesCandidate",
    "Windows",
    "WindowsCandidate",
    "candidates",
]
