"""How does a model become the smallest graph that computes the same? Traced, folded, pruned, fused; and what that removed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from .fold import calls_of, fold_norms, fuse_activations, fuse_pools, without_identities
from .layers import LAYERS, FusedLayer, weights_of
from .prune import prune
from .trace import Example, Leaves, trace


@dataclass(frozen=True)
class Simplified:
    """A model as a graph of few calls.

    Attributes:
        module: computes what the model computes, in eval mode, on modules of its own. Its layers with weights are those that `layers`
            names: sparse or dense ones, or a `FusedLayer` of one and what follows it.
        layers: what became of each layer, in the order of the graph.
    """

    module: fx.GraphModule
    layers: tuple[LayerChange, ...]


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer; pairs are (before, after).

    Attributes:
        name: of the module, in the model and in the graph.
        neurons: outputs, or output channels.
        inputs: features or channels that it reads.
        connections: weights that are not zero.
        norm: name of the BatchNorm that became part of it, or None.
        activation: the one that is applied with it, as torch names it, or "".
    """

    name: str
    neurons: tuple[int, int]
    inputs: tuple[int, int]
    connections: tuple[int, int]
    norm: str | None
    activation: str


def simplify(model: nn.Module, example: Example, leaves: Leaves = ()) -> Simplified:
    """`model` in eval mode with BatchNorm folded, what can never matter removed, and activations fused.

    The output is the same but for rounding.

    Args:
        model: any model, which is left as it is.
        example: its input, or a tuple of its positional inputs.
        leaves: classes of modules to keep as they are.

    Raises:
        TypeError: if the model cannot be traced; the message names the module and what to do.
    """
    traced = trace(model, example, leaves)
    folded, norms = fold_norms(without_identities(traced))
    module = fuse_pools(fuse_activations(prune(folded, example)))
    changes = []
    for name in calls_of(traced, LAYERS):
        after = module.get_submodule(name)
        layer, activation = (after.layer, repr(after.activation or "")) if isinstance(after, FusedLayer) else (after, "")
        neurons, inputs, connections = zip(_counts(traced.get_submodule(name)), _counts(layer), strict=True)
        changes.append(LayerChange(name, neurons, inputs, connections, norms.get(name), activation))
    return Simplified(module, tuple(changes))


def _counts(layer: nn.Module) -> tuple[int, int, int]:
    weights = weights_of(layer)
    return weights.geometry.shape[0], weights.inputs, weights.topology.nnz
