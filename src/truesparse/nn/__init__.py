"""Modules that hold only their connections, and their masked twins."""

from .base import TopologyLayer
from .conv import SparseConv2d
from .convert import densify, sparsify, topology_layers
from .linear import SparseLinear
from .masked import MaskedConv2d, MaskedLayer, MaskedLinear
from .opened import Opened, OpenedAttention, OpenedConv1D
from .sparse import SparseLayer

__all__ = [
    "MaskedConv2d",
    "MaskedLayer",
    "MaskedLinear",
    "Opened",
    "OpenedAttention",
    "OpenedConv1D",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "TopologyLayer",
    "densify",
    "sparsify",
    "topology_layers",
]
