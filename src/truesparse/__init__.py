"""truesparse: sparse neural networks that are really sparse.

Stores, trains, saves and runs only the connections that exist.
"""

__version__ = "0.1.0"

import importlib
import sys
from typing import TYPE_CHECKING, Any

from torch.nn import Module

from . import ops  # operators: programs of torch.export that hold them load where this was imported
from .common.observers import observers

if TYPE_CHECKING:
    from . import algorithms, metrics, nn, stability
    from . import loggers as loggers
    from . import plot as plot
    from . import pruning as pruning
    from . import quantization as quantization
    from . import regularizers as regularizers
    from . import rewiring as rewiring
    from . import topology as topology
    from .algorithms import CHT, DSR, GMP, GSE, MEST, SET, SNFS, CHTs, DeepR, GraNet, RigL, SRigL, Static, TopKAST  # type: ignore[attr-defined]
    from .embedded import export_c
    from .export import compress, export_onnx, load, save
    from .inference import pack, pack_layers, shrink
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
        densify,
        sparsify,
    )
    from .nn.summary import summary
    from .pruning import OWL, Depth, criteria, distill, drop_blocks, from_pruned, prune, prune_blocks, reconstruct
    from .quantization import dequantize, quantize
    from .rewiring import Rewirer, rewire
    from .topology import Move, Topology
    from .topology.budgets import ER, ERK, Uniform
    from .topology.patterns import NM, Block, FanIn, Neurons, SharedFanIn, Unstructured

__all__ = [
    "CHT",
    "DSR",
    "ER",
    "ERK",
    "GMP",
    "GSE",
    "MEST",
    "NM",
    "OWL",
    "SET",
    "SNFS",
    "Block",
    "CHTs",
    "DeepR",
    "Depth",
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
    "SharedFanIn",
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
    "compress",
    "criteria",
    "densify",
    "dequantize",
    "distill",
    "drop_blocks",
    "export_c",
    "export_onnx",
    "from_pruned",
    "load",
    "metrics",
    "nn",
    "ops",
    "pack",
    "pack_layers",
    "prune",
    "prune_blocks",
    "pruning",
    "quantization",
    "quantize",
    "reconstruct",
    "regularizers",
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


observers.append(_marked_for_transformers)

# Imported when they are first used: a program that serves waits for nothing that trains, and none for what it never calls.
_PARTS: dict[str, tuple[str, ...]] = {
    "algorithms": ("CHT", "CHTs", "DSR", "DeepR", "GMP", "GSE", "GraNet", "MEST", "RigL", "SET", "SNFS", "SRigL", "Static", "TopKAST"),
    "embedded": ("export_c",),
    "export": ("compress", "export_onnx", "load", "save"),
    "inference": ("pack", "pack_layers", "shrink"),
    "nn": (
        *(
            f"{kind}{layer}"
            for kind in ("Sparse", "Masked")
            for layer in ("Linear", *(f"Conv{n}d" for n in (1, 2, 3)), *(f"ConvTranspose{n}d" for n in (1, 2, 3)))
        ),
        "densify",
        "sparsify",
    ),
    "nn.summary": ("summary",),
    "pruning": ("OWL", "Depth", "criteria", "distill", "drop_blocks", "from_pruned", "prune", "prune_blocks", "reconstruct"),
    "quantization": ("dequantize", "quantize"),
    "rewiring": ("Rewirer", "rewire"),
    "topology": ("Move", "Topology"),
    "topology.budgets": ("ER", "ERK", "Uniform"),
    "topology.patterns": ("Block", "FanIn", "NM", "Neurons", "SharedFanIn", "Unstructured"),
}
_ROOMS = ("algorithms", "loggers", "metrics", "nn", "plot", "pruning", "quantization", "regularizers", "rewiring", "stability", "topology")
_LATER = {name: part for part, names in _PARTS.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER, *_ROOMS})
