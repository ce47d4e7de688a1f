"""Which tensors of a graph are written in place while something else reads them? Nothing is known of those."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._ops import OpOverload
from torch.nn.modules import activation

from .heads import PRODUCTS, SOFTMAX
from .layers import LAYERS
from .operations import JOINS, NORMS, POOLS

# What makes a tensor of its own. Anything else may hand on the memory of what it reads.
_NEW: set[Any] = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.pow, torch.mean, torch.where, F.pad, *JOINS),
    *("add", "sub", "mul", "div", "neg", "pow", "mean", "clone", "where"),
    *(F.scaled_dot_product_attention, *PRODUCTS, *SOFTMAX),
}
_NEW_MODULES = (
    *LAYERS,
    *NORMS,
    *POOLS,
    nn.Embedding,
    nn.LayerNorm,
    nn.GroupNorm,
    *(getattr(activation, name) for name in activation.__all__),
)
_IN_PLACE = {operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ipow, operator.ifloordiv, operator.imod}


def written_while_read(module: fx.GraphModule) -> set[fx.Node]:
    """Nodes whose memory an operation writes in place, where more than one node may read it.

    A chain in which each tensor is read by the next operation alone is not among them: there, writing in place is no different
    from making a new tensor.
    """
    memory: dict[fx.Node, set[fx.Node]] = {}  # all that may be in the memory of a node
    writers: list[fx.Node] = []
    for node in module.graph.nodes:
        memory[node] = {node}
        if node.op == "output":
            continue
        sources = node.all_input_nodes
        if _writes_in_place(module, node):
            writers.append(node)
            sources = sources if "out" in node.kwargs else sources[:1]
        elif _makes_new(module, node):
            sources = []
        for source in sources:
            memory[node] |= memory[source]
        for one in memory[node]:
            memory[one] = memory[node]
    return {node for writer in writers if not _is_chain(memory[writer]) for node in memory[writer]}


def _is_chain(nodes: set[fx.Node]) -> bool:
    """Whether every node but the last is read by one node only."""
    last = [node for node in nodes if not nodes.intersection(node.users)]
    return len(last) == 1 and all(len(node.users) == 1 for node in nodes if node is not last[0])


def _writes_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    if isinstance(node.target, OpOverload):
        return node.target._schema.is_mutable
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    named = name.endswith("_") and not name.endswith("__")
    return named or node.target in _IN_PLACE or bool(node.kwargs.get("inplace")) or "out" in node.kwargs


def _makes_new(module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(module.get_submodule(str(node.target))) in _NEW_MODULES
    return node.target in _NEW
