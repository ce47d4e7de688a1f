"""Which sums can become part of a layer? Those that alone read what it gives, as at the end of a residual block."""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.fx.passes.shape_prop import TensorMetadata

from .alias import written_while_read
from .fold import calls_of, cleaned
from .layers import LAYERS, FusedLayer
from .trace import replaced

SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")


def fuse_sums(module: fx.GraphModule) -> fx.GraphModule:
    """A layer and the sum that alone reads it become one call of a `FusedLayer`: of its input, and of what is added.

    It stands where the sum was, when both are there. Each call of a layer is taken by itself. Tensors that broadcast stay as they are, and
    so does what something writes in place that others read.
    """
    new = replaced(module)
    written = written_while_read(new)
    for name, nodes in calls_of(new, LAYERS).items():
        for node in nodes:
            found = _sum_of(node)
            if found is None or written & {node, *node.all_input_nodes, *found}:
                continue
            layer = new.get_submodule(name)
            if not isinstance(layer, FusedLayer):
                new.set_submodule(name, FusedLayer(layer, None, adds=True))
            total, other = found
            with new.graph.inserting_before(total):
                fused = new.graph.call_module(name, (node.args[0], other))
            fused.meta = dict(total.meta)
            total.replace_all_uses_with(fused)
            new.graph.erase_node(total)
            new.graph.erase_node(node)
    return cleaned(new)


def _sum_of(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """(the sum of a tensor and another of its size, the other), if nothing else reads the tensor."""
    total = next(iter(node.users)) if len(node.users) == 1 else None
    if (
        total is None
        or total.op not in ("call_function", "call_method")
        or total.target not in SUMS
        or total.kwargs
        or len(total.args) != 2
    ):
        return None
    other = total.args[1] if total.args[0] is node else total.args[0]
    if not isinstance(other, fx.Node) or other is node:
        return None
    metas = [one.meta.get("tensor_meta") for one in (node, other, total)]
    alike = [isinstance(meta, TensorMetadata) and (meta.dtype, meta.shape) == (metas[0].dtype, metas[0].shape) for meta in metas]  # type: ignore[union-attr]
    return (total, other) if all(alike) else None
