"""Which layout is fastest for a layer, here? Measured at the batch that will come, or guessed by rule; what was measured is remembered."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import platformdirs
import torch
from torch import Tensor

from ..common.files import write_atomically
from .graph.layers import Weights
from .layouts import FAMILIES, Candidate, Conditions, Dense, candidates
from .stopwatch import stopwatch

SECONDS = 0.03  # of timing for each layer
LEAST_ROUNDS = 5
SEED = 0
OTHERS = 8  # inputs that take turns, where zeros matter
LEAST_GAIN = 1.1  # of dense over another layout


def by_rule(weights: Weights, conditions: Conditions) -> Candidate:
    """The candidate that should be fastest; the same on every machine."""
    return min(candidates(weights, conditions), key=lambda candidate: candidate.guess(weights, conditions))


@dataclass(frozen=True)
class Measured:
    """Seconds of one call by candidate, dense included."""

    seconds: Mapping[str, float]

    @property
    def fastest(self) -> str:
        """Dense only where it gains something: a call of torch interrupts a run of kernels, and its memory is new each time."""
        return min(self.seconds, key=lambda name: self.seconds[name] * (LEAST_GAIN if name == Dense.name else 1))


def measure(weights: Weights, relu: bool, conditions: Conditions, x: Tensor | None = None) -> Measured:
    """Median seconds of each candidate, in turns. One that computes something else than dense is no candidate.

    Args:
        x: an input that is like those that will come, where its zeros matter; None: numbers from chance.

    Raises:
        RuntimeError: if a layout is wrong, which is a fault of this library; on the CPU those of narrow values are not compared.
    """
    inputs = [_some_input(weights, conditions)] if x is None else _others_like(x)
    made = {str(one): one.make(weights, relu, conditions.values) for one in candidates(weights, conditions)}
    expected = made[Dense.name](inputs[0])
    for name, layout in made.items():
        _refuse_wrong(name, layout(inputs[0]), expected, conditions)
    watches = {name: stopwatch(layout, inputs) for name, layout in made.items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[Dense.name]) < LEAST_ROUNDS:
        for name, seconds in watches.items():
            times[name].append(seconds(len(times[name])))
    return Measured({name: median(own) for name, own in times.items()})


def refuse_wrong(candidate: Candidate, weights: Weights, relu: bool, conditions: Conditions) -> None:
    """What nobody measured is compared with dense here.

    Raises:
        RuntimeError: if it computes something else.
    """
    x = _some_input(weights, conditions)
    expected = Dense(weights, relu, conditions.finish)(x)
    _refuse_wrong(str(candidate), candidate.make(weights, relu, conditions.values)(x), expected, conditions)


def _some_input(weights: Weights, conditions: Conditions) -> Tensor:
    return torch.randn(conditions.input_shape, generator=torch.Generator().manual_seed(SEED), device="cpu").to(weights.values)


def _others_like(x: Tensor) -> list[Tensor]:
    """It, and others with as many zeros in other places: the next input will not need just what this one has left in the caches."""
    step = max(1, x.shape[-1] // OTHERS)
    return [x, *(x.roll(times * step, -1) for times in range(1, OTHERS))]


def _refuse_wrong(name: str, y: Tensor, expected: Tensor, conditions: Conditions) -> None:
    tolerance = FAMILIES[conditions.family].tolerance(conditions)
    finite = expected.isfinite()  # in 16 bits, numbers from chance may be too large
    if tolerance is None or not bool(finite.any()):
        return
    difference, largest = float((y - expected)[finite].abs().max()), max(float(expected[finite].abs().max()), 1e-30)
    if not difference <= tolerance * largest:  # nor what is no number
        raise RuntimeError(f"the layout {name} computes something else than dense; please report this")


class Memory:
    """What was measured on this machine, in a file of the user's cache folder. A file that cannot be used is as good as none.

    Args:
        path: of the file; None is the usual place.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or Path(platformdirs.user_cache_dir("truesparse")) / "layouts.json"
        self.known: dict[str, dict[str, float]] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):  # absent, or not what `keep` wrote
            found = json.loads(self.path.read_text())
            self.known = {key: {str(name): float(own) for name, own in seconds.items()} for key, seconds in found.items()}

    def recall(self, key: str) -> Measured | None:
        return Measured(self.known[key]) if key in self.known else None

    def keep(self, key: str, measured: Measured) -> None:
        self.known[key] = dict(measured.seconds)
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(self.known, indent=1))


def key_of(weights: Weights, relu: bool, conditions: Conditions, machine: Sequence[str]) -> str:
    """Names a measurement: the machine, the topology and how it will be called."""
    topology, geometry = weights.topology, weights.geometry
    arrays = (array.cpu().numpy().tobytes() for array in (topology.indptr, topology.indices))
    connections = hashlib.sha256(b"".join(arrays)).hexdigest()[:16]
    parts = (*machine, geometry, connections, weights.bias is not None, relu)
    return " | ".join(
        map(str, (*parts, conditions.input_shape, conditions.threads, conditions.values, conditions.finish, conditions.zeros))
    )
