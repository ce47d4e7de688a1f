"""Does an algorithm keep the contract?

from truesparse.testing import check_algorithm
check_algorithm(MyAlgorithm())
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..algorithms import AnyAlgorithm, NetworkAlgorithm, Signals, updated
from ..nn import sparsify, topology_layers
from ..rewiring import Rewirer
from ..topology import Move, Topology
from ..topology.patterns import NM, Block, FanIn, Neurons, Pattern, SharedFanIn, Unstructured, shared_evenly

PATTERNS: tuple[Pattern, ...] = (Unstructured(), FanIn(), SharedFanIn(4), NM(2, 8), Block(2), Neurons())

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.05),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.02, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}

STEPS, EVERY = 60, 6  # 9 rewirings before step 60


def check_algorithm(algorithm: AnyAlgorithm, patterns: Sequence[Pattern] = PATTERNS) -> None:
    """Hold an algorithm to the contract.

    Its settings are frozen and survive a round trip; it leaves its input as it is; the same generator gives the same
    topology; the number of connections and the pattern are kept (or, as it declares, the number falls, to its final sparsity);
    training with it is that of the masked twin, topologies equal and losses within rounding, on linear layers and convolutions
    under SGD, momentum, Adam and AdamW; a checkpoint loads into a model with other topologies.
    Networks have the algorithm's `default_pattern`.

    Args:
        algorithm: an instance.
        patterns: the patterns it must keep, or refuse in its `check_pattern` with the reason.

    Raises:
        AssertionError: that says which clause is broken.
    """
    check_settings(algorithm)
    for pattern in patterns:
        if refusal(algorithm, pattern) is None:
            check_update(algorithm, pattern)
    for model in (linear_model, convolution_model):
        for name in OPTIMIZERS:
            check_against_masked(algorithm, model, name)
    check_checkpoint(algorithm)


def default_pattern(algorithm: AnyAlgorithm) -> Pattern:
    """The pattern that the paper of an algorithm trains with: its `default_pattern`, else `Unstructured()`."""
    return getattr(algorithm, "default_pattern", Unstructured())


def refusal(algorithm: AnyAlgorithm, pattern: Pattern) -> str | None:
    """Why an algorithm cannot keep a pattern, None if it can.

    Raises:
        AssertionError: if it gives no reason, or refuses its own `default_pattern`.
    """
    reason = reason_against(algorithm, pattern)
    assert reason is None or pattern != default_pattern(algorithm), f"{algorithm} refuses its own default_pattern: {reason}"
    return reason


def reason_against(rule: object, pattern: Pattern) -> str | None:
    """Why an algorithm or a criterion refuses a pattern, in its `check_pattern`; None if it does not.

    Raises:
        AssertionError: if it gives no reason.
    """
    try:
        getattr(rule, "check_pattern", lambda pattern: None)(pattern)
    except ValueError as error:
        reason = str(error)
        assert reason.strip(), f"{rule} refuses {pattern} and does not say why"
        return reason
    return None


def example_signals(
    topology: Topology,
    values: Tensor,
    dense_gradient: Tensor,
    pattern: Pattern,
    progress: float = 0.25,
    last: bool = False,
    generator: torch.Generator | None = None,
) -> Signals:
    """What an algorithm sees of a layer with these weights [nnz] and this dense gradient [rows, columns]. Momenta are the gradients."""

    def gradients() -> Tensor:
        return dense_gradient.flatten()[topology.keys]

    return Signals(
        topology=topology,
        values=values,
        pattern=pattern,
        absent=_Dense(dense_gradient),
        absent_momentum=_Dense(dense_gradient),
        progress=progress,
        last=last,
        generator=generator,
        budget=topology.nnz,
        learning_rate=0.1,
        read_gradients=gradients,
        read_momentum=gradients,
        read_previous=lambda: values,
    )


def check_settings(algorithm: object) -> None:
    """Settings are a frozen dataclass that can be built again from its own fields."""
    kind = type(algorithm)
    assert dataclasses.is_dataclass(kind), f"{kind.__name__} is no dataclass; decorate it with @register or @dataclass(frozen=True)"
    assert kind.__dataclass_params__.frozen, f"{kind.__name__} can be changed in place; make it frozen"  # type: ignore[attr-defined]
    again = kind(**{field.name: getattr(algorithm, field.name) for field in dataclasses.fields(kind)})
    assert again == algorithm, f"{kind.__name__} built from its own settings is another: {again} != {algorithm}"


def check_update(algorithm: AnyAlgorithm, pattern: Pattern, shape: tuple[int, int] = (16, 32), sparsity: float = 0.75) -> None:
    """One update of two layers, of `shape` and of twice the rows, is pure, repeatable, and keeps the count and the pattern.

    With constant fan-in it does so too where neurons have been ablated.
    """
    start = _start(algorithm, sparsity)
    shapes = {"first": shape, "second": (2 * shape[0], shape[1])}
    topologies = {name: pattern.random(own, _count(pattern, own, start), torch.Generator().manual_seed(0)) for name, own in shapes.items()}
    _check_update_of(algorithm, pattern, topologies)
    if isinstance(pattern, FanIn) and all(2 * topology.nnz <= topology.size for topology in topologies.values()):
        _check_update_of(algorithm, pattern, {name: _ablated(topology, pattern) for name, topology in topologies.items()})


def _count(pattern: Pattern, shape: tuple[int, int], sparsity: float) -> int:
    return pattern.round(shape, round(shape[0] * shape[1] * (1 - sparsity)))


def _ablated(topology: Topology, pattern: FanIn) -> Topology:
    """As many connections in about half of the rows, or groups of rows that share theirs."""
    height, (rows, columns) = pattern.unit(topology.shape)[0], pattern.units(topology).shape
    every_other = torch.arange(rows, device="cpu") % 2 == 0
    fan_in = shared_evenly(topology.nnz // height, every_other, torch.zeros(rows, device="cpu"))
    return Topology.from_mask((torch.arange(columns, device="cpu") < fan_in[:, None]).repeat_interleave(height, 0))


def _check_update_of(algorithm: AnyAlgorithm, pattern: Pattern, topologies: dict[str, Topology]) -> None:
    what = f"{algorithm} with {pattern}"
    layers = {}
    draw = torch.Generator().manual_seed(1)
    for name, topology in topologies.items():
        values = torch.randn(topology.nnz, generator=draw, device="cpu")
        dy, x = (torch.randn(8, extent, generator=draw, device="cpu") for extent in topology.shape)
        layers[name] = example_signals(topology, values, dy.T @ x, pattern)

    def arrays() -> list[Tensor]:
        return [array for layer in layers.values() for array in (layer.topology.indptr, layer.topology.indices, layer.values)]

    def next_topologies(last: bool = False) -> dict[str, Topology]:
        generator = torch.Generator().manual_seed(7)
        seen = {name: dataclasses.replace(signals, generator=generator, last=last) for name, signals in layers.items()}
        new = updated(algorithm, seen, {})[0]
        return {name: _checked(what, move) if isinstance(move, Move) else move for name, move in new.items()}

    before = [array.clone() for array in arrays()]
    first, second, last = next_topologies(), next_topologies(), next_topologies(last=True)
    assert all(torch.equal(old, new) for old, new in zip(before, arrays(), strict=True)), f"{what} changed its input"
    assert list(first) == list(layers), f"{what} answered for the layers {list(first)}, asked for {list(layers)}"
    for name, new in first.items():
        old = topologies[name]
        assert new.equal(second[name]), f"{what} gives another topology from the same generator"
        assert new.shape == old.shape, f"{what} made shape {new.shape} of {old.shape}"
    _check_counts(what, algorithm, topologies, first, pattern.step)
    _check_counts(what, algorithm, topologies, last, pattern.step, ended=True)
    for new in (*first.values(), *last.values()):
        pattern.check(new)
        Topology(new.shape, new.indptr, new.indices)


def _checked(what: str, move: Move) -> Topology:
    grown, given = int(move.grown.sum()), move.grown_values
    assert given is None or given.shape == (grown,), f"{what} gives values of shape {tuple(given.shape)} to {grown} grown connections"
    return move.new


def check_against_masked(
    algorithm: AnyAlgorithm, model: Callable[[], nn.Module], optimizer: str, steps: int = STEPS, every: int = EVERY
) -> None:
    """Truly sparse training is masked training: same seed, same topologies, same losses up to rounding (float64)."""
    runs = [_trained(algorithm, model(), OPTIMIZERS[optimizer], masked, steps, every) for masked in (False, True)]
    (losses, topologies, rewirings), (masked_losses, masked_topologies, _) = runs
    what = f"{algorithm} under {optimizer}"
    assert rewirings == (steps - 1) // every, f"{what} rewired {rewirings} times in {steps} steps"
    for step, (ours, theirs) in enumerate(zip(topologies, masked_topologies, strict=True)):
        for name, topology in ours.items():
            assert topology.equal(theirs[name]), f"{what}: layer {name!r} has another topology than the masked twin after step {step}"
    for old, new in pairwise(topologies):
        _check_counts(what, algorithm, old, new)
    _check_counts(what, algorithm, topologies[0], topologies[-1], ended=True)
    difference = (losses - masked_losses).abs() / masked_losses.abs()
    worst = int(difference.argmax())
    assert float(difference[worst]) < 1e-9, (
        f"{what}: the loss at step {worst} is {losses[worst]:.12g}, the masked twin's {masked_losses[worst]:.12g}"
    )


def check_checkpoint(algorithm: AnyAlgorithm) -> None:
    """What is saved after rewirings loads into a model with other topologies, and trains on bit for bit."""
    make = OPTIMIZERS["Adam"]
    pattern = default_pattern(algorithm)
    model = sparsify(linear_model(), _start(algorithm, 0.8), pattern=pattern, generator=torch.Generator().manual_seed(0))
    optimizer = make(list(model.parameters()))
    rewirer = Rewirer(model, optimizer, algorithm, EVERY, STEPS, torch.Generator().manual_seed(1))
    _steps(model, optimizer, rewirer, 0, 15)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rewirer.state_dict()))
    expected = _steps(model, optimizer, rewirer, 15, 30)

    other = sparsify(linear_model(), _start(algorithm, 0.6), pattern=pattern, generator=torch.Generator().manual_seed(5))
    other_optimizer = make(list(other.parameters()))
    other_rewirer = Rewirer(other, other_optimizer, algorithm, EVERY, STEPS, torch.Generator().manual_seed(9))
    other.load_state_dict(saved[0])
    other_optimizer.load_state_dict(saved[1])
    other_rewirer.load_state_dict(saved[2])
    found = _steps(other, other_optimizer, other_rewirer, 15, 30)
    assert torch.equal(expected, found), f"{algorithm}: training on from a checkpoint gives other losses than training on"


def linear_model() -> nn.Module:
    """Two linear layers of odd shapes, in float64."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        return nn.Sequential(nn.Linear(12, 33), nn.ReLU(), nn.Linear(33, 7)).double()


