"""Whose gradient does an operator compute? A number says it, which a graph can hold; the layer of that number hears of the gradient."""

from __future__ import annotations

from collections.abc import MutableMapping
from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from ..topology import Topology
from .autograd import CHANGED

NOBODY = 0
LAYERS = 2**32  # more than there will be; what is above counts products


class Listener(Protocol):
    """A layer, as operators know it."""

    @property
    def topology(self) -> Topology: ...

    def hear(self, dvalues: Tensor, dy: Tensor, x: Tensor, own: bool) -> None:
        """A backward pass has computed dvalues, what dy^T x is at the connections, for a gradient of the values.

        Args:
            own: the values are the layer's parameter, and not computed from it or from something else.
        """
        ...


_listeners: WeakValueDictionary[int, Listener] = WeakValueDictionary()
_numbers = count(NOBODY + 1)
_products = count(1)
_left: MutableMapping[Tensor, set[int]] = WeakIdKeyDictionary()  # indices of a topology: numbers of the layers that have had it


def numbered(layer: Listener) -> int:
    """A number that no other layer of this process has. Negative, it stands for values that were computed from the layer's own."""
    number = next(_numbers)
    _listeners[number] = layer
    return number


def of_one_product(listener: int) -> int:
    """Another number for the same listener, which no other product has.

    A compiler takes two calls with equal arguments for one. A layer that is called twice on one input has two gradients, and hears of both.
    """
    return listener if listener == NOBODY else (_number(listener) + LAYERS * next(_products)) * (1 if listener > 0 else -1)


def _number(listener: int) -> int:
    return abs(listener) % LAYERS


def leaves(number: int, topology: Topology) -> None:
    """The layer of that number takes another topology: a gradient of this one is none of its any more."""
    _left.setdefault(topology.indices, set()).add(number)


def topology_of(listener: int, indptr: Tensor, indices: Tensor) -> Topology | None:
    """That of the listener, if these are its arrays: it knows whether they still hold what was installed."""
    layer = _listeners.get(_number(listener))
    topology = None if layer is None else layer.topology
    return topology if topology is not None and topology.indptr is indptr and topology.indices is indices else None


def tell(listener: int, indices: Tensor, dvalues: Tensor, dy: Tensor, x: Tensor) -> None:
    """Let the listener hear of a gradient. Outside of a backward pass the caller gets it and no `.grad` does: nobody hears.

    Raises:
        RuntimeError: if the layer has another topology by now.
    """
    layer = _listeners.get(_number(listener))
    if layer is None or torch._C._current_graph_task_id() < 0:
        return
    if _number(listener) in _left.get(indices, ()):
        raise RuntimeError(CHANGED)
    layer.hear(dvalues, dy, x, listener > 0)
