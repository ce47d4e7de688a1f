"""When do the topologies of a model change, and what may an algorithm see of its layers then?"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..algorithms import Algorithm, AnyAlgorithm, NetworkAlgorithm, Signals, updated
from ..algorithms.base import Memory
from ..nn import TopologyLayer, topology_layers
from ..topology import Move
from ..topology.patterns import Pattern
from ..topology.schedules import Periodic
from .absent import Gradient, Momentum, Records
from .optimizers import group_of, momentum_of, smoothing_of, state_moves
from .rewire import apply, check_move, move_of


class Rewirer:
    """Lets an algorithm evolve the topologies of a model, every so many steps of training.

    Call `step()` after `loss.backward()`, once an iteration, and take the optimizer's step only if it returns True:

        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()

    Where a framework owns the loop, call `attach()` once instead.

    Args:
        model: holds the sparse (or masked) layers.
        optimizer: holds their parameters.
        algorithm: `RigL()`, `SET()`, or any object with `update(topology, signals)` or `update_network(layers, memory)`.
        every: steps between two rewirings.
        until: the step at which rewiring ends, usually three quarters of the training; None never ends (and algorithms
            that decay with progress then do not).
        generator: CPU generator for every random choice; None is torch's global one.

    Attributes:
        absent_read: by layer, at how many absent positions the last rewiring computed the gradient, times the steps looked at.
        seconds: spent in rewiring so far, without what hooks do after it.

    Raises:
        ValueError: if the model has no sparse layer, the optimizer lacks the parameter of one, the algorithm cannot keep
            the pattern of one, or it needs an end and there is none.
        TypeError: if the algorithm has no `update`, or the optimizer keeps state that cannot follow the connections.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        algorithm: AnyAlgorithm,
        every: int = 100,
        until: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(algorithm, type) or not isinstance(algorithm, (Algorithm, NetworkAlgorithm)):
            raise TypeError(
                f"expected an algorithm, an object with update(topology, signals) or update_network(layers, memory), got {algorithm!r}"
            )
        self.layers = topology_layers(model)
        self.optimizer = optimizer
        self.algorithm = algorithm
        self.schedule = Periodic(every, until)
        self.generator = generator
        self.steps = 0
        self.rewirings = 0
        self.absent_read: Mapping[str, int] = {}
        self.seconds = 0.0
        self.memory: Memory = {}
        self.budgets = {name: layer.topology.nnz for name, layer in self.layers.items()}
        if getattr(algorithm, "needs_end", False) and (until is None or not every < until):
            raise ValueError(f"{algorithm} reaches its aim at the last rewiring: pass until=, more than every={every} steps, got {until}")
        _check_held(self.layers, optimizer)
        _check_patterns(self.layers, algorithm)
        for layer in self.layers.values():
            state_moves(layer, optimizer)
        self._window: int = getattr(algorithm, "window", 1)
        self._records = Records(self._window)
        self._previous: dict[str, Tensor] = {}
        self._hooks: OrderedDict[int, Callable[[Mapping[str, Move]], None]] = OrderedDict()
        self._handles = [layer.register_forward_hook(_Recorder(self, name), with_kwargs=True) for name, layer in self.layers.items()]
        self._after_step = optimizer.register_step_post_hook(self._after_optimizer_step)
        self._pending = False

    def step(self) -> bool:
        """Count one iteration; rewire if it is due.

        Returns:
            True if the optimizer shall step now. False on an iteration where the algorithm's topology update takes the place
            of the weight update (RigL). Algorithms without that trait rewire right after the optimizer's step.

        Raises:
            RuntimeError: if the algorithm asks for gradients and there was no backward pass since the last call.
        """
        self.steps += 1
        self._pending = False  # a step that the optimizer was never asked to take has no rewiring after it
        due = self.schedule.due(self.steps)
        if due and getattr(self.algorithm, "replaces_step", False):
            self._rewire()
            return False
        if hasattr(self.algorithm, "penalty"):
            self._add_penalties()
        if due and getattr(self.algorithm, "sees_previous", False):
            self._previous = {name: layer.of_connections(layer.parameter.detach()).clone() for name, layer in self._trained().items()}
        self._pending = due
        if not due:
            self._records.begin_step() if self._recording() else self._records.clear()
        return True

    def attach(self) -> RemovableHandle:
        """Do what `step()` does at every `optimizer.step()`, for frameworks that own the loop. Do not call `step()` as well.

        Returns:
            A handle whose `remove()` undoes this.
        """

        def before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if not self.step():
                # An optimizer passes over parameters without a gradient: that is how a step is left out from inside.
                for group in optimizer.param_groups:
                    for parameter in group["params"]:
                        parameter.grad = None

        handle = self.optimizer.register_step_pre_hook(before)
        self._handles.append(handle)
        return handle

    def detach(self) -> None:
        """Remove every hook this object has put on the model and the optimizer."""
        for handle in (*self._handles, self._after_step):
            handle.remove()

    def rewire_last(self) -> None:
        """Rewire after all that now hooks the end of the optimizer's step: hooks that put back what they changed for the step."""
        self._after_step.remove()
        self._after_step = self.optimizer.register_step_post_hook(self._after_optimizer_step)

    def scale_gradients(self, factor: float) -> None:
        """Say that the gradients of the last backward passes have been multiplied by `factor` (clipped) before `step()`.

        Gradients of absent connections are then multiplied too: an algorithm compares the two.
        """
        if factor != 1.0:
            self._records.scale(factor)

    def register_hook(self, hook: Callable[[Mapping[str, Move]], None]) -> RemovableHandle:
        """Have `hook` called after each rewiring with the move of each layer, for whatever else follows connections.

        Returns:
            A handle whose `remove()` undoes this.
        """
        handle = RemovableHandle(self._hooks)
        self._hooks[handle.id] = hook
        return handle

    def state_dict(self) -> dict[str, Any]:
        """Where this object stands: steps and rewirings so far, what the algorithm remembers, the budgets it began with, steps
        recorded for the rewiring to come, and the state of its own generator (None without one)."""
        return {
            "steps": self.steps,
            "rewirings": self.rewirings,
            "memory": dict(self.memory),
            "budgets": dict(self.budgets),
            "records": self._records.state(),
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` stood. The topologies are in the model's own `state_dict`.

        Raises:
            ValueError: if the state is not one of `state_dict`, or has a generator where this object has none.
        """
        expected = {"steps", "rewirings", "memory", "budgets", "records", "generator"}
        if set(state) != expected:
            raise ValueError(f"expected a state with {', '.join(sorted(expected))}, got {', '.join(sorted(map(str, state)))}")
        if (state["generator"] is None) != (self.generator is None):
            raise ValueError(
                "the state was saved with a generator of its own and this Rewirer has none, or the other way round; pass generator= alike"
            )
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        self.steps, self.rewirings = state["steps"], state["rewirings"]
        self.memory, self.budgets = dict(state["memory"]), dict(state["budgets"])
        self._pending = False
        self._records.load(state["records"])

    def _recording(self) -> bool:
        """Whether the step under way is one of those that the next rewiring looks at."""
        return self.schedule.due_within(self.steps + 1, self._window)

    def _trained(self) -> dict[str, TopologyLayer]:
        """Layers that may change; frozen ones stay as they are."""
        return {name: layer for name, layer in self.layers.items() if layer.parameter.requires_grad}

    def _after_optimizer_step(self, *_: Any) -> None:
        if self._pending:
            self._rewire()

    @torch.no_grad()
    def _add_penalties(self) -> None:
        for name, layer in self._trained().items():
            if layer.parameter.grad is not None:
                layer.parameter.grad += layer.spread(self.algorithm.penalty(self._signals(name, layer)))  # type: ignore[union-attr]

    @torch.no_grad()
    def _rewire(self) -> None:
        began = time.perf_counter()
        self._pending = False
        # Two passes: whatever can be refused is refused before any layer changes.
        layers = self._trained()
        plans = {name: state_moves(layer, self.optimizer) for name, layer in layers.items()}
        # Where step() runs under autocast too, gradients of absent connections would be rounded again, before they are added up.
        with torch.autocast(next(iter(self.layers.values())).parameter.device.type, enabled=False):
            new, memory = updated(self.algorithm, {name: self._signals(name, layer) for name, layer in layers.items()}, self.memory)
        moves = {name: move_of(layer, new[name]) for name, layer in layers.items()}
        for name, layer in layers.items():
            check_move(layer, moves[name])
        for name, layer in layers.items():
            move = moves[name]
            if move.new is not layer.topology or bool(move.grown.any()) or move.acting is not layer.acting:
                apply(layer, move, self.optimizer, plans[name])
        self.memory = memory
        self.absent_read = self._records.take_read()
        self.rewirings += 1
        self._records.clear()
        self._previous = {}
        self.seconds += time.perf_counter() - began
        for hook in list(self._hooks.values()):
            hook(moves)

    def _signals(self, name: str, layer: TopologyLayer) -> Signals:
        def gradients() -> Tensor:
            if layer.parameter.grad is None:
                raise RuntimeError(f"layer {name!r} has no gradient: call loss.backward() before step(), and zero_grad() after it")
            return layer.of_connections(layer.parameter.grad)

        def momentum() -> Tensor:
            found = momentum_of(self.optimizer, layer.parameter)
            return gradients() if found is None else layer.of_connections(found)

        group = group_of(self.optimizer, layer.parameter)
        return Signals(
            topology=layer.topology,
            values=layer.of_connections(layer.parameter.detach()),
            pattern=layer.pattern,
            absent=Gradient(layer, self._records, name),
            absent_momentum=Momentum(layer, self._records, name, smoothing_of(self.optimizer, group)),
            progress=self.schedule.progress(self.steps),
            last=self.schedule.last(self.steps),
            generator=self.generator,
            name=name,
            output=name == next(reversed(self.layers)),
            budget=self.budgets[name],
            acting=None if layer.acting is None else layer.of_connections(layer.acting),
            learning_rate=float(group["lr"]),
            read_gradients=gradients,
            read_momentum=momentum,
            read_previous=lambda: self._previous[name],
        )


class _Recorder:
    """The forward hook that notes (dy, x) on the iterations that rewire.

    A copy or a pickle of the model must not report to this Rewirer, so the hook's own copies do nothing.
    """

    def __init__(self, rewirer: Rewirer | None = None, name: str = "") -> None:
        self.rewirer, self.name = rewirer, name

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        rewirer, name = self.rewirer, self.name
        if rewirer is not None and output.requires_grad and rewirer._recording():
            (x,) = (*args, *named.values())
            x = x.detach()
            output.register_hook(lambda dy: rewirer._records.add(name, dy.detach(), x))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Recorder, ()


def _check_patterns(layers: Mapping[str, TopologyLayer], algorithm: AnyAlgorithm) -> None:
    check: Callable[[Pattern], None] = getattr(algorithm, "check_pattern", lambda pattern: None)
    for name, layer in layers.items():
        try:
            check(layer.pattern)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error


def _check_held(layers: Mapping[str, TopologyLayer], optimizer: Optimizer) -> None:
    if not layers:
        raise ValueError("the model has no sparse layer: call truesparse.sparsify(model) first")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, layer in layers.items() if id(layer.parameter) not in held]
    if missing:
        names = ", ".join(map(repr, missing))
        raise ValueError(f"the optimizer does not hold the parameters of {names}: build it from model.parameters() after sparsify")
