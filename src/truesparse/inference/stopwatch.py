"""How long does a layout take? On the CPU by the clock; on a GPU by its events, around replays of a graph, as packed networks may run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..common.devices import clock_of
from .captured import recorded

IN_A_GRAPH = 10  # calls: launching it takes as long as some of them

Call = Callable[[Tensor], Any]
Stopwatch = Callable[[int], float]  # the number of a round: seconds of a call there


def by_clock(call: Call, inputs: Sequence[Tensor]) -> Stopwatch:
    def seconds(turn: int) -> float:
        x = inputs[turn % len(inputs)]
        # The first call finds the caches full of what another layout left there.
        call(inputs[0] if x is not inputs[0] else inputs[-1])
        start = time.perf_counter()
        call(x)
        return time.perf_counter() - start

    return seconds


def by_events(call: Call, inputs: Sequence[Tensor]) -> Stopwatch:
    device = inputs[0].device

    def calls() -> None:
        for turn in range(IN_A_GRAPH):
            call(inputs[turn % len(inputs)])

    (graph, _), clock = recorded(calls, device), clock_of(device)

    def seconds(turn: int) -> float:
        graph.replay()  # the caches are full of what another layout left there
        first = clock.mark()
        graph.replay()
        return clock.seconds(first, clock.mark()) / IN_A_GRAPH

    return seconds


STOPWATCHES = {"cuda": by_events}  # by type of device


def stopwatch(call: Call, inputs: Sequence[Tensor]) -> Stopwatch:
    """Times calls of `call`, by the device of the inputs."""
    return STOPWATCHES.get(inputs[0].device.type, by_clock)(call, inputs)
