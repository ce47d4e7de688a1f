"""Which layers read the same tensor? They become one layer, whose output is cut into theirs: one call, which reads its input once."""

from __future__ import annotations

import operator

import torch
from torch import fx, nn

from ...nn import MaskedLinear, SparseLinear
from ...topology import Topology
from ...topology.geometry import Matrix
from .alias import written_while_read
from .example import Example
from .fold import ACTIVATIONS, calls_of, cleaned
from .layers import Weights, weights_of, with_weights
from .trace import module_of, replaced, with_shapes

LINEAR = (SparseLinear, MaskedLinear, nn.Linear)


def join_layers(module: fx.GraphModule, example: Example) -> tuple[fx.GraphModule, dict[str, tuple[str, ...]]]:
    """The same function, its linear layers joined where several read one tensor, as query, key and value of attention do.

    Layers that are called more than once, or whose activation can become part of them, stay.

    Returns:
        The new graph; and which layers went into each joined one, which has the name of the first of them.
    """
    readers: dict[fx.Node, list[str]] = {}
    for name, nodes in calls_of(module, LINEAR).items():
        followers = [module_of(module, user) for user in nodes[0].users]
        if len(nodes) == 1 and not (len(followers) == 1 and type(followers[0]) in ACTIVATIONS):
            readers.setdefault(nodes[0].all_input_nodes[0], []).append(name)
    groups = [tuple(names) for names in readers.values() if len(names) > 1]
    # What is cut out of a larger tensor has gaps: an operation that insists on none, or shares memory by hand, would notice.
    by_hand = any(node.target in ("as_strided", torch.as_strided) for node in module.graph.nodes)
    if not groups or by_hand or written_while_read(module):
        return module, {}
    new = replaced(module)
    for names in groups:
        _join(new, names)
    for node in new.graph.nodes:
        if node.op == "call_method" and node.target == "view" and all(not isinstance(one, torch.dtype) for one in node.args):
            node.target = "reshape"
    return with_shapes(cleaned(new), example), {names[0]: names for names in groups}


def _join(module: fx.GraphModule, names: tuple[str, ...]) -> None:
    layers = [module.get_submodule(name) for name in names]
    nodes = [next(node for node in module.graph.nodes if node.op == "call_module" and node.target == name) for name in names]
    weights = [weights_of(layer) for layer in layers]
    rows = [one.topology.shape[0] for one in weights]
    kind = next((layer for layer in layers if not isinstance(layer, nn.Linear)), layers[0])
    module.set_submodule(names[0], with_weights(kind, _stacked(weights)))
    with module.graph.inserting_before(nodes[0]):
        joined = module.graph.call_module(names[0], nodes[0].args)
        parts = module.graph.call_method("split", (joined, rows, -1))
        for number, node in enumerate(nodes):
            node.replace_all_uses_with(module.graph.call_function(operator.getitem, (parts, number)))
    for node in nodes:
        module.graph.erase_node(node)


def _stacked(weights: list[Weights]) -> Weights:
    rows, columns = [one.topology.shape[0] for one in weights], weights[0].topology.shape[1]
    starts = [sum(rows[:number]) * columns for number in range(len(rows))]
    keys = torch.cat([one.topology.keys + start for one, start in zip(weights, starts, strict=True)])
    values = torch.cat([one.values for one in weights])
    biases = [values.new_zeros(extent) if one.bias is None else one.bias for one, extent in zip(weights, rows, strict=True)]
    bias = None if all(one.bias is None for one in weights) else torch.cat(biases)
    return Weights(Matrix(sum(rows), columns), Topology.from_keys((sum(rows), columns), keys), values, bias)


def joined_name(names: tuple[str, ...]) -> str:
    """What to call a joined layer: the path of the first, and the last words of the others."""
    return " + ".join([names[0], *(name.rpartition(".")[2] for name in names[1:])])
