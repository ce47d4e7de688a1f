"""What does a model hold, layer by layer?"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import nn

from ..common.shown import Table
from .base import TopologyLayer
from .opened import named_once
from .wrapped import unwrapped


@dataclass(frozen=True)
class LayerSummary:
    """One layer with weights.

    Attributes:
        shape: of the dense weight.
        connections: weights that exist and act.
        sparsity: the share of the dense weight that does not.
        empty_rows: neurons (output channels) without a connection, such as those that SRigL has ablated.
        nbytes: bytes of parameters and buffers (topology or mask included), without gradients, optimizer state and plans.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    connections: int
    sparsity: float
    empty_rows: int
    pattern: str
    kernel: str
    nbytes: int


@dataclass(frozen=True)
class ModelSummary:
    """Every layer with weights; `str()` and `print` show a table."""

    layers: tuple[LayerSummary, ...]

    @property
    def connections(self) -> int:
        """Weights that exist and act in all layers."""
        return sum(layer.connections for layer in self.layers)

    @property
    def size(self) -> int:
        """Weights the dense model has in these layers."""
        return sum(prod(layer.shape) for layer in self.layers)

    @property
    def sparsity(self) -> float:
        """Share of the dense weights that does not exist."""
        return 1.0 - self.connections / self.size if self.size else 0.0

    @property
    def empty_rows(self) -> int:
        """Neurons without a connection in all layers."""
        return sum(layer.empty_rows for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters and buffers of these layers."""
        return sum(layer.nbytes for layer in self.layers)

    def table(self) -> Table:
        """A row for each layer, and the sums."""
        heads = ("layer", "kind", "shape", "connections", "sparsity", "empty rows", "pattern", "kernel", "bytes")
        counts = f"{self.connections:,}", f"{self.sparsity:.2%}", f"{self.empty_rows:,}"
        total = ("all", "", "", *counts, "", "", f"{self.nbytes:,}")
        return Table(heads, tuple(map(_cells, self.layers)), total, numeric=frozenset({3, 4, 5, 8}))

    def __str__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()


def summary(model: nn.Module) -> ModelSummary:
    """Count the connections and bytes of every layer that has weights of two or more dimensions.

    Args:
        model: dense, sparse, or both; of one that is wrapped (`torch.compile`, DDP, `AveragedModel`) the network inside is counted.
    """
    modules = named_once(unwrapped(model))
    return ModelSummary(tuple(_summarized(name, module) for name, module in modules if _has_weights(module)))


def _has_weights(module: nn.Module) -> bool:
    return isinstance(module, TopologyLayer) or any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))


def _cells(layer: LayerSummary) -> tuple[str, ...]:
    counts = f"{layer.connections:,}", f"{layer.sparsity:.2%}", f"{layer.empty_rows:,}"
    return (layer.name, layer.kind, " x ".join(map(str, layer.shape)), *counts, layer.pattern, layer.kernel, f"{layer.nbytes:,}")


def _summarized(name: str, module: nn.Module) -> LayerSummary:
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    nbytes = sum(tensor.numel() * tensor.element_size() for tensor in own)
    name, kind = name or "(model)", type(module).__name__
    if isinstance(module, TopologyLayer):
        acting, topology = module.connections, module.topology
        counts = acting, 1 - acting / topology.size if topology.size else 0.0, topology.empty_rows
        return LayerSummary(name, kind, module.geometry.weight_shape, *counts, str(module.pattern), module.kernel_or_none or "none", nbytes)
    weights = [parameter for parameter in module.parameters(recurse=False) if parameter.ndim > 1]
    shape = tuple(weights[0].shape) if len(weights) == 1 else (sum(weight.numel() for weight in weights),)
    return LayerSummary(name, kind, shape, prod(shape), 0.0, 0, "", "dense", nbytes)
