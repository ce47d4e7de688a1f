"""Of which connections is the state that an optimizer keeps? Of those that were there when it was last known to be theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..nn import TopologyLayer
from ..topology import Move, Topology
from .optimizers import following


class StateOwners:
    """Notices topologies that change alone: by `load_state_dict` of the model without the optimizer's, or `rewire` without it.

    Args:
        layers: by name.
        optimizer: whose state it is, or what wraps it.
    """

    def __init__(self, layers: Mapping[str, TopologyLayer], optimizer: Any) -> None:
        self.layers, self.optimizer = layers, optimizer
        self._owners: dict[str, Topology] = {}
        self._changed_alone: dict[str, int] = {}
        self._loaded = False
        self.update()

    def update(self) -> None:
        """The state belongs to the connections that there are now."""
        self._owners = {name: layer.topology for name, layer in self.layers.items()}
        self._changed_alone = {name: layer.changed_alone for name, layer in self.layers.items()}
        self._loaded = False

    def state_loaded(self) -> None:
        """The optimizer's own state was loaded: before or after the model's, they belong together until it steps again."""
        self._loaded = True

    def stepped(self) -> None:
        """The optimizer has stepped: a state loaded now is one of another moment than a model loaded before."""
        self._loaded = False

    def check(self) -> None:
        """
        Raises:
            RuntimeError: if the connections of a layer have changed and the optimizer's state for them has not.
        """
        for name in self._stale():
            raise RuntimeError(
                f"layer {name!r} has other connections since load_state_dict() (or rewire() without the optimizer), and the optimizer's "
                "state is of those before: load the optimizer's state_dict too, or call rewirer.follow(), which lets the state of "
                "connections that are still there go with them"
            )
        if any(layer.topology is not self._owners[name] for name, layer in self.layers.items()):
            self.update()

    def changed_alone(self) -> bool:
        """Whether a topology has changed alone since the last look: quickly told."""
        return any(layer.changed_alone != self._changed_alone[name] for name, layer in self.layers.items())

    def follow(self) -> None:
        """Let the state follow: what is kept of a connection goes with it, those that were not there start as if never stepped."""
        for name in self._stale():
            layer = self.layers[name]
            move = Move.between(self._owners[name], layer.topology)
            for entry in following(layer, self.optimizer, self._owners[name]):
                entry.put(layer, move, layer.moved(move, entry.state[entry.name], entry.fill))
        self.update()

    def _stale(self) -> list[str]:
        if self._loaded:
            return []
        return [
            name
            for name, layer in self.layers.items()
            if layer.changed_alone != self._changed_alone[name]
            and not layer.topology.equal(self._owners[name])
            and following(layer, self.optimizer, self._owners[name])
        ]
