"""How are several ways to compute one thing compared? In turns, in one process, by medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import ceil, exp, log
from statistics import median

import torch

from ..common.devices import CPU, clock_of, elapsed, keep_busy

Call = Callable[[], object]
Medians = Mapping[str, float]  # seconds of one call, by the name of the way

LEAST_ROUNDS = 3
SECONDS_OF_A_TURN = 2e-3
MOST_CALLS = 50
MOST_QUEUED = 20  # calls: a GPU takes about a thousand launches ahead, and then Python waits, and counts
BUSY = 1.5  # times as long as Python takes to queue the calls


def interleaved(
    ways: Mapping[str, Call], seconds: float, least_rounds: int = LEAST_ROUNDS, *, warm: bool = False, device: torch.device = CPU
) -> dict[str, float]:
    """Median seconds of one call of each; they take turns, so that a slow moment meets them all.

    On a GPU a turn is as many calls as take `SECONDS_OF_A_TURN`, one after the other and waited for together: a training loop does not
    wait either.

    Args:
        ways: what to call, by name. Each has been called before: nothing is warmed up here.
        seconds: how long to go on, `least_rounds` rounds at least.
        warm: call each twice in a row and count the second: the first finds the caches full of what another way left there.
        device: that computes.
    """
    calls = {name: calls_of_a_turn(way, device) for name, way in ways.items()}

    def taken(name: str, way: Call) -> float:
        if warm:
            way()
        return elapsed(lambda: repeat(way, calls[name]), device) / calls[name]

    return _medians(ways, seconds, least_rounds, taken)


def interleaved_on_device(ways: Mapping[str, Call], seconds: float, device: torch.device) -> dict[str, float]:
    """The same in seconds of a GPU alone: calls have been queued while it was busy with something else, so that it never waits for Python.

    This is what a call takes of a GPU that has enough to do, and what it takes where CUDA graphs call it.
    """
    calls = {name: min(calls_of_a_turn(way, device), MOST_QUEUED) for name, way in ways.items()}
    hosts = {name: elapsed(lambda way=way, name=name: repeat(way, calls[name]), device) for name, way in ways.items()}
    clock = clock_of(device)

    def taken(name: str, way: Call) -> float:
        keep_busy(device, BUSY * hosts[name])
        first = clock.mark()
        repeat(way, calls[name])
        return clock.seconds(first, clock.mark()) / calls[name]

    return _medians(ways, seconds, LEAST_ROUNDS, taken)


def calls_of_a_turn(way: Call, device: torch.device) -> int:
    """How many calls take about `SECONDS_OF_A_TURN`; on a CPU one, which has nothing queued."""
    if device.type == "cpu":
        return 1
    return min(max(ceil(SECONDS_OF_A_TURN / elapsed(way, device)), 1), MOST_CALLS)


def repeat(way: Call, count: int) -> None:
    for _ in range(count):
        way()


def _medians(ways: Mapping[str, Call], seconds: float, least_rounds: int, taken: Callable[[str, Call], float]) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least_rounds or time.perf_counter() < end:
        for name, way in ways.items():
            times[name].append(taken(name, way))
        rounds += 1
    return {name: median(own) for name, own in times.items()}


def times_as_fast(medians: Medians) -> dict[str, float]:
    """How many times as fast as "dense" each other way is."""
    return {name: medians["dense"] / own for name, own in medians.items() if name != "dense"}


def amortised(plain: float, rewiring: float, every: int) -> float:
    """Seconds of a step when one in `every` rewires: `every` - 1 plain steps and a rewiring one, shared out."""
    return ((every - 1) * plain + rewiring) / every


def break_even(points: Mapping[float, float]) -> float | None:
    """The sparsity at which a way becomes as fast as dense.

    Args:
        points: times as fast, by sparsity in [0, 1).

    Returns:
        Where the last crossing of 1 lies, the logarithm of the ratio taken as linear in that of the density between points;
        None if there is no crossing among them.
    """
    ordered = sorted(points.items())
    for (low, slow), (high, fast) in reversed(list(pairwise(ordered))):
        if slow < 1 <= fast:
            share = -log(slow) / (log(fast) - log(slow))
            return 1 - exp((1 - share) * log(1 - low) + share * log(1 - high))
    return None
