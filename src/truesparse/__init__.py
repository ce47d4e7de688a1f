"""truesparse: sparse neural networks that are really sparse.

Stores, trains, saves and runs only the connections that exist.
"""

__version__ = "0.1.0"

import importlib
import sys
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from . import algorithms, nn, ops
from .algorithms import CHT, DSR, GMP, GSE, MEST, SET, SNFS, CHTs, DeepR, GraNet, RigL, SRigL, Static, TopKAST  # type: ignore[attr-defined]
from .nn import (
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedConvTranspose1d,
    MaskedConvTranspose2d,
    MaskedConvTranspose3d,
    MaskedLinear,
    SparseConv1d,
    SparseConv2d,
    SparseConv3d,
    SparseConvTranspose1d,
    SparseConvTranspose2d,
    SparseConvTranspose3d,
    SparseLinear,
    convert,
    densify,
    sparsify,
)
from .nn.summary import summary
from .rewiring import Rewirer, rewire
from .topology import Move, Topology
from .topology.budgets import ER, ERK, Uniform
from .topology.patterns import NM, Block, FanIn, Neurons, Unstructured

if TYPE_CHECKING:
    from . import metrics, stability
    from .export import export_onnx, load, save
    from .inference import pack, shrink

__all__ = [
    "CHT",
    "DSR",
    "ER",
    "ERK",
    "GMP",
    "GSE",
    "MEST",
    "NM",
    "SET",
    "SNFS",
    "Block",
    "CHTs",
    "DeepR",
    "FanIn",
    "GraNet",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedConvTranspose1d",
    "MaskedConvTranspose2d",
    "MaskedConvTranspose3d",
    "MaskedLinear",
    "Move",
    "Neurons",
    "Rewirer",
    "RigL",
    "SRigL",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseConvTranspose3d",
    "SparseLinear",
    "Static",
    "TopKAST",
    "Topology",
    "Uniform",
    "Unstructured",
    "algorithms",
    "densify",
    "export_onnx",
    "load",
    "metrics",
    "nn",
    "ops",
    "pack",
    "rewire",
    "save",
    "shrink",
    "sparsify",
    "stability",
    "summary",
]


def _marked_for_transformers(model: Module) -> None:
    """Its folders shall say that a model is sparse, whoever saves it; no model is one of transformers where that is not imported."""
    if "transformers.modeling_utils" in sys.modules:
        importlib.import_module(f"{__name__}.integrations.pretrained").mark(model)


convert.observers.append(_marked_for_transformers)

# Imported when they are first used: a program that trains waits for nothing that packs, writes or measures. From which part each name is,
# or None for a part itself.
_LATER = {
    **dict.fromkeys(("export_onnx", "load", "save"), "export"),
    **dict.fromkeys(("pack", "shrink"), "inference"),
    **dict.fromkeys(("loggers", "metrics", "plot", "stability")),
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    part = importlib.import_module(f"{__name__}.{_LATER[name] or name}")
    found = globals()[name] = getattr(part, name) if _LATER[name] else part
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
