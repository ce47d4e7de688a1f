"""How does a model become the smallest graph that computes the same? Traced, folded, pruned, joined, fused; and what that changed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .attention import convert_masks_once
from .example import Example
from .fold import calls_of, fold_norms, fuse_activations, fuse_pools, without_identities
from .join import join_layers
from .layers import LAYERS, PACKED, FusedLayer, weights_of
from .padding import crop_instead_of_padding, fold_padding
from .prune import prune
from .sums import fuse_sums
from .trace import Leaves, trace, whole_with_layers


@dataclass(frozen=True)
class Simplified:
    """A model as a graph of few calls.

    Attributes:
        module: computes what the model computes, in eval mode, on modules of its own. Its layers with weights are those that `layers`
            names: sparse or dense ones, or a `FusedLayer` of one and what follows it.
        layers: what became of each layer, in the order of the graph.
        whole: names of modules that were not looked into though they have layers inside: those stay as they are.
    """

    module: nn.Module
    layers: tuple[LayerChange, ...]
    whole: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerChange:
    """What became of one layer; pairs are (before, after).

    Attributes:
        name: of the module, in the model and in the graph.
        joined: names of all layers that became this one, which read the same input, this one first; or none.
        neurons: outputs, or output channels.
        inputs: features or channels that it reads.
        connections: weights that are not zero.
        norm: name of the BatchNorm that became part of it, or None.
        activation: the one that is applied with it, as torch names it, or "".
        adds: whether a sum is taken with it, before its activation.
        dense_bytes: of the dense weight and bias before, in the dtype of the network.
    """

    name: str
    joined: tuple[str, ...]
    neurons: tuple[int, int]
    inputs: tuple[int, int]
    connections: tuple[int, int]
    norm: str | None
    activation: str
    dense_bytes: int
    adds: bool = False


def simplify(model: nn.Module, example: Example, leaves: Leaves = ()) -> Simplified:
    """`model` in eval mode with BatchNorm folded, what can never matter removed, and sums and activations fused.

    The output is the same but for rounding.

    Args:
        model: any model, which is left as it is.
        example: its input, or a tuple of its positional inputs.
        leaves: classes of modules to keep as they are.

    Raises:
        TypeError: if the model cannot be traced; the message names the module and what to do.
    """
    traced = trace(model, example, leaves)
    folded, norms = fold_norms(fold_padding(without_identities(convert_masks_once(traced))))
    small, joined = join_layers(prune(folded, example), example)
    module = fuse_pools(crop_instead_of_padding(fuse_activations(fuse_sums(small))))
    others = {name for names in joined.values() for name in names[1:]}
    changes = []
    for name in calls_of(traced, LAYERS):
        if name not in others:
            before = [traced.get_submodule(one) for one in joined.get(name, (name,))]
            changes.append(change(name, before, module.get_submodule(name), joined.get(name, ()), norms.get(name)))
    return Simplified(module, tuple(changes), tuple(whole_with_layers(small, PACKED)))


def change(name: str, before: list[nn.Module], after: nn.Module, joined: tuple[str, ...] = (), norm: str | None = None) -> LayerChange:
    """What became of the layers `before`, which read the same input."""
    fused = after if isinstance(after, FusedLayer) else FusedLayer(after, None)
    old = [weights_of(one) for one in before]
    new = weights_of(fused.layer)
    return LayerChange(
        name=name,
        joined=joined,
        neurons=(sum(one.geometry.outputs for one in old), new.geometry.outputs),
        inputs=(old[0].inputs, new.inputs),
        connections=(sum(one.topology.nnz for one in old), new.topology.nnz),
        norm=norm,
        activation="" if fused.activation is None else repr(fused.activation),
        dense_bytes=sum(one.values.itemsize * (one.topology.size + (0 if one.bias is None else one.bias.numel())) for one in old),
        adds=fused.adds,
    )
