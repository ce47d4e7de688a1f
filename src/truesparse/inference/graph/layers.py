"""What is a layer with weights, sparse or dense, to the passes over a graph? Its connections, their values and a bias."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...nn import MaskedConv2d, MaskedLinear, SparseConv2d, SparseLinear, TopologyLayer
from ...nn.conv import padding_of
from ...nn.kinds import KINDS, kind_of
from ...topology import Topology
from ...topology.geometry import Convolution, Geometry, Matrix

# Exactly these: a subclass may do something else in its forward.
LAYERS = (SparseLinear, SparseConv2d, MaskedLinear, MaskedConv2d, nn.Linear, nn.Conv2d)
# Of these the passes know nothing: each is packed by itself, as it is.
ALONE = tuple(one for kind in KINDS for one in (kind.sparse, kind.masked, kind.dense) if one not in LAYERS)
PACKED = (*LAYERS, *ALONE)


@dataclass(frozen=True)
class Weights:
    """The weights of one layer; a weight that is exactly zero is no connection.

    Args:
        geometry: the dense operation.
        topology: the weights that are not zero.
        values: [nnz].
        bias: [rows], or None.
        padding: zeros that a convolution of images adds around its input, ((top, left), (bottom, right)).
    """

    geometry: Geometry
    topology: Topology
    values: Tensor
    bias: Tensor | None
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

    @property
    def inputs(self) -> int:
        """Features or channels of the input."""
        return self.geometry.inputs

    @property
    def groups(self) -> int:
        return self.geometry.groups

    @property
    def taps(self) -> int:
        """Columns of each input channel: positions of the kernel."""
        return self.geometry.taps

    def input_of_each(self) -> Tensor:
        """Which input feature or channel each connection reads, [nnz] int64."""
        return self.geometry.input_of_each(self.topology)

    def inputs_read(self) -> Tensor:
        """Which input features or channels any connection reads, [inputs] bool, on the CPU."""
        read = torch.zeros(self.inputs, dtype=torch.bool, device="cpu")
        read[self.input_of_each().cpu()] = True
        return read

    def within(self) -> Tensor:
        """Which connections read only what is inside the input, at every output position and for every size of input, [nnz] bool."""
        if not isinstance(self.geometry, Convolution):
            return torch.ones(self.topology.nnz, dtype=torch.bool, device=self.values.device)
        g, (low, high) = self.geometry, self.padding
        taps = torch.ones(g.kernel, dtype=torch.bool, device=self.values.device)
        for axis in (0, 1):
            offset = torch.arange(g.kernel[axis], device=self.values.device) * g.dilation[axis]
            inside = (offset >= low[axis]) & (offset <= g.dilation[axis] * (g.kernel[axis] - 1) - high[axis])
            taps &= inside.view((-1, 1) if axis == 0 else (1, -1))
        return taps.flatten()[self.topology.indices.to(torch.int64) % self.taps]

    def keep(self, kept: Tensor, bias: Tensor | None) -> Weights:
        """Those of the connections where `kept` [nnz] is true, with another bias."""
        return Weights(self.geometry, self.topology.keep(kept), self.values[kept], bias, self.padding)

    def part(self, rows: Tensor, inputs: Tensor) -> Weights:
        """The weights between the `rows` and `inputs` (bool) that stay; no connection may read another input.

        Of a grouped convolution, whole groups stay.
        """
        if bool(rows.all()) and bool(inputs.all()):
            return self
        rows, inputs = rows.to(self.values.device), inputs.to(self.values.device)
        columns = inputs.view(self.groups, -1).any(0).repeat_interleave(self.taps)
        row_places, column_places = rows.cumsum(0) - 1, columns.cumsum(0) - 1
        kept = rows[self.topology.rows]
        shape = int(rows.sum()), int(columns.sum())
        keys = row_places[self.topology.rows[kept]] * shape[1] + column_places[self.topology.indices[kept]]
        geometry = _with_extents(self.geometry, shape[0], int(inputs.sum()), int(inputs.view(self.groups, -1).any(1).sum()))
        bias = None if self.bias is None else self.bias[rows]
        return Weights(geometry, Topology.from_keys(shape, keys), self.values[kept], bias, self.padding)


def weights_of(layer: nn.Module, trains: bool = False) -> Weights:
    """The weights of a layer that is one of `PACKED`.

    Args:
        trains: connections of sparse layers whose value happens to be zero, or that do not act, count too.
    """
    bias = None if layer.bias is None else layer.bias.detach()  # type: ignore[union-attr]
    if isinstance(layer, TopologyLayer):
        geometry, topology, values = layer.geometry, layer.topology, layer.acting_values.detach()
        if not trains and not bool((values != 0).all()):
            topology, values = topology.keep(values != 0), values[values != 0]
    else:
        weight: Tensor = layer.weight.detach()  # type: ignore[assignment]
        topology = Topology.from_mask(weight != 0)
        geometry, values = geometry_of(layer), weight.flatten()[topology.keys]
    if type(layer) not in (nn.Conv2d, SparseConv2d, MaskedConv2d):
        return Weights(geometry, topology, values, bias)
    (top, left), before = padding_of(layer)
    zeros = layer.padding_mode == "zeros"
    low, high = ((top + before[2], left + before[0]), (top + before[3], left + before[1])) if zeros else ((0, 0), (0, 0))
    return Weights(geometry, topology, values, bias, (low, high))


def geometry_of(layer: nn.Module) -> Geometry:
    """The dense operation of a layer that is one of `PACKED`."""
    if isinstance(layer, TopologyLayer):
        return layer.geometry
    kind = kind_of(layer)
    assert kind is not None
    return kind.sparse.geometry_of(layer)


def with_weights(layer: nn.Module, weights: Weights) -> nn.Module:
    """A layer of the same kind with other weights."""
    if isinstance(layer, TopologyLayer):
        return layer.with_connections(weights.geometry, weights.topology, weights.values, weights.bias)
    g, has_bias = weights.geometry, weights.bias is not None
    dense: nn.Module
    if isinstance(g, Convolution):
        assert isinstance(layer, nn.Conv2d)
        settings: tuple[Any, ...] = g.kernel, g.stride, layer.padding, g.dilation, g.groups, has_bias, layer.padding_mode
        dense = nn.Conv2d(g.in_channels, g.out_channels, *settings, device="meta")
    else:
        assert isinstance(g, Matrix)
        dense = nn.Linear(g.columns, g.rows, has_bias, device="meta")
    dense.weight = nn.Parameter(weights.topology.scatter(weights.values).view(g.weight_shape))
    if weights.bias is not None:
        dense.bias = nn.Parameter(weights.bias.clone())
    return dense.train(layer.training)


def with_trained_weights(layer: nn.Module, weights: Weights, rows: Tensor, inputs: Tensor) -> nn.Module:
    """The same as `with_weights` for a layer that trains on: connections that do not act keep their values, what is frozen stays so.

    Args:
        weights: of the part of the layer between `rows` and `inputs`, bool.
    """
    new = with_weights(layer, weights)
    if isinstance(layer, TopologyLayer) and isinstance(new, TopologyLayer):
        places = _places_before(layer, weights, rows, inputs)
        new.parameter.data = new.spread(layer.of_connections(layer.parameter.detach())[places])
        if layer.acting is not None:
            new.acting = new.spread(layer.of_connections(layer.acting)[places])
    before = dict(layer.named_parameters())
    for name, parameter in new.named_parameters():
        parameter.requires_grad_(name not in before or before[name].requires_grad)
    return new


def _places_before(layer: TopologyLayer, weights: Weights, rows: Tensor, inputs: Tensor) -> Tensor:
    """Where among the connections of `layer` each connection of a part of it was, [nnz] int64."""
    device, groups = weights.values.device, layer.geometry.groups
    columns = inputs.view(groups, -1).any(0).repeat_interleave(weights.taps)
    row, column = (kept.to(device).nonzero().flatten() for kept in (rows, columns))
    keys = row[weights.topology.rows] * layer.geometry.shape[1] + column[weights.topology.indices.to(torch.int64)]
    return torch.searchsorted(layer.topology.keys, keys)


class FusedLayer(nn.Module):
    """A layer followed by a sum, an activation and a max-pool, as one module: what is done in one go.

    Attributes:
        layer: one of the sparse or dense layers.
        activation: a module of torch.nn without parameters, or None.
        pool: of two by two positions, or None.
        adds: whether a call may come with something to add to what the layer gives.
    """

    def __init__(self, layer: nn.Module, activation: nn.Module | None, pool: nn.MaxPool2d | None = None, adds: bool = False) -> None:
        super().__init__()
        self.layer, self.activation, self.pool, self.adds = layer, activation, pool, adds

    def forward(self, input: Tensor, added: Tensor | None = None) -> Tensor:
        y = self.layer(input) if added is None else self.layer(input) + added
        for follower in (self.activation, self.pool):
            y = y if follower is None else follower(y)
        return y


def _with_extents(geometry: Geometry, rows: int, inputs: int, groups: int) -> Geometry:
    if isinstance(geometry, Convolution):
        return replace(geometry, in_channels=inputs, out_channels=rows, groups=groups)
    assert isinstance(geometry, Matrix)
    return replace(geometry, rows=rows, columns=inputs)
