"""How long does a change of topology take? Its parts one by one, and the search for the largest absent gradients beside a dense forward."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..algorithms import ALGORITHMS
from ..common.devices import elapsed
from ..nn import SparseLinear
from ..ops import family, verbs_for
from ..ops.plans import MatrixPlan
from ..rewiring import Rewirer, rewire
from ..runs import ConfigError
from ..topology import Move, Topology
from ..topology.geometry import Matrix
from ..topology.patterns import Unstructured
from ..topology.select import random_absent
from .document import RewireRow
from .request import Conditions
from .timing import LEAST_ROUNDS, interleaved
from .wrong import WrongResult

T = TypeVar("T")

FRACTION = 0.3  # of the connections, as RigL begins
BYTES_OF_CACHES = 256 << 20  # written before what is timed: between training steps nothing of a topology is in the caches
ROWS_CHECKED_AT_ONCE = 256
NEAR = 1e-4  # gradients this near to the smallest of those found, relative to it, may be on either side of it
EVERY = 2  # steps between whole rewirings
WHOLE_REWIRINGS = 6
SEED = 0


@dataclass(frozen=True)
class RewireCase:
    """A linear layer at `sparsity` under AdamW, on `batch` samples; with `algorithms` whose whole rewirings are timed too.

    Raises:
        ConfigError: if fewer connections are absent than are to be replaced, or there is no such algorithm.
    """

    geometry: Matrix
    sparsity: float
    batch: int
    algorithms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.algorithms if name not in ALGORITHMS]
        if unknown:
            raise ConfigError(f"--algorithm: unknown {unknown[0]!r}; known are {', '.join(ALGORITHMS)}")
        if self.sparsity < FRACTION * (1 - self.sparsity):
            raise ConfigError(f"--sparsity must leave room for {FRACTION:.0%} of the connections to grow elsewhere, got {self.sparsity}")


def measure_rewirings(cases: Sequence[RewireCase], conditions: Conditions, tell: Callable[[str], None]) -> Iterator[RewireRow]:
    """A row for each case and number of threads.

    Raises:
        WrongResult: if a topology, a moved array or a position of a large gradient is not what it should be.
    """
    before = torch.get_num_threads()
    try:
        for case in cases:
            for threads in conditions.threads:
                torch.set_num_threads(threads)
                tell(f"{case.geometry.columns} -> {case.geometry.rows} at {case.sparsity:.1%}, {threads} threads")
                yield _measured(case, threads, conditions.seconds, conditions.device)
    finally:
        torch.set_num_threads(before)


def _measured(case: RewireCase, threads: int, seconds: float, device: torch.device) -> RewireRow:
    rows, columns = case.geometry.rows, case.geometry.columns
    generator = torch.Generator().manual_seed(SEED)
    layer = SparseLinear(columns, rows, bias=False, sparsity=case.sparsity, generator=generator).to(device)
    optimizer = torch.optim.AdamW(layer.parameters())
    x, dy = (torch.randn(case.batch, width, generator=generator).to(device) for width in (columns, rows))
    caches, rounds, start = torch.zeros(BYTES_OF_CACHES // 4, device=device), list[dict[str, float]](), time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or time.perf_counter() - start < seconds:
        layer(x).backward(dy)
        optimizer.step()
        rounds.append(_one_rewiring(layer, optimizer, generator, (x, dy), lambda: caches.add_(1), check=not rounds))
    parts = {part: median(own[part] for own in rounds) for part in rounds[0]}
    search = _search_seconds(layer.topology, case.geometry, x, dy, seconds)
    return RewireRow(
        layer=f"{columns} -> {rows}",
        sparsity=layer.topology.sparsity,
        connections=layer.topology.nnz,
        batch=case.batch,
        threads=threads,
        parts=parts,
        rewiring_seconds=sum(parts.values()),
        top_gradients_seconds=search["sparse"],
        dense_forward_seconds=search["dense"],
        top_gradients_over_dense=search["sparse"] / search["dense"],
        algorithms={name: _whole_seconds(ALGORITHMS[name](), case, x, dy) for name in case.algorithms},
    )


def _whole_seconds(algorithm: Any, case: RewireCase, x: Tensor, dy: Tensor) -> float:
    """Of a rewiring by a `Rewirer`, the median over some: in place of the optimizer's step, or after it."""
    generator = torch.Generator().manual_seed(SEED)
    layer = SparseLinear(case.geometry.columns, case.geometry.rows, bias=False, sparsity=case.sparsity, generator=generator).to(x.device)
    optimizer = torch.optim.AdamW(layer.parameters())
    rewirer = Rewirer(layer, optimizer, algorithm, EVERY, EVERY * (WHOLE_REWIRINGS + 1), generator)
    times: list[float] = []
    for step in range(1, EVERY * WHOLE_REWIRINGS + 1):
        layer(x).backward(dy)

        def decide() -> None:
            if rewirer.step():
                optimizer.step()

        once = elapsed(decide, x.device)
        if step % EVERY == 0:
            times.append(once)
        optimizer.zero_grad()
    if rewirer.rewirings != WHOLE_REWIRINGS:
        raise WrongResult(f"{algorithm} rewired {rewirer.rewirings} times instead of {WHOLE_REWIRINGS}; nothing is timed")
    return median(times[1:])  # the first one pays for what is made once


