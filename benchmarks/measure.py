"""How are two ways to compute one thing compared? Interleaved, in one process, by medians, after both gave the right result."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from truesparse import _core
from truesparse.runs.machine import processor


def arguments(what: str) -> argparse.Namespace:
    """The command line that the benchmarks share."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, torch.get_num_threads()])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each line of the table")
    parser.add_argument("--isa", default="", help="force an instruction set")
    parser.add_argument("--only", default="", help="run only the lines whose name contains this")
    options = parser.parse_args()
    _core.use_isa(options.isa)
    return options


def headline() -> str:
    """The machine and the versions, so that a table can be read elsewhere."""
    return f"{processor()}, {_core.isa()}, torch {torch.__version__}, float32, {_core.threading().split(':')[0]}"


def refuse_if_wrong(name: str, actual: Tensor | None, expected: Tensor) -> None:
    """Nothing is timed that computes something else.

    Raises:
        SystemExit: if the two differ by more than rounding.
    """
    if actual is None or actual.shape != expected.shape:
        raise SystemExit(f"{name}: wrong shape; not timed")
    error, size = float((actual - expected).abs().max()), float(expected.abs().max())
    if not error <= 1e-4 * size:
        raise SystemExit(f"{name}: off by {error:.2e} in {size:.2e}; not timed")


def interleaved(ways: list[Callable[[], object]], seconds: float) -> list[float]:
    """Median time of one call of each, in microseconds; they take turns, so that a slow moment hits all of them."""
    for way in ways:
        way()
    times: list[list[float]] = [[] for _ in ways]
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[0]) < 5:
        for way, own in zip(ways, times, strict=True):
            start = time.perf_counter()
            way()
            own.append(time.perf_counter() - start)
    return [statistics.median(own) * 1e6 for own in times]


def line(name: str, threads: int, verb: str, dense: float, sparse: float) -> str:
    """One line of the table."""
    return f"{name:<44} {threads:>7} {verb:<17} {dense:>10.0f} {sparse:>10.0f} {dense / sparse:>7.2f}x"


HEADER = f"{'layer':<44} {'threads':>7} {'verb':<17} {'dense us':>10} {'sparse us':>10} {'ratio':>8}"
