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


def kept_values(weight: Tensor, topology: Topology) -> Tensor:
    """The dense layer's own values at the connections, times sqrt(columns / fan-in) of their row, [nnz].

    A row whose values are drawn alike then gives outputs of the variance that it had with all its columns. A full row stays
    bit for bit; zeros stay zeros.

    Args:
        weight: of a dense layer, [rows, ...]; the trailing dimensions flattened are the columns.
        topology: on the device of `weight`.
    """
    columns = topology.shape[1]
    scale = (columns / topology.fan_in.clamp(min=1)).sqrt().to(weight)
    return weight.flatten()[topology.keys] * scale[topology.rows]


def initial_values(topology: Topology, generator: torch.Generator | None, dtype: torch.dtype | None = None) -> Tensor:
    """Normal values of variance 2 / fan-in, where fan-in is the row's own number of connections, [nnz].

    He et al. 2015 with the fan-in of the sparse row: Evci et al. 2022, https://arxiv.org/abs/2010.03533, section 4.
    """
    values = torch.randn(topology.nnz, generator=generator, dtype=dtype)
    return values * (2.0 / topology.fan_in.clamp(min=1)).sqrt().to(values)[topology.rows]


def initial_bias(topology: Topology, generator: torch.Generator | None, dtype: torch.dtype | None = None) -> Tensor:
    """Uniform in +- 1 / sqrt(fan-in) as in `nn.Linear`, with the row's own fan-in; 0 for an empty row, [rows]."""
    fan_in = topology.fan_in
    uniform = torch.rand(fan_in.numel(), generator=generator, dtype=dtype) * 2 - 1
    return uniform * fan_in.clamp(min=1).to(uniform).rsqrt() * (fan_in > 0)
