"""How does one layer take a new topology, and its optimizer with it? Nowhere else does a topology change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from ..nn import TopologyLayer
from ..nn.quantized import refuse_quantized
from ..topology import Move, Topology
from .optimizers import StateEntry, following


@torch.no_grad()
def rewire(layer: TopologyLayer, optimizer: Optimizer | Any | None, new: Topology | Move) -> Move:
    """Give `layer` a new topology: values, gradient and all optimizer state follow their connections.

    Grown connections start at zero (or at the values the `Move` names) with the state of a parameter never stepped; copies of the weights
    that an optimizer keeps have them at their value.

    Args:
        layer: a sparse or masked layer.
        optimizer: any optimizer whose state tensors have the parameter's shape, or what wraps one; None if there is none.
        new: the topology, or a `Move` from the layer's present topology to it.

    Returns:
        The move that was made.

    Raises:
        ValueError: if the new topology has another shape, breaks the layer's pattern, or does not start at the layer's own.
        TypeError: if the optimizer keeps state that cannot follow. Nothing has changed then.
    """
    move = move_of(layer, new)
    check_move(layer, move)
    apply(layer, move, following(layer, optimizer))
    layer.changed_alone += optimizer is None
    return move


def move_of(layer: TopologyLayer, new: Topology | Move) -> Move:
    return new if isinstance(new, Move) else Move.between(layer.topology, new)


def check_move(layer: TopologyLayer, move: Move) -> None:
    refuse_quantized({type(layer).__name__: layer})
    if move.old is not layer.topology and not move.old.equal(layer.topology):
        raise ValueError("the move does not start at the layer's present topology: make it with Move.between(layer.topology, new)")
    if move.new.shape != layer.topology.shape:
        raise ValueError(f"expected a topology of shape {layer.topology.shape}, got {move.new.shape}")
    layer.pattern.check(move.new)
    if move.grown_values is not None and move.grown_values.shape != (grown := int(move.grown.sum()),):
        raise ValueError(f"expected {grown} values, one for each grown connection, got shape {tuple(move.grown_values.shape)}")
    if move.acting is not None and (move.acting.shape != (move.new.nnz,) or move.acting.dtype != torch.bool):
        raise ValueError(
            f"acting must be bool, one for each of {move.new.nnz} connections, got {move.acting.dtype} {tuple(move.acting.shape)}"
        )


def apply(layer: TopologyLayer, move: Move, entries: Sequence[StateEntry]) -> None:
    """Make a checked move: `entries` are what `following` found."""
    # Everything is computed before anything is put in place: running out of memory here loses nothing.
    gradient = layer.parameter.grad
    gradient = None if gradient is None else layer.moved(move, gradient)
    moved = [layer.moved(move, entry.state[entry.name], entry.fill) for entry in entries]
    layer.install(move)
    layer.parameter.grad = gradient
    for entry, tensor in zip(entries, moved, strict=True):
        entry.put(layer, move, tensor)
