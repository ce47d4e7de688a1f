"""Modules that hold only their connections, their masked twins, and activation functions that make zeros."""

from .activations import ThresholdReLU, TopK
from .base import TopologyLayer
from .conv import SparseConv1d, SparseConv2d, SparseConv3d
from .convert import densify, sparsify, topology_layers
from .linear import SparseLinear
from .masked import (
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedConvTranspose1d,
    MaskedConvTranspose2d,
    MaskedConvTranspose3d,
    MaskedLayer,
    MaskedLinear,
)
from .opened import Opened, OpenedAttention, OpenedConv1D
from .sparse import SparseLayer
from .transposed import SparseConvTranspose1d, SparseConvTranspose2d, SparseConvTranspose3d

__all__ = [
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedConvTranspose1d",
    "MaskedConvTranspose2d",
    "MaskedConvTranspose3d",
    "MaskedLayer",
    "MaskedLinear",
    "Opened",
    "OpenedAttention",
    "OpenedConv1D",
    "SparseConv1d",
    "SparseConv2d",
    "SparseConv3d",
    "SparseConvTranspose1d",
    "SparseConvTranspose2d",
    "SparseConvTranspose3d",
    "SparseLayer",
    "SparseLinear",
    "ThresholdReLU",
    "TopK",
    "TopologyLayer",
    "densify",
    "sparsify",
    "topology_layers",
]
