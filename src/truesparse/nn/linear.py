"""A linear layer that has only its connections."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

import torch
from torch import Tensor, nn

from .. import ops
from ..topology.geometry import Matrix
from ..topology.patterns import Pattern
from .base import TopologyLayer
from .sparse import SparseLayer, tell_of_rows


class LinearInterface(TopologyLayer):
    """The arguments and attributes of `nn.Linear`, however the values are held."""

    stands_for = nn.Linear
    geometry: Matrix

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float = 0.9,
        pattern: Pattern | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, extent in (("in_features", in_features), ("out_features", out_features)):
            if extent < 0:
                raise ValueError(f"{name} cannot be negative, got {extent}")
        self._draw(Matrix(out_features, in_features), bias, sparsity, pattern, generator, device, dtype)

    @property
    def in_features(self) -> int:
        return self.geometry.columns

    @property
    def out_features(self) -> int:
        return self.geometry.rows

    @abstractmethod
    def lookup(self, rows: Tensor) -> Tensor:
        """These rows of the dense weight, [n, in_features], as an embedding gives them. Differentiable.

        Args:
            rows: [n] int64 or int32, any number of times each.

        Raises:
            IndexError: if there is no such row.
        """

    @staticmethod
    def geometry_of(module: nn.Linear) -> Matrix:
        """The geometry of a dense layer."""
        return Matrix(module.out_features, module.in_features)

    def dense_module(self) -> nn.Linear:
        """The `nn.Linear` that computes exactly the same."""
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        self._fill(dense)
        return dense


class SparseLinear(LinearInterface, SparseLayer):
    """`nn.Linear` that stores, trains and runs only its connections: y = x W^T + b.

    Input (..., in_features), output (..., out_features).

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether to add a bias [out_features].
        sparsity: share of the weights that do not exist, 0 to 1. `NM` patterns fix it themselves.
        pattern: which topologies are legal; None is `Unstructured()`.
        generator: CPU generator of the topology and the initial values; None is torch's global one.
        device, dtype: as in `nn.Linear`.

    Raises:
        ValueError: if the sparsity or the pattern does not fit.
    """

    def lookup(self, rows: Tensor) -> Tensor:
        return ops.lookup(self._acting(self.values), rows, self.topology, partial(tell_of_rows, self._gradient_hooks, self.values))
