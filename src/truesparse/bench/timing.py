"""How are several ways to compute one thing compared? In turns, in one process, by medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import exp, log
from statistics import median

Call = Callable[[], object]
Medians = Mapping[str, float]  # seconds of one call, by the name of the way

LEAST_ROUNDS = 3


def elapsed(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleaved(ways: Mapping[str, Call], seconds: float, least_rounds: int = LEAST_ROUNDS, *, warm: bool = False) -> dict[str, float]:
    """Median seconds of one call of each; they take turns, so that a slow moment meets them all.

    Args:
        ways: what to call, by name. Each has been called before: nothing is warmed up here.
        seconds: how long to go on, `least_rounds` rounds at least.
        warm: call each twice in a row and count the second: the first finds the caches full of what another way left there.
    """
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least_rounds or time.perf_counter() < end:
        for name, way in ways.items():
            if warm:
                way()
            times[name].append(elapsed(way))
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
