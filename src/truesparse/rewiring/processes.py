"""May several processes train one model with this algorithm? Only if each comes to the same topology by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import distributed

from ..algorithms import AnyAlgorithm
from ..nn import TopologyLayer


def check_processes(algorithm: AnyAlgorithm, layers: Mapping[str, TopologyLayer], generator: torch.Generator | None) -> None:
    """
    Raises:
        RuntimeError: if there are several processes, and the algorithm grows by gradients, of which each process has others; or draws from
            a generator that they do not share; or changes how many connections a layer has.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    name, processes = type(algorithm).__name__, distributed.get_world_size()
    if getattr(algorithm, "sees_absent", True):
        raise RuntimeError(
            f"{name} grows by the gradients of each process, so the topologies of {processes} processes would drift apart: training in "
            "several processes is not supported yet for it. Train in one process, or with SET(), which grows at "
            "random from a shared generator="
        )
    if not getattr(algorithm, "keeps_count", True) or not hasattr(algorithm, "update"):
        raise RuntimeError(
            f"{name} changes how many connections a layer has, which DistributedDataParallel does not follow: "
            "training in several processes is not supported yet for it. Train in one process, or with SET()"
        )
    if generator is None:
        raise RuntimeError(
            f"{processes} processes would draw other connections each: pass generator=torch.Generator().manual_seed(...), "
            "with one seed for all"
        )
    own = _fingerprint(
        [generator.get_state(), *(array for layer in layers.values() for array in (layer.topology.indptr, layer.topology.indices))]
    )
    least, most = own.clone(), own.clone()
    distributed.all_reduce(least, distributed.ReduceOp.MIN)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    if not torch.equal(least, most):
        raise RuntimeError(
            f"the {processes} processes do not begin alike: make the model and generator= from one seed in all of them, "
            "for the topologies and the random choices to be the same"
        )


def _fingerprint(arrays: list[torch.Tensor]) -> torch.Tensor:
    """A number, as int64 [1], that differs where the arrays do, but for one case in 2^40."""
    total = 0
    for array in arrays:
        flat = array.cpu().to(torch.int64).flatten()
        weights = torch.arange(1, flat.numel() + 1, dtype=torch.int64) * 2654435761 % 1099511627689
        total = (total * 1000003 + int((flat * weights % 1099511627689).sum()) + flat.numel()) % 1099511627689
    return torch.tensor([total])
