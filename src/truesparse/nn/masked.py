"""What do all others do? A dense weight and a 0/1 mask: no memory saved, no time saved.

The masked twins exist as the oracle of the tests and the baseline of the benchmarks: same interface, same topology and
same values from the same generator as the sparse layers, and plain dense PyTorch inside.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..topology import Move, Topology
from ..topology.identity import state_of
from .base import Magnitudes, TopologyLayer
from .conv import ConvolutionInterface
from .linear import LinearInterface
from .transposed import TransposedInterface


class MaskedLayer(TopologyLayer):
    """A dense layer whose weight is multiplied by a mask: simulated sparsity.

    Attributes:
        weight: `nn.Parameter`, shaped as in the dense layer; zero where there is no connection.
        mask: bool buffer of the same shape.
    """

    weight: nn.Parameter
    mask: Tensor

    def _hold(self, topology: Topology, values: Tensor) -> None:
        self.weight = nn.Parameter(topology.scatter(values).view(self.geometry.weight_shape))
        self._set_topology(topology)

    def _set_topology(self, topology: Topology) -> None:
        self.register_buffer("mask", topology.mask().view(self.geometry.weight_shape))
        self._topology = topology
        self._topology_mask, self._seen = self.mask, state_of(self.mask)

    @property
    def topology(self) -> Topology:
        """Which connections exist."""
        seen = state_of(self.mask)
        if self._topology_mask is not self.mask or self._seen != seen:
            self._topology, self._topology_mask, self._seen = Topology.from_mask(self.mask), self.mask, seen
        return self._topology

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight" and isinstance(value, nn.Parameter) and "mask" in self._buffers:
            _check_masked(value, self.mask)
        super().__setattr__(name, value)

    @property
    def parameter(self) -> nn.Parameter:
        return self.weight

    @property
    def values(self) -> Tensor:
        """The weights of the connections, [nnz]. Differentiable; the parameter is `weight`."""
        return self.of_connections(self.weight)

    def plan_nbytes(self) -> int:
        return 0

    @property
    def kernel(self) -> str:
        """Which kernel runs this layer: always dense PyTorch."""
        return "dense + mask"

    def forward(self, input: Tensor) -> Tensor:
        """
        Raises:
            ValueError: if the shape of `input` does not fit.
        """
        x = self._prepared(input)
        self.geometry.check_input(x)
        device = x.device.type
        self.met_float16 |= torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        weight = self._weight_of_connections()
        output = self.geometry.dense(x, weight, self.bias)
        bounds: list[Magnitudes] = []
        if self._gradient_hooks and weight.requires_grad:
            # The magnitudes that the sparse twin has of its gradient, for algorithms that draw by them.
            flat = self._flat(x.detach())
            output.register_hook(lambda dy: bounds.append(self.gradient_bounds([(self._flat(dy.detach()), flat)])))
        self._heard(weight, bounds)
        return output

    def to_dense(self) -> Tensor:
        return self._heard(self._weight_of_connections())

    def _weight_of_connections(self) -> Tensor:
        return self._acting(self.weight * self.mask)

    def of_connections(self, array: Tensor) -> Tensor:
        return array.flatten()[self.topology.keys]

    def spread(self, array: Tensor) -> Tensor:
        return self.topology.scatter(array).view_as(self.weight)

    def moved(self, move: Move, array: Tensor, fill: float = 0.0) -> Tensor:
        moved = torch.zeros_like(array).flatten()
        survivors, grown = move.new.keys[~move.grown], move.new.keys[move.grown]
        moved[survivors] = array.flatten()[survivors]
        moved[grown] = fill
        return moved.view_as(array)

    def install(self, move: Move) -> None:
        weight = self.moved(move, self.weight.detach())
        if move.grown_values is not None:
            weight.view(-1)[move.new.keys[move.grown]] = move.grown_values.to(weight)
        self.weight.data = weight
        torch.autograd.graph.increment_version(self.weight)
        self._set_topology(move.new)
        self._install_acting(move)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        before = None if self.mask.is_meta else self.topology
        if prefix + "weight" in state_dict:
            self._expect_acting(state_dict, prefix)
            mask = state_dict.get(prefix + "mask")
            if local_metadata.get("assign_to_params_buffers", False) and mask is not None and mask.shape == self.mask.shape:
                self.mask = mask  # a weight is assigned before its mask otherwise
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        self.changed_alone += before is None or not (self.mask.is_meta or before.equal(self.topology))


def _check_masked(weight: Tensor, mask: Tensor) -> None:
    if weight.shape != mask.shape:
        raise ValueError(f"expected a weight of shape {tuple(mask.shape)}, that of the mask, got {tuple(weight.shape)}")
    if not (weight.is_meta or mask.is_meta) and bool(weight.detach()[~mask].any()):
        raise ValueError(
            "expected a weight that is zero where the mask is False, as each rewiring makes it: assign nn.Parameter(weight * layer.mask); "
            "a weight that is tied to another module's stays dense with sparsify(..., exclude=...)"
        )


class MaskedLinear(LinearInterface, MaskedLayer):
    """`nn.Linear` with a masked weight: the simulated twin of `SparseLinear`, same arguments."""

    def lookup(self, rows: Tensor) -> Tensor:
        return F.embedding(rows, self.to_dense())


class MaskedConv1d(ConvolutionInterface, MaskedLayer):
    """`nn.Conv1d` with a masked weight: the simulated twin of `SparseConv1d`, same arguments."""

    stands_for = nn.Conv1d


class MaskedConv2d(ConvolutionInterface, MaskedLayer):
    """`nn.Conv2d` with a masked weight: the simulated twin of `SparseConv2d`, same arguments."""

    stands_for = nn.Conv2d


class MaskedConv3d(ConvolutionInterface, MaskedLayer):
    """`nn.Conv3d` with a masked weight: the simulated twin of `SparseConv3d`, same arguments."""

    stands_for = nn.Conv3d


class MaskedConvTranspose1d(TransposedInterface, MaskedLayer):
    """`nn.ConvTranspose1d` with a masked weight: the simulated twin of `SparseConvTranspose1d`, same arguments."""

    stands_for = nn.ConvTranspose1d


class MaskedConvTranspose2d(TransposedInterface, MaskedLayer):
    """`nn.ConvTranspose2d` with a masked weight: the simulated twin of `SparseConvTranspose2d`, same arguments."""

    stands_for = nn.ConvTranspose2d


class MaskedConvTranspose3d(TransposedInterface, MaskedLayer):
    """`nn.ConvTranspose3d` with a masked weight: the simulated twin of `SparseConvTranspose3d`, same arguments."""

    stands_for = nn.ConvTranspose3d