def _one_rewiring(
    layer: SparseLinear,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
    sample: tuple[Tensor, Tensor],
    flush: Callable[[], object],
    check: bool,
) -> dict[str, float]:
    """Seconds of each part, `check`ed if wanted. What grows is drawn at random and not counted: RigL's search for it is timed by itself.

    "plans" of a GPU are what the first pass over `sample` (x, dy) takes longer than the second.
    """
    parts: dict[str, float] = {}
    device = layer.values.device

    def timed(part: str, call: Callable[[], T]) -> T:
        results: list[T] = []
        parts[part] = elapsed(lambda: results.append(call()), device)
        return results[0]

    old, values = layer.topology, layer.values.detach().clone()
    flush()
    survivors = timed("drop", lambda: Unstructured().drop(old, layer.values.detach().abs(), int(FRACTION * old.nnz)))
    keys = random_absent(survivors.keys, old.size, torch.tensor([old.nnz - survivors.nnz]), generator)
    flush()
    new = timed("grow", lambda: survivors.grow(keys))
    move = timed("follow", lambda: Move.between(old, new))
    timed("move", lambda: rewire(layer, optimizer, move))
    if family(device.type) == "native":
        plan = MatrixPlan(new)
        timed("plans", lambda: (plan.runs(), plan.transposed()))
    else:
        x, dy = sample
        first, second = (elapsed(lambda: layer(x).backward(dy), device) for _ in range(2))
        parts["plans"] = max(first - second, 0.0)
        optimizer.zero_grad()
    if check:
        _refuse_wrong_rewiring(old, values, survivors, keys, layer)
    return parts


def _refuse_wrong_rewiring(old: Topology, values: Tensor, survivors: Topology, keys: Tensor, layer: SparseLinear) -> None:
    stays = torch.isin(old.keys, survivors.keys)
    least, most = float(values[stays].abs().min()) if stays.any() else 0.0, float(values[~stays].abs().max()) if not stays.all() else 0.0
    if most > least or int(stays.sum()) != survivors.nnz:
        raise WrongResult("the connections dropped are not the smallest; nothing is timed")
    expected = torch.cat([survivors.keys, keys]).sort().values
    # One that was dropped and is drawn again keeps its value, as with RigL.
    place = torch.searchsorted(old.keys, expected).clamp_(max=old.nnz - 1)
    carried = torch.where(old.keys[place] == expected, values[place], 0.0)
    if not (torch.equal(layer.topology.keys, expected) and torch.equal(layer.values.detach(), carried)):
        raise WrongResult("after rewiring, connections or their values are not what they should be; nothing is timed")


def _search_seconds(topology: Topology, geometry: Matrix, x: Tensor, dy: Tensor, seconds: float) -> dict[str, float]:
    """Seconds of `top_gradients`, and of one forward of the dense layer."""
    count = int(FRACTION * topology.nnz)
    verbs, dense = verbs_for(topology, geometry, x.dtype), nn.Linear(geometry.columns, geometry.rows, bias=False, device=x.device)
    _refuse_wrong_search(topology, verbs.top_gradients([(dy, x)], topology, count), count, x, dy)
    with torch.no_grad():
        dense(x)
        return interleaved(
            {"sparse": lambda: verbs.top_gradients([(dy, x)], topology, count), "dense": lambda: dense(x)}, seconds, device=x.device
        )


def _refuse_wrong_search(topology: Topology, found: Tensor, count: int, x: Tensor, dy: Tensor) -> None:
    """No absent gradient may be larger than the smallest of those found, by more than rounding: in float64, some rows at a time."""
    chosen = Topology.from_keys(topology.shape, found)
    if chosen.nnz != count or bool(topology.contains(found).any()):
        raise WrongResult(f"{count} absent positions were wanted, {chosen.nnz} found, some of them connected or not; nothing is timed")
    smallest, largest = float("inf"), 0.0
    for start in range(0, topology.shape[0], ROWS_CHECKED_AT_ONCE):
        rows = slice(start, start + ROWS_CHECKED_AT_ONCE)
        scores = (dy[:, rows].double().T @ x.double()).abs().flatten()
        first, last = start * topology.shape[1], start * topology.shape[1] + scores.numel()
        here, taken = (keys[torch.searchsorted(keys, first) : torch.searchsorted(keys, last)] - first for keys in (found, topology.keys))
        if here.numel():
            smallest = min(smallest, float(scores[here].min()))
        scores[here] = scores[taken] = 0
        largest = max(largest, float(scores.max()))
    if largest > smallest * (1 + NEAR):
        raise WrongResult(f"the positions found miss a gradient of {largest:.3e} and hold one of {smallest:.3e}; nothing is timed")