def convolution_model() -> nn.Module:
    """Two convolutions, one strided, in float64; its input is that of `linear_model`, seen as an image of 3 x 4."""
    torch.manual_seed(0)
    with torch.device("cpu"):
        return nn.Sequential(
            nn.Unflatten(1, (1, 3, 4)),
            nn.Conv2d(1, 9, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(9, 7, 3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(28, 7),
        ).double()


def _start(algorithm: AnyAlgorithm, sparsity: float) -> float:
    """At which sparsity to begin: `sparsity`, unless the algorithm has a start of its own."""
    return getattr(algorithm, "start_sparsity", sparsity)


def _check_counts(
    what: str,
    algorithm: AnyAlgorithm,
    before: Mapping[str, Topology],
    after: Mapping[str, Topology],
    step: Callable[[tuple[int, int]], int] = lambda shape: 1,
    ended: bool = False,
) -> None:
    """The count is kept, or falls from a start of the algorithm's own to its sparsity: in each layer, or in all together."""
    together = isinstance(algorithm, NetworkAlgorithm)
    for names in [list(before)] if together else [[name] for name in before]:
        old, new = (sum(topologies[name].nnz for name in names) for topologies in (before, after))
        size, rounding = sum(before[name].size for name in names), max(step(before[name].shape) for name in names) if together else 1
        if getattr(algorithm, "keeps_count", True):
            assert 0 <= old - new < rounding, f"{what} made {new} connections of {old}"
        elif hasattr(algorithm, "start_sparsity"):
            least = sum(step(before[name].shape) for name in names)  # no layer goes altogether
            left = max(round(size * (1 - algorithm.sparsity)), least)  # type: ignore[union-attr]
            assert new <= old, f"{what} made {new} connections of {old}, more than there were"
            assert not ended or 0 <= left - new < rounding, f"{what} ended with {new} connections where its sparsity leaves {left}"


class _Dense:
    """`AbsentGradients` from a gradient that a test holds whole."""

    def __init__(self, dense: Tensor) -> None:
        self.dense = dense

    def rows(self, start: int, stop: int) -> Tensor:
        return self.dense[start:stop].clone()

    def at(self, positions: Topology) -> Tensor:
        return self.dense.flatten()[positions.keys]

    def bounds(self) -> tuple[Tensor, Tensor]:
        return self.dense.abs().sum(1), self.dense.abs().sum(0)

    def top(self, kept: Topology, count: int) -> Tensor:
        scores = self.dense.abs().flatten().nan_to_num(nan=-0.5, posinf=torch.inf)
        scores[kept.keys] = -1
        return scores.sort(descending=True, stable=True).indices[:count].sort().values


def _trained(
    algorithm: AnyAlgorithm, model: nn.Module, make: Callable[[list[nn.Parameter]], Optimizer], masked: bool, steps: int, every: int
) -> tuple[Tensor, list[dict[str, Topology]], int]:
    """(losses [steps], the topologies after each step, rewirings)."""
    pattern = default_pattern(algorithm)
    sparsify(model, _start(algorithm, 0.7), pattern=pattern, masked=masked, generator=torch.Generator().manual_seed(3))
    optimizer = make(list(model.parameters()))
    rewirer = Rewirer(model, optimizer, algorithm, every, steps, torch.Generator().manual_seed(4))
    losses, topologies = [], []
    for step in range(steps):
        losses.append(_steps(model, optimizer, rewirer, step, step + 1))
        topologies.append({name: layer.topology for name, layer in topology_layers(model).items()})
    return torch.cat(losses), topologies, rewirer.rewirings


def _steps(model: nn.Module, optimizer: Optimizer, rewirer: Rewirer, first: int, last: int) -> Tensor:
    losses = []
    for step in range(first, last):
        draw = torch.Generator().manual_seed(1000 + step)
        x, target = (torch.randn(16, width, generator=draw, dtype=torch.float64, device="cpu") for width in (12, 7))
        loss = F.mse_loss(model(x), target)
        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)
