"""Layouts, a file each: `candidates` says what is worth a try for a layer. A new layout is a file and its name in `FAMILIES`."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

import torch

from ..graph.layers import Weights
from . import columns, dense, gpu, pairs, planes, rearranged, trained, windows
from .base import VALUES, Candidate, Conditions, Epilogue, Finish, Layout, TorchEpilogue, tolerance
from .columns import Columns, ColumnsCandidate
from .dense import Dense, DenseCandidate
from .gpu import TritonForm
from .pairs import Pairs, PairShape
from .planes import Planes, PlanesCandidate
from .windows import Windows, WindowsCandidate


class Family(NamedTuple):
    """What networks are packed in where kernels of one family run.

    Args:
        kinds: of layouts.
        networks: the dtypes that those may have.
        values: how connections may be held.
        epilogue: what does what follows a layer.
        tolerance: by how much of the largest result a layout may differ from dense.
    """

    kinds: tuple[ModuleType, ...]
    networks: tuple[torch.dtype, ...]
    values: Mapping[str, torch.dtype]
    epilogue: type[Epilogue]
    tolerance: Callable[[Conditions], float | None]


FAMILIES = {
    "native": Family((dense, planes, pairs, windows, columns, rearranged, trained), (torch.float32,), VALUES, Epilogue, tolerance),
    gpu.FAMILY: Family((gpu,), tuple(gpu.VALUES.values()), gpu.VALUES, TorchEpilogue, gpu.tolerance),
}


def candidates(weights: Weights, conditions: Conditions) -> list[Candidate]:
    """What is worth a try, dense first."""
    return [candidate for kind in FAMILIES[conditions.family].kinds for candidate in kind.candidates(weights, conditions)]


__all__ = [
    "FAMILIES",
    "VALUES",
    "Candidate",
    "Columns",
    "ColumnsCandidate",
    "Conditions",
    "Dense",
    "DenseCandidate",
    "Epilogue",
    "Family",
    "Finish",
    "Layout",
    "PairShape",
    "Pairs",
    "Planes",
    "PlanesCandidate",
    "TorchEpilogue",
    "TritonForm",
    "Windows",
    "WindowsCandidate",
    "candidates",
]
