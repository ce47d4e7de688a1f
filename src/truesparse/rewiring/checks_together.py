"""Do the processes that train one model together begin alike, and are they about to make the same moves?"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.optim import Optimizer

from ..distributed import Processes, check_same, check_same_topologies, code_of, code_of_topology, wrapping
from ..nn import TopologyLayer
from ..topology import Move
from .checks import held_layers


def check_processes(processes: Processes, layers: Mapping[str, TopologyLayer], optimizer: Optimizer, rewirings: str) -> None:
    """Whether all processes begin alike.

    Args:
        processes: that train together.
        layers: by name.
        optimizer: that takes the steps.
        rewirings: algorithm and schedule, in words.

    Raises:
        RuntimeError: if a process has another algorithm, schedule, layer, topology or part of the optimizer's parameters than the first.
    """
    if processes.size == 1:
        return
    device = next(iter(layers.values())).parameter.device
    held = ", ".join(held_layers(layers, optimizer))
    said = {
        "another algorithm or schedule": rewirings,
        "other sparse layers": ", ".join(layers),
        "an optimizer that holds the parameters of other layers": held,
    }
    found = processes.difference([code_of(text) for text in said.values()], device)
    if found is not None:
        what, rank = [*said][found[0]], found[1]
        raise RuntimeError(
            f"process {rank} has {what} than process 0: make the same in all {processes.size} processes; "
            f"this is process {processes.rank} and has {said[what]}"
        )
    check_same_topologies(processes, {name: layer.topology for name, layer in layers.items()})


def check_whole(layers: Mapping[str, TopologyLayer], optimizer: object) -> None:
    """
    Raises:
        TypeError: if a process holds only a part of the values of a layer, or of what an optimizer keeps for them.
    """
    for name, layer in layers.items():
        if hasattr(layer.parameter, "placements"):
            raise TypeError(
                f"layer {name!r} is sharded (fully_shard, FSDP), so that no process has all of its values, by which connections are "
                "dropped: leave sparse layers whole, with DistributedDataParallel"
            )
    if Processes.of().size > 1 and any(kind.__name__ == "ZeroRedundancyOptimizer" for kind in type(optimizer).__mro__):
        raise TypeError(
            "ZeroRedundancyOptimizer deals the parameters out to the processes, so that no process can move what is kept for all "
            "connections: use the optimizer inside it, in every process"
        )


def check_generators(processes: Processes, generator: torch.Generator, device: torch.device) -> None:
    """
    Raises:
        RuntimeError: if the processes would draw other random numbers each.
    """
    if processes.difference([code_of(generator.get_state())], device):
        raise RuntimeError(
            f"the {processes.size} processes would draw other connections each: give generator= the same seed in all of them, "
            "or leave it out, for one that they share"
        )


def check_moves(processes: Processes, moves: Mapping[str, Move], generator: torch.Generator | None, rewiring: int) -> None:
    """
    Args:
        processes: that train together.
        moves: that this one is about to make, by the names of the layers.
        generator: that the random choices were drawn from.
        rewiring: its number.

    Raises:
        RuntimeError: if another process is about to make others.
    """
    if processes.size == 1 or not moves:
        return
    codes = {name: code_of(str(code_of_topology(move.new)), "" if move.acting is None else move.acting) for name, move in moves.items()}
    device = next(iter(moves.values())).new.device
    check_same(
        processes,
        codes,
        device,
        f"at rewiring {rewiring} the processes come to different topologies, so nothing was rewired: layer {{layer!r}} would have other "
        "connections in process {rank} than in process 0. Values, gradients or optimizer state have drifted apart: let "
        "DistributedDataParallel hold all parameters, step only on synchronised gradients, and load the same state in all processes",
    )
    if generator is not None:
        check_generators(processes, generator, device)


def check_not_joined(layers: Mapping[str, TopologyLayer]) -> None:
    """
    Raises:
        RuntimeError: within `DistributedDataParallel.join()`, where a process that has run out of data would not rewire.
    """
    wrapper = wrapping(layers.values())
    if wrapper is not None and wrapper._join_config.enable:
        raise RuntimeError(
            "a rewiring is due within DistributedDataParallel.join(), and processes that have run out of data would not take part: give "
            "all processes the same number of batches (DistributedSampler does) and leave join() out"
        )
