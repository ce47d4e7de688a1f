"""May this algorithm evolve this model, with this optimizer, in these processes? What a `Rewirer` refuses when it is made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import distributed
from torch.optim import Optimizer

from ..algorithms import Algorithm, AnyAlgorithm, NetworkAlgorithm
from ..nn import TopologyLayer
from ..topology.patterns import Pattern
from ..topology.schedules import Periodic


def check_algorithm(algorithm: object) -> None:
    """
    Raises:
        TypeError: if it is none.
    """
    if isinstance(algorithm, type) or not isinstance(algorithm, (Algorithm, NetworkAlgorithm)):
        raise TypeError(
            f"expected an algorithm, an object with update(topology, signals) or update_network(layers, memory), got {algorithm!r}"
        )


def check_schedule(algorithm: AnyAlgorithm, schedule: Periodic) -> None:
    """
    Raises:
        ValueError: if nothing would ever be rewired, or trained, or the aim of the algorithm never be reached.
    """
    if getattr(algorithm, "rewires", True):
        schedule.check_acts(getattr(algorithm, "replaces_step", False))
    if getattr(algorithm, "needs_end", False) and schedule.until is None:
        raise ValueError(f"{algorithm} reaches its aim at the last rewiring: pass until=, more than every={schedule.every} steps, got None")


def check_patterns(layers: Mapping[str, TopologyLayer], algorithm: AnyAlgorithm) -> None:
    """
    Raises:
        ValueError: if the algorithm cannot keep the pattern of a layer.
    """
    check: Callable[[Pattern], None] = getattr(algorithm, "check_pattern", lambda pattern: None)
    for name, layer in layers.items():
        try:
            check(layer.pattern)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error


def held_layers(layers: Mapping[str, TopologyLayer], optimizer: Optimizer) -> dict[str, TopologyLayer]:
    """Those whose parameter the optimizer holds."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return {name: layer for name, layer in layers.items() if id(layer.parameter) in held}


def check_held(layers: Mapping[str, TopologyLayer], optimizer: Optimizer) -> None:
    """Name the layers whose parameter the optimizer does not hold, but for frozen ones: they stay as they are until it does.

    Raises:
        ValueError: if it holds none.
    """
    if not layers:
        raise ValueError("the model has no sparse layer: call truesparse.sparsify(model) first")
    held = held_layers(layers, optimizer)
    if not held:
        raise ValueError(
            f"the optimizer does not hold the parameters of {', '.join(map(repr, layers))}: build it from model.parameters() after sparsify"
        )
    missing = ", ".join(repr(name) for name, layer in layers.items() if name not in held and layer.parameter.requires_grad)
    if missing:
        warnings.warn(
            f"the optimizer does not hold the parameters of {missing}: they are neither trained nor rewired. Build it from "
            "model.parameters() after sparsify, or freeze them with requires_grad_(False)",
            stacklevel=3,
        )


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
