"""How is a trained network run as fast as this machine can? Simplified as a graph, each layer in the layout that is fastest for it."""

from .explanation import Explanation, PackedRow
from .graph.layers import FusedLayer
from .graph.simplify import LayerChange, Simplified, simplify
from .graph.trace import trace
from .packing import PackedNetwork, pack, pack_layers
from .shrink import shrink

__all__ = [
    "Explanation",
    "FusedLayer",
    "LayerChange",
    "PackedNetwork",
    "PackedRow",
    "Simplified",
    "pack",
    "pack_layers",
    "shrink",
    "simplify",
    "trace",
]
