"""Which dense layers have a sparse counterpart? The one table: whatever replaces layers, or says what one stands for, reads it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .base import TopologyLayer
from .conv import SparseConv1d, SparseConv2d, SparseConv3d
from .linear import SparseLinear
from .masked import (
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedConvTranspose1d,
    MaskedConvTranspose2d,
    MaskedConvTranspose3d,
    MaskedLinear,
)
from .transposed import SparseConvTranspose1d, SparseConvTranspose2d, SparseConvTranspose3d

Dense = nn.Linear | _ConvNd  # one of the `DENSE`, for those who read types


@dataclass(frozen=True)
class Kind:
    """A dense layer of torch and its two counterparts, which stand for it (`stands_for`)."""

    sparse: type[TopologyLayer]
    masked: type[TopologyLayer]

    @property
    def dense(self) -> type[nn.Module]:
        return self.sparse.stands_for


KINDS = (
    Kind(SparseLinear, MaskedLinear),
    Kind(SparseConv1d, MaskedConv1d),
    Kind(SparseConv2d, MaskedConv2d),
    Kind(SparseConv3d, MaskedConv3d),
    Kind(SparseConvTranspose1d, MaskedConvTranspose1d),
    Kind(SparseConvTranspose2d, MaskedConvTranspose2d),
    Kind(SparseConvTranspose3d, MaskedConvTranspose3d),
)
DENSE = tuple(kind.dense for kind in KINDS)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of a module that is one of a kind's three, or derives from one; None for any other."""
    return next((kind for kind in KINDS if isinstance(module, (kind.dense, kind.sparse, kind.masked))), None)
