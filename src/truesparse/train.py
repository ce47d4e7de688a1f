"""When and how does a topology change under a running optimizer? This is the only impure step of the library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .algorithms import Algorithm, Signals
from .nn import TopologyLayer, topology_layers
from .nn.base import Sample
from .schedules import Periodic
from .topology import Move, Topology


@torch.no_grad()
def rewire(layer: TopologyLayer, optimizer: Optimizer | None, new: Topology | Move) -> Move:
    """Give `layer` a new topology: values, gradient and all optimizer state follow their connections.

    Grown connections start at zero (or at the values the `Move` names) with the state of a parameter never stepped.

    Args:
        layer: a sparse or masked layer.
        optimizer: any optimizer whose state tensors have the parameter's shape; None if there is none.
        new: the topology, or a `Move` from the layer's present topology to it.

    Returns:
        The move that was made.

    Raises:
        ValueError: if the new topology has another shape, breaks the layer's pattern, or does not start at the layer's own.
        TypeError: if the optimizer keeps state that cannot follow. Nothing has changed then.
    """
    move = new if isinstance(new, Move) else Move.between(layer.topology, new)
    _check_move(layer, move)
    _apply(layer, move, optimizer, _state_moves(layer, optimizer))
    return move


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
        algorithm: `RigL()`, `SET()`, or any object with `update(topology, signals)`.
        every: steps between two rewirings.
        until: the step at which rewiring ends, usually three quarters of the training; None never ends (and algorithms
            that decay with progress then do not).
        generator: CPU generator for every random choice; None is torch's global one.

    Raises:
        ValueError: if the model has no sparse layer, or the optimizer lacks the parameter of one.
        TypeError: if the algorithm has no `update`, or the optimizer keeps state that cannot follow the connections.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        algorithm: Algorithm,
        every: int = 100,
        until: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(algorithm, type) or not isinstance(algorithm, Algorithm):
            raise TypeError(f"expected an algorithm, an object with update(topology, signals), got {algorithm!r}")
        self.layers = topology_layers(model)
        self.optimizer = optimizer
        self.algorithm = algorithm
        self.schedule = Periodic(every, until)
        self.generator = generator
        self.steps = 0
        self.rewirings = 0
        _check_held(self.layers, optimizer)
        for layer in self.layers.values():
            _state_moves(layer, optimizer)
        self._samples: dict[str, list[Sample]] = {name: [] for name in self.layers}
        self._handles = [layer.register_forward_hook(_Recorder(self, name), with_kwargs=True) for name, layer in self.layers.items()]
        self._handles.append(optimizer.register_step_post_hook(self._after_optimizer_step))
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
        if not self.schedule.due(self.steps):
            self._forget()
            return True
        if getattr(self.algorithm, "replaces_step", False):
            self._rewire()
            return False
        self._pending = True
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
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Where this object stands: steps and rewirings so far, and the state of its own generator (None without one)."""
        return {
            "steps": self.steps,
            "rewirings": self.rewirings,
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` stood. The topologies are in the model's own `state_dict`.

        Raises:
            ValueError: if the state is not one of `state_dict`, or has a generator where this object has none.
        """
        expected = {"steps", "rewirings", "generator"}
        if set(state) != expected:
            raise ValueError(f"expected a state with {', '.join(sorted(expected))}, got {', '.join(sorted(map(str, state)))}")
        if (state["generator"] is None) != (self.generator is None):
            raise ValueError(
                "the state was saved with a generator of its own and this Rewirer has none, or the other way round; pass generator= alike"
            )
        if self.generator is not None:
            self.generator.set_state(state["generator"])
        self.steps, self.rewirings = state["steps"], state["rewirings"]
        self._pending = False
        self._forget()

    def _forget(self) -> None:
        for samples in self._samples.values():
            samples.clear()

    def _after_optimizer_step(self, *_: Any) -> None:
        if self._pending:
            self._rewire()

    @torch.no_grad()
    def _rewire(self) -> None:
        self._pending = False
        # Two passes: whatever can be refused is refused before any layer changes.
        layers = {name: layer for name, layer in self.layers.items() if layer.parameter.requires_grad}  # frozen ones stay as they are
        plans = {name: _state_moves(layer, self.optimizer) for name, layer in layers.items()}
        moves = {name: self._next(name, layer) for name, layer in layers.items()}
        for name, layer in layers.items():
            _check_move(layer, moves[name])
        for name, layer in layers.items():
            if moves[name].new is not layer.topology or bool(moves[name].grown.any()):
                _apply(layer, moves[name], self.optimizer, plans[name])
        self.rewirings += 1
        self._forget()

    def _next(self, name: str, layer: TopologyLayer) -> Move:
        def gradients() -> Tensor:
            if layer.parameter.grad is None:
                raise RuntimeError(f"layer {name!r} has no gradient: call loss.backward() before step(), and zero_grad() after it")
            return layer.of_connections(layer.parameter.grad)

        signals = Signals(
            values=layer.of_connections(layer.parameter.detach()),
            read_gradients=gradients,
            absent=_Absent(name, layer, self._samples[name]),
            progress=self.schedule.progress(self.steps),
            pattern=layer.pattern,
            generator=self.generator,
        )
        # Where step() runs under autocast too, gradients of absent connections would be rounded again, before they are added up.
        with torch.autocast(layer.parameter.device.type, enabled=False):
            new = self.algorithm.update(layer.topology, signals)
        return new if isinstance(new, Move) else Move.between(layer.topology, new)


class _Recorder:
    """The forward hook that notes (dy, x) on the iterations that rewire.

    A copy or a pickle of the model must not report to this Rewirer, so the hook's own copies do nothing.
    """

    def __init__(self, rewirer: Rewirer | None = None, name: str = "") -> None:
        self.rewirer, self.name = rewirer, name

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        rewirer = self.rewirer
        if rewirer is not None and output.requires_grad and rewirer.schedule.due(rewirer.steps + 1):
            (x,) = (*args, *named.values())
            x, samples = x.detach(), rewirer._samples[self.name]
            output.register_hook(lambda dy: samples.append((dy.detach(), x)))

    def __reduce__(self) -> tuple[Any, ...]:
        return _Recorder, ()


class _Absent:
    """`AbsentGradients` from the inputs and output gradients of the last backward passes."""

    def __init__(self, name: str, layer: TopologyLayer, samples: list[Sample]) -> None:
        self.name, self.layer, self.samples = name, layer, samples

    def rows(self, start: int, stop: int) -> Tensor:
        return self.layer.gradient_rows(self._recorded(), start, stop)

    def top(self, kept: Topology, count: int) -> Tensor:
        return self.layer.top_gradients(self._recorded(), kept, count)

    def _recorded(self) -> list[Sample]:
        if not self.samples:
            raise RuntimeError(
                f"layer {self.name!r} took part in no backward pass since the last step(): call loss.backward() before step(), "
                "or leave the layer out with sparsify(..., exclude=...)"
            )
        return self.samples


# A state entry is moved (True) or belongs to the parameter as a whole and stays (False).
StateMoves = dict[str, tuple[bool, float]]


def _state_moves(layer: TopologyLayer, optimizer: Optimizer | None) -> StateMoves:
    """For each entry of the optimizer's state: does it follow the connections, and where do grown ones start?"""
    if optimizer is None:
        return {}
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "LBFGS keeps one history for all parameters together, which cannot follow the connections; use SGD, Adam, AdamW, ..."
        )
    parameter = layer.parameter
    group = next((group for group in optimizer.param_groups if any(held is parameter for held in group["params"])), {})
    moves: StateMoves = {}
    for name, entry in optimizer.state.get(parameter, {}).items():
        if isinstance(entry, Tensor) and entry.shape == parameter.shape and entry.ndim:
            moves[name] = True, _fresh_state(optimizer, name, group)
        elif entry is None or isinstance(entry, (bool, int, float)) or (isinstance(entry, Tensor) and entry.numel() == 1):
            moves[name] = False, 0.0
        else:
            what = f"a tensor of shape {tuple(entry.shape)}" if isinstance(entry, Tensor) else f"a {type(entry).__name__}"
            raise TypeError(
                f"{type(optimizer).__name__} keeps {name!r}, {what}, for a parameter of shape {tuple(parameter.shape)}: it cannot follow "
                "the connections; use an optimizer whose state has the parameter's shape (SGD, Adam, AdamW, RMSprop, Adagrad, NAdam, ...)"
            )
    return moves


def _fresh_state(optimizer: Optimizer, name: str, group: Mapping[str, Any]) -> float:
    """What the optimizer itself starts this state at."""
    if isinstance(optimizer, torch.optim.Adagrad) and name == "sum":
        return float(group.get("initial_accumulator_value", 0.0))
    if isinstance(optimizer, torch.optim.Rprop) and name == "step_size":
        return float(group["lr"])
    return 0.0


def _check_held(layers: Mapping[str, TopologyLayer], optimizer: Optimizer) -> None:
    if not layers:
        raise ValueError("the model has no sparse layer: call truesparse.sparsify(model) first")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = [name for name, layer in layers.items() if id(layer.parameter) not in held]
    if missing:
        names = ", ".join(map(repr, missing))
        raise ValueError(f"the optimizer does not hold the parameters of {names}: build it from model.parameters() after sparsify")


def _check_move(layer: TopologyLayer, move: Move) -> None:
    if move.old is not layer.topology and not move.old.equal(layer.topology):
        raise ValueError("the move does not start at the layer's present topology: make it with Move.between(layer.topology, new)")
    if move.new.shape != layer.topology.shape:
        raise ValueError(f"expected a topology of shape {layer.topology.shape}, got {move.new.shape}")
    layer.pattern.check(move.new)
    if move.grown_values is not None and move.grown_values.shape != (grown := int(move.grown.sum()),):
        raise ValueError(f"expected {grown} values, one for each grown connection, got shape {tuple(move.grown_values.shape)}")


def _apply(layer: TopologyLayer, move: Move, optimizer: Optimizer | None, state_moves: StateMoves) -> None:
    # Everything is computed before anything is put in place: running out of memory here loses nothing.
    parameter = layer.parameter
    gradient = None if parameter.grad is None else layer.moved(move, parameter.grad)
    state = optimizer.state[parameter] if optimizer is not None and state_moves else {}
    moved = {name: layer.moved(move, state[name], fill) for name, (follows, fill) in state_moves.items() if follows}
    layer.install(move)
    layer.parameter.grad = gradient
    state.update(moved)
