"""How fast is a whole training step, beside dense PyTorch, and where does the time go?

A step is forward with the loss (cross-entropy), backward, AdamW, `zero_grad`; RigL rewires sparse and masked networks every 100 steps.
The step that rewires is timed together with the one after it, where kernels make their plans anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algorithms import RigL  # type: ignore[attr-defined]
from ..common.devices import CPU, clock_of, on_device
from ..nn import TopologyLayer, topology_layers
from ..nn.wrapped import unwrapped
from ..rewiring import Rewirer
from ..runs.machine import threads_said
from ..topology.patterns import Pattern
from .document import StepRow
from .networks import SEED, UNSTRUCTURED, Density, Example, Network, example_of, twins
from .request import Conditions
from .timing import amortised, interleaved, times_as_fast
from .work import Peaks, forward_work
from .wrong import WrongResult, of_connections, refuse_if_far

STEPS_BETWEEN_REWIRINGS = 100
LEARNING_RATE = 1e-4
SHARE_FOR_REWIRING = 0.2  # of the time of a line, for each way
LEAST_REWIRINGS = {"sparse": 3, "sparse_compiled": 3, "masked": 1}  # a mask may take seconds: it sorts a dense gradient
# Relative, in Euclidean norm: a ReLU or maximum that falls on the other side moves single entries.
TOLERANCE = {torch.float32: 2e-2, torch.bfloat16: 2e-1, torch.float16: 1e-1}
LEAST_SHARE = 1e-4  # of the whole gradient: what should be zero (a bias before a norm) is as far off as what it is the difference of
PHASES = ("forward", "backward", "optimizer")
COMPILED = ("dense", "sparse")
# What torch.compile is told. Before a max pooling, torch 2.13's default gives dense convolutions gradients of zero on a CPU.
COMPILE_OPTIONS: tuple[dict[str, str | int | bool], ...] = ({}, {"layout_optimization": False})


Truth = tuple[Tensor, Mapping[str, Tensor]]


@dataclass(frozen=True)
class StepCase:
    """One network at one density.

    Args:
        network: which.
        density: how much is kept.
        budget: "erk", "er" or "uniform": how layers share it, unless the density is an epsilon.
        batch: samples in a step; None: the network's own.
        pattern: of all layers made sparse.
        compiled: also the dense and the sparse network under `torch.compile`.
    """

    network: Network
    density: Density
    budget: str = "erk"
    batch: int | None = None
    compiled: bool = False
    pattern: Pattern = UNSTRUCTURED

    @property
    def samples(self) -> int:
        return self.batch or self.network.batch


def measure_steps(
    cases: Sequence[StepCase], conditions: Conditions, peaks: Sequence[Peaks], tell: Callable[[str], None]
) -> Iterator[StepRow]:
    """A row for each case and each number of threads.

    Args:
        cases: which networks.
        conditions: how.
        peaks: one for each number of threads.
        tell: hears which line is about to be taken.

    Raises:
        WrongResult: if a network's output or gradients are not those of float64.
        ConfigError: if the network cannot be made sparse this way.
    """
    for case in cases:
        torch.set_num_threads(max(peak.threads for peak in peaks))
        device = conditions.device
        models = {name: model.to(device) for name, model in twins(case.network, case.density, case.budget, case.pattern).items()}
        example: Example = on_device(example_of(case.network, case.samples), device)
        truth = _truth(models["dense"], example)
        for peak in peaks:
            torch.set_num_threads(peak.threads)
            said = f"{case.network.name}, {case.density}"
            tell(f"{said}, batch {case.samples}, {threads_said(peak.threads)}")
            _check(said, models, models["sparse"], example, truth, conditions)
            compiled, options = _compiled(said, models, example, truth, conditions, peak.threads) if case.compiled else ({}, {})
            yield replace(_measured(case, deepcopy(models) | compiled, example, conditions, peak), compile_options=options)


def _compiled(
    said: str, models: Mapping[str, nn.Module], example: Example, truth: Truth, conditions: Conditions, threads: int
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The dense and the sparse network under `torch.compile`, and the options without which torch compiled something else."""
    torch.compiler.reset()
    config = import_module("torch._inductor.config")
    made: dict[str, nn.Module] = {}
    options: dict[str, str] = {}
    for way in COMPILED:
        for tried in COMPILE_OPTIONS:
            name, model = f"{way}_compiled", torch.compile(deepcopy(models[way]), options=dict(tried))
            try:
                with config.patch({"cpp.threads": threads}):  # what was compiled for another number is no answer
                    _check(said, {name: model}, models["sparse"], example, truth, conditions)  # type: ignore[dict-item]
            except WrongResult:
                if tried is COMPILE_OPTIONS[-1]:
                    raise
                continue
            made[name] = model  # type: ignore[assignment]
            if tried:
                options[name] = ", ".join(f"{option}={value}" for option, value in tried.items())
            break
    return made, options


