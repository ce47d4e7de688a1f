"""What does every attention of a network do again that could be done once? It turns the mask of who may look where into one to be added."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.passes.shape_prop import TensorMetadata

from .trace import replaced

MASK = "attn_mask"


def added_mask(allowed: Tensor) -> Tensor:
    """What `scaled_dot_product_attention` makes of a mask of bool: 0 where it is true, minus infinity elsewhere."""
    return torch.where(allowed, 0.0, -math.inf)


def convert_masks_once(module: fx.GraphModule) -> fx.GraphModule:
    """The same function; masks of bool that attentions have in common are turned into numbers once."""
    new = replaced(module)
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node in new.graph.nodes:
        if node.op == "call_function" and node.target is F.scaled_dot_product_attention:
            mask = node.args[3] if len(node.args) > 3 else node.kwargs.get(MASK)
            meta = mask.meta.get("tensor_meta") if isinstance(mask, fx.Node) else None
            if isinstance(mask, fx.Node) and isinstance(meta, TensorMetadata) and meta.dtype == torch.bool:
                readers.setdefault(mask, []).append(node)
    for mask, nodes in readers.items():
        with new.graph.inserting_after(mask):
            added = new.graph.call_function(added_mask, (mask,))
        for node in nodes:
            node.replace_input_with(mask, added)
    new.recompile()
    return new
