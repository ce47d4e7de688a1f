"""What is added to the scores of attention for each head? A table that learns, or one number everywhere; both follow the heads."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .channels import Axis, Channels, Operation, Resized
from .heads import PRODUCTS, SOFTMAX
from .layers import LAYERS
from .trace import module_of, shape_of

_FILLS = {torch.zeros: 0, torch.ones: 0, torch.full: 0, "new_zeros": 1, "new_ones": 1, "new_full": 1}


class Table(Operation):
    """An embedding with a number for each head, as the relative positions of T5.

    Attributes:
        name: of the module.
        atoms: of its columns.
    """

    def __init__(self, node: fx.Node, atoms: Tensor) -> None:
        super().__init__(node, node.all_input_nodes)
        self.name, self.atoms = str(node.target), atoms

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self | None:
        embedding, made = module_of(module, node), shape_of(node)
        if type(embedding) is not nn.Embedding or embedding.max_norm is not None or made is None:
            return None
        channels.axes[node] = Axis(len(made) - 1, channels.fresh(embedding.embedding_dim), heads=True)
        return cls(node, channels.axes[node].atoms)


class Filled(Operation):
    """One number everywhere, [..., heads, queries, keys]."""

    def __init__(self, node: fx.Node, place: int, atoms: Tensor) -> None:
        super().__init__(node, node.all_input_nodes)
        self.place, self.atoms = place, atoms

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self | None:
        made = shape_of(node)
        if node.target not in _FILLS or made is None or len(made) < 3:
            return None
        place, sizes = len(made) - 3, _sizes(node)
        if len(sizes) != len(made) or type(sizes[place]) is not int or sizes[place] == 1:
            return None
        channels.axes[node] = Axis(place, channels.fresh(made[place]), heads=True)
        return cls(node, place, channels.axes[node].atoms)

    def follows(self) -> list[Resized]:
        return [Resized(self.atoms, len(self.atoms), 1)]

    def rewire(self, node: fx.Node, kept: Tensor) -> None:
        first, sizes = _FILLS[node.target], _sizes(node)  # type: ignore[index]
        sizes[self.place] = int(kept[self.atoms].sum())
        node.args = (*node.args[:first], sizes, *node.args[first + 1 :])


def biases(module: fx.GraphModule) -> dict[fx.Node, type[Table] | type[Filled]]:
    """The calls that make such numbers: what goes into the scores of attention, but not through layers."""
    found: dict[fx.Node, type[Table] | type[Filled]] = {}
    seen: set[fx.Node] = set()
    waiting = [one for node in module.graph.nodes for one in _added(module, node)]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if type(called) is nn.Embedding:
            found[node] = Table
        elif node.target in _FILLS:
            found[node] = Filled
        elif type(called) not in LAYERS and node.target not in (*PRODUCTS, F.scaled_dot_product_attention):
            waiting += node.all_input_nodes
    return found


def with_weight(table: nn.Embedding, weight: nn.Parameter) -> nn.Embedding:
    """The same embedding, but for its weight."""
    rows, columns = weight.shape
    new = nn.Embedding(rows, columns, table.padding_idx, None, 2.0, table.scale_grad_by_freq, table.sparse, device="meta")
    new.weight = weight
    return new.train(table.training)


def _added(module: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    if node.target is F.scaled_dot_product_attention:
        mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
        return [mask] if isinstance(mask, fx.Node) else []
    return node.all_input_nodes if node.target in SOFTMAX or isinstance(module_of(module, node), nn.Softmax) else []


def _sizes(node: fx.Node) -> list[Any]:
    given = node.args[_FILLS[node.target]] if len(node.args) > _FILLS[node.target] else None  # type: ignore[index]
    return list(given) if isinstance(given, (tuple, list)) else []
