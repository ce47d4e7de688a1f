"""May this algorithm evolve this model, with this optimizer? What a `Rewirer` refuses when it is made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

from torch.optim import Optimizer

from ..algorithms import Algorithm, AnyAlgorithm, NetworkAlgorithm
from ..nn import TopologyLayer
from ..nn.quantized import refuse_quantized
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
    refuse_quantized(layers)
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