@dataclass
class Training:
    """One network in training: what one step does, and how long its parts took."""

    model: nn.Module
    example: Example
    autocast: Callable[[], AbstractContextManager[object]]
    device: torch.device = CPU
    marks: list[Sequence[Any]] = field(default_factory=list)  # of the clock, before and after each of `PHASES`, of each step

    def __post_init__(self) -> None:
        self.clock = clock_of(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.rewirer: Rewirer | None = None
        if topology_layers(self.model):
            generator = torch.Generator().manual_seed(SEED)
            self.rewirer = Rewirer(self.model, self.optimizer, RigL(), STEPS_BETWEEN_REWIRINGS, generator=generator)
            self._go_to(0)

    def step(self) -> None:
        """A step that does not rewire, its parts noted."""
        start = self.clock.mark()
        with self.autocast():
            loss = loss_of(self.model, *self.example)
        forward = self.clock.mark()
        loss.backward()
        backward = self.clock.mark()
        if self.rewirer is None or self.rewirer.step():
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.marks.append((start, forward, backward, self.clock.mark()))
        if self.rewirer is not None:
            self._go_to(0)

    def rewiring_pair(self) -> None:
        """A step that rewires, and the one after it."""
        noted = len(self.marks)
        self._go_to(STEPS_BETWEEN_REWIRINGS - 1)
        self.step()
        self.step()
        del self.marks[noted:]

    def medians(self) -> dict[str, float]:
        """Of the parts of the steps so far, in seconds."""
        parts = [[self.clock.seconds(*pair) for pair in pairwise(marks)] for marks in self.marks]
        return {phase: median(times) for phase, times in zip(PHASES, zip(*parts, strict=True), strict=True)}

    def _go_to(self, step: int) -> None:
        if self.rewirer is not None:
            self.rewirer.load_state_dict({**self.rewirer.state_dict(), "steps": step})


def loss_of(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the model's outputs (..., classes) with the classes they should be."""
    return F.cross_entropy(model(x).flatten(0, -2), target.flatten())


def step_work(model: nn.Module, x: Tensor) -> int:
    """Multiply-adds of a step in the layers with a topology: connections x positions for y, for dW, and for dx where one is needed."""
    counted: list[int] = []

    def count(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, TopologyLayer)
        (x,) = args
        shape = tuple(x.flatten(0, x.ndim - layer.geometry.sample_ndim - 1).shape)
        counted.append((2 + x.requires_grad) * forward_work(layer.geometry, layer.topology.nnz, shape, x.element_size()).multiply_adds)

    model = deepcopy(model)
    for layer in topology_layers(model).values():
        layer.register_forward_hook(count)
    model(x)
    return sum(counted)


def _measured(case: StepCase, models: Mapping[str, nn.Module], example: Example, conditions: Conditions, peaks: Peaks) -> StepRow:
    layers = topology_layers(models["sparse"]).values()
    connections, size = sum(layer.topology.nnz for layer in layers), sum(layer.topology.size for layer in layers)
    multiply_adds = step_work(models["sparse"], example[0])
    device = conditions.device
    trainings = {name: Training(model, example, conditions.autocast, device) for name, model in models.items()}
    for training in trainings.values():
        training.step()  # makes the optimizer's state
        training.marks = []
    steps = {name: training.step for name, training in trainings.items()}
    plain = interleaved(steps, conditions.seconds * (1 - 2 * SHARE_FOR_REWIRING), warm=True, device=device)
    for training in trainings.values():
        training.marks = training.marks[1::2]  # without the steps that warm up
    pairs: dict[str, float] = {}
    for name, rounds in LEAST_REWIRINGS.items():
        if name not in trainings:
            continue
        pairs |= interleaved({name: trainings[name].rewiring_pair}, conditions.seconds * SHARE_FOR_REWIRING, rounds, device=device)
    rewiring_seconds = {name: pair - plain[name] for name, pair in pairs.items()}
    seconds = {name: amortised(own, rewiring_seconds.get(name, own), STEPS_BETWEEN_REWIRINGS) for name, own in plain.items()}
    return StepRow(
        network=case.network.name,
        density=str(case.density),
        budget="er" if case.density.epsilon is not None else case.budget,
        sparsity=1 - connections / size,
        connections=connections,
        batch=case.samples,
        threads=peaks.threads,
        every=STEPS_BETWEEN_REWIRINGS,
        seconds=seconds,
        plain_seconds=plain,
        rewiring_seconds=rewiring_seconds,
        times_as_fast=times_as_fast(seconds),
        phases={name: training.medians() | {"rewiring": seconds[name] - plain[name]} for name, training in trainings.items()},
        share_of_multiply_adds=multiply_adds / seconds["sparse"] / peaks.multiply_adds,
        pattern=str(case.pattern),
    )


def _truth(dense: nn.Module, example: Example) -> Truth:
    """The loss of one step, and every gradient by the name of its parameter, in float64."""
    x, target = example
    exact = deepcopy(dense).double()
    loss = loss_of(exact, x.double() if x.is_floating_point() else x, target)
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in exact.named_parameters() if parameter.grad is not None}


def _check(said: str, models: Mapping[str, nn.Module], sparse: nn.Module, example: Example, truth: Truth, conditions: Conditions) -> None:
    """
    Args:
        models: to be held against `truth`, by way.
        sparse: has the connections.

    Raises:
        WrongResult: if the loss or a gradient, that of a sparse layer on its connections, is not the true one.
    """
    tolerance, (exact_loss, gradients) = TOLERANCE[conditions.dtype], truth
    least = LEAST_SHARE * float(torch.stack([gradient.norm() for gradient in gradients.values()]).norm())
    sparse_layers = topology_layers(sparse)
    for way, model in models.items():
        before = deepcopy(model.state_dict())
        with conditions.autocast():
            loss = loss_of(model, *example)
        loss.backward()
        refuse_if_far(f"{said}: the loss of {way}", loss, exact_loss, tolerance)
        layers, parameters = topology_layers(unwrapped(model)), dict(unwrapped(model).named_parameters())
        for name, exact in gradients.items():
            layer, _, kind = name.rpartition(".")
            actual = (layers[layer].parameter if kind == "weight" and layer in layers else parameters[name]).grad
            if kind == "weight" and layer in sparse_layers and actual is not None:
                topology = sparse_layers[layer].topology
                exact, actual = exact.flatten()[topology.keys], of_connections(actual, topology)
            refuse_if_far(f"{said}: the gradient of {name} of {way}", actual, exact, tolerance, least)
        model.load_state_dict(before)  # running statistics of the norms
        model.zero_grad()
