"""Which neurons stay in a smaller network though no connection goes into them, and why?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from .graph.channels import OUTPUT, Channels
from .graph.layers import LAYERS, weights_of
from .graph.operations import Layer, read_operations

ADDED = "what they are added to or multiplied with has connections"
HELD = "what reads them cannot take the number of their bias into its own, as a convolution that pads"
ONLY = "a layer keeps one"


@dataclass(frozen=True)
class Empty:
    """Neurons of a layer without connections.

    Attributes:
        layer: its name.
        count: how many.
        why: they stay.
    """

    layer: str
    count: int
    why: str


def empty_neurons(graph: fx.GraphModule, closed: Mapping[str, str], follow: bool) -> list[Empty]:
    """What no connection goes into in a graph of which all that can go has gone, but for what gives the outputs of the model.

    Args:
        graph: that knows its shapes.
        closed: {layer that had to stay as it was: why}.
        follow: whether heads could go though their number stands in the arguments of calls.
    """
    channels = Channels()
    operations = read_operations(graph, channels, trains=True, follow=follow)
    group, reasons = channels.groups(), channels.reasons()
    empty: dict[str, torch.Tensor] = {}
    atoms: dict[str, torch.Tensor] = {}
    for node, one in operations.items():
        if isinstance(one, Layer):
            atoms[one.name] = group[channels.axes[node].atoms]
            empty[one.name] = weights_of(graph.get_submodule(one.name), trains=True).topology.fan_in.cpu() == 0
    alive = torch.cat([atoms[name][~none] for name, none in empty.items()]) if empty else torch.empty(0, dtype=torch.int64, device="cpu")
    found: list[Empty] = []
    for name, none in empty.items():
        counts: dict[str, int] = {}
        for one in atoms[name][none].tolist():
            if (reason := reasons.get(one)) != OUTPUT:
                why = closed.get(name) or reason or (ADDED if bool((alive == one).any()) else ONLY if len(none) == 1 else HELD)
                counts[why] = counts.get(why, 0) + 1
        found += [Empty(name, count, why) for why, count in counts.items()]
    for name in (one for one in closed if one not in empty):  # with a hook
        layer = graph.get_submodule(name)
        count = int((weights_of(layer, trains=True).topology.fan_in == 0).sum()) if type(layer) in LAYERS else 0
        found += [Empty(name, count, closed[name])] * (count > 0)
    return found
