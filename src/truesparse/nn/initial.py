"""What does a layer start from? A random topology, and values scaled to each row's own connections: new ones, or a dense layer's own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..topology import Topology
from ..topology.budgets import kept
from ..topology.geometry import Geometry
from ..topology.patterns import Pattern


def random_topology(geometry: Geometry, sparsity: float, pattern: Pattern, generator: torch.Generator | None) -> Topology:
    """A random topology with the legal number of connections nearest to `sparsity`.

    Raises:
        ValueError: if the sparsity is outside [0, 1] or the pattern does not fit the shape.
    """
    if not 0.0 <= sparsity <= 1.0:
        raise ValueError(f"sparsity is the share of connections to leave out and lies in [0, 1], got {sparsity}")
    rows, columns = geometry.shape
    return pattern.random(geometry.shape, pattern.round(geometry.shape, kept(rows * columns, sparsity)), generator)


def kept_values(weight: Tensor, topology: Topology, geometry: Geometry) -> Tensor:
    """The dense layer's own values at the connections, times sqrt(columns / fan-in) of their row, [nnz].

    A row whose values are drawn alike then gives outputs of the variance that it had with all its columns. A full row stays
    bit for bit; zeros stay zeros. In a transposed convolution it is not the rows but the channels of the output that keep theirs.

    Args:
        weight: of a dense layer, [rows, ...]; the trailing dimensions flattened are the columns.
        topology: on the device of `weight`.
        geometry: of the layer.
    """
    most = topology.size // max(geometry.outputs, 1)
    scale = (most / geometry.fan_in(topology).clamp(min=1)).sqrt().to(weight)
    return weight.flatten()[topology.keys] * scale[geometry.output_of_each(topology)]


def initial_values(topology: Topology, geometry: Geometry, generator: torch.Generator | None, dtype: torch.dtype | None = None) -> Tensor:
    """Normal values of variance 2 / fan-in, where fan-in is the row's own number of connections, [nnz].

    In a transposed convolution the fan-in is that of one value of an output channel, on average: one in `stride` of its connections.

    He et al. 2015 with the fan-in of the sparse row: Evci et al. 2022, https://arxiv.org/abs/2010.03533, section 4.
    """
    values = torch.randn(topology.nnz, generator=generator, dtype=dtype, device="cpu")
    return values * (2.0 / geometry.reach(topology).clamp(min=1)).sqrt().to(values)[geometry.output_of_each(topology)]


def initial_bias(topology: Topology, geometry: Geometry, generator: torch.Generator | None, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform in +- 1 / sqrt(fan-in) as in `nn.Linear`, with the fan-in of `initial_values`; 0 where that is 0, [outputs]."""
    fan_in = geometry.reach(topology)
    uniform = torch.rand(fan_in.numel(), generator=generator, dtype=dtype, device="cpu") * 2 - 1
    return uniform * fan_in.clamp(min=1).to(uniform).rsqrt() * (fan_in > 0)
