"""What may a state give to a sparse layer? A topology with one value a connection, as one layer once held them together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..topology import Topology
from ..topology.identity import is_fingerprint
from .base import TopologyLayer

ARRAYS = ("indptr", "indices", "values")


def stated_topology(layer: TopologyLayer, state: Mapping[str, Any], prefix: str, device: torch.device | None) -> Topology:
    """The topology that a state holds for `layer`, in arrays of its own, after everything the state says was held against it.

    Args:
        layer: the geometry and the pattern to obey.
        state: with all of `ARRAYS` under their names behind `prefix`; "acting" and "fingerprint" may be there.
        device: of the topology; None is that of the state.

    Raises:
        ValueError, TypeError: if it is no topology of this layer, or not the one that was saved.
    """
    arrays: list[Tensor] = [state[prefix + name] for name in ARRAYS]
    if any(array.is_meta for array in arrays):
        raise ValueError("the state is on the meta device, which holds no numbers: load one with real arrays")
    indptr, indices = (array.to(device, copy=True) for array in arrays[:2])
    topology, values = Topology(layer.geometry.shape, indptr, indices), arrays[2]
    layer.pattern.check(topology)
    if values.shape != (topology.nnz,):
        raise ValueError(f"expected {topology.nnz} values, one for each connection, got shape {tuple(values.shape)}")
    acting = state.get(prefix + "acting")
    if acting is not None and (acting.shape != values.shape or acting.dtype != torch.bool):
        raise ValueError(f"acting must be bool, one for each of {topology.nnz} connections, got {acting.dtype} {tuple(acting.shape)}")
    saved = state.get(prefix + "fingerprint")
    if saved is not None and (saved.numel() != 1 or not is_fingerprint(saved, indptr, indices)):
        raise ValueError(
            "the topology is not the one that was saved with these values: entries were averaged or exchanged one by one. Averages need "
            "one topology in all models, and leave indptr, indices and fingerprint as they are; over rewirings use ts.stability.Average"
        )
    return topology
