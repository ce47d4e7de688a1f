"""When do the topologies of a model change, and what may an algorithm see of its layers then?"""

from __future__ import annotations

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ..algorithms import AnyAlgorithm, Signals, updated
from ..algorithms.base import Memory
from ..distributed import ALONE, Processes, shared_generator, together
from ..nn import TopologyLayer, topology_layers
from ..topology import Move
from ..topology.schedules import Periodic
from .absent import Gradient, Momentum, Reads
from .checks import check_algorithm, check_held, check_patterns, check_schedule, held_layers
from .checks_together import check_generators, check_moves, check_not_joined, check_processes, check_whole
from .dense_gradient import DenseGradient
from .flags import told
from .follower import exactly
from .optimizers import (
    GrownState,
    check_grown_state,
    following,
    group_of,
    learning_rate_of,
    momentum_of,
    optimizers_in,
    second_moment_of,
    smoothing_of,
)
from .outputs import output_layer
from .owners import StateOwners
from .recorder import Recorder
from .rewire import apply, check_move, move_of

MOST_STEPS_NOT_TAKEN = 50  # a gradient scaler leaves out some twenty at first
NOT_SEEN = "its algorithm says sees_absent = False, so gradients of absent connections were not recorded: leave that out"


class Rewirer:
    """Lets an algorithm evolve the topologies of a model, every so many steps of training.

    Call `step()` after `loss.backward()`, once an iteration, and take the optimizer's step only if it returns True:

        loss.backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()

    Where a framework owns the loop, or the optimizer's step is given a closure, call `attach()` once instead.

    An algorithm sees the dense gradient whose entries at the connections are those of each layer's `values.grad` at that moment,
    whatever has led to it. Where that cannot be told, an error says so. A layer that took no part in the step keeps its topology, if
    the algorithm grows by gradients; so does one that is frozen or whose parameter the optimizer does not hold.

    Args:
        model: holds the sparse (or masked) layers.
        optimizer: holds their parameters; or an object that wraps it, as Accelerate's and Lightning's do.
        algorithm: `RigL()`, `SET()`, or any object with `update(topology, signals)` or `update_network(layers, memory)`.
        every: steps between two rewirings.
        until: the step at which rewiring ends, usually three quarters of the training; None never ends (and algorithms
            that decay with progress then do not).
        generator: CPU generator for every random choice; None is torch's global one. Where several processes train together, it must
            begin alike in all of them, and None is a new one with the seed of the first (`torch.initial_seed()`).
        grown_state: what the optimizer keeps of a connection that grows: "zero", what it starts with; "warm", for Adam and its kin, the
            second moment at its mean over the layer, so that its first updates are no larger than others'. The training guide says when.
        process_group: the processes that train this model together, of torch.distributed; None: those of the
            DistributedDataParallel around it, or all there are.

    Attributes:
        optimizer: the innermost one, which takes the steps.
        absent_read: by layer, at how many absent positions the last rewiring computed the gradient, times the steps looked at.
        seconds: spent in rewiring so far, without what hooks do after it.

    Raises:
        ValueError: if the model has no sparse layer, the optimizer holds the parameter of none, the algorithm cannot keep
            the pattern of one, it needs an end and there is none, no rewiring (or no training step) could ever happen, or there is nothing
            that `grown_state` could warm.
        TypeError: if the algorithm has no `update`, or the optimizer keeps state that cannot follow the connections.
        RuntimeError: if several processes train together and do not begin alike.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Any,
        algorithm: AnyAlgorithm,
        every: int = 100,
        until: float | None = None,
        generator: torch.Generator | None = None,
        grown_state: GrownState = "zero",
        process_group: Any = None,
    ) -> None:
        check_algorithm(algorithm)
        model = model.module if isinstance(model, DistributedDataParallel) else model
        self.layers = topology_layers(model)
        check_whole(self.layers, optimizer)
        self.optimizer = optimizers_in(optimizer)[-1]
        self.algorithm = algorithm
        self.schedule = Periodic(every, until)
        self.generator = generator
        self.steps = 0
        self.rewirings = 0
        self.absent_read: Mapping[str, int] = {}
        self.seconds = 0.0
        self.memory: Memory = {}
        self.budgets = {name: layer.topology.nnz for name, layer in self.layers.items()}
        check_schedule(algorithm, self.schedule)
        check_held(self.layers, self.optimizer)
        check_patterns(self.layers, algorithm)
        check_grown_state(grown_state, self.optimizer)
        self.grown_state: GrownState = grown_state
        self._wrapped = optimizer
        for layer in self.layers.values():
            following(layer, optimizer)
        self._output = output_layer(model)
        self._sees_absent: bool = getattr(algorithm, "sees_absent", True)
        self._window: int = getattr(algorithm, "window", 1)
        self._recorder = Recorder(self.layers, self._window)
        self._reads = Reads()
        self._previous: dict[str, Tensor] = {}
        self._hooks: OrderedDict[int, Callable[[Mapping[str, Move]], None]] = OrderedDict()
        self._owners = StateOwners(self.layers, optimizer)
        self._attachments: OrderedDict[int, None] = OrderedDict()  # by the handles that `attach` has given
        self._pending = False  # the optimizer's step under way has a rewiring after it
        self._overdue = False  # a rewiring that was due could not be made yet
        self._checked = False  # since the optimizer's last step, that its state is of the connections there are
        self._steps_not_taken = 0
        self._group = process_group
        self._processes = ALONE  # those that train together, as soon as they are more than one
        self._generator_made = False  # for all processes, because none was given
        self._left_out: Tensor | None = None  # a gradient whose step the rewiring has taken the place of
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_optimizer_step),
            self.optimizer.register_load_state_dict_post_hook(lambda optimizer: self._owners.state_loaded()),
        ]
        self._after_step = self.optimizer.register_step_post_hook(self._after_optimizer_step)
        self._meet()
        self._begin_step()

    def step(self) -> bool:
        """Count one iteration; rewire if it is due.

        Returns:
            True if the optimizer shall step now. False on an iteration where the algorithm's topology update takes the place
            of the weight update (RigL); the optimizer's step would do nothing then, and under autocast in float16 True is returned all
            the same, for a gradient scaler wants to see every step. Algorithms without that trait rewire right after the optimizer's step.

        Raises:
            RuntimeError: if the algorithm asks for gradients and there was no backward pass since the last call, or something was done
                to them that cannot be told of absent connections; if the topology of a layer has changed and the optimizer's state has
                not; or after `attach()`.
        """
        if self._attachments:
            raise RuntimeError("attach() counts each optimizer.step(): do not call step() as well")
        return self._step()

    def attach(self) -> RemovableHandle:
        """Do what `step()` does at every `optimizer.step()`, for frameworks that own the loop. Do not call `step()` as well.

        A closure that is given to the optimizer's step is followed by it.

        Returns:
            A handle whose `remove()` undoes this.

        Raises:
            RuntimeError: if another Rewirer is attached to the optimizer and rewires one of these layers: both would.
        """
        hooks = self.optimizer._optimizer_step_pre_hooks.values()  # type: ignore[attr-defined]
        others = [owner for hook in hooks if isinstance(owner := getattr(hook, "__self__", None), Rewirer) and owner is not self]
        if any(other._attachments and {*other.layers.values()} & {*self.layers.values()} for other in others):
            raise RuntimeError(
                "another Rewirer of these layers is attached to this optimizer, and both would rewire them: detach() it first"
            )
        handle = RemovableHandle(self._attachments)
        self._attachments[handle.id] = None
        return handle

    def follow(self) -> None:
        """Let the optimizer's state follow topologies that `load_state_dict` has changed, where its own state was not loaded too.

        What it keeps of a connection goes with the connection; those that were not there start as if never stepped.
        """
        self._owners.follow()

    def detach(self) -> None:
        """Remove every hook this object has put on the model and the optimizer."""
        self._recorder.clear()
        self._attachments.clear()
        for handle in (*self._handles, self._after_step):
            handle.remove()

    def rewire_last(self) -> None:
        """Rewire after all that now hooks the end of the optimizer's step: hooks that put back what they changed for the step."""
        self._after_step.remove()
        self._after_step = self.optimizer.register_step_post_hook(self._after_optimizer_step)

    def register_hook(self, hook: Callable[[Mapping[str, Move]], None]) -> RemovableHandle:
        """Have `hook` called after each rewiring with the move of each layer, for whatever else follows connections.

        Returns:
            A handle whose `remove()` undoes this.
        """
        handle = RemovableHandle(self._hooks)
        self._hooks[handle.id] = hook
        return handle

    def state_dict(self) -> dict[str, Any]:
        """Where this object stands.

        Steps and rewirings so far, whether one is overdue, what the algorithm remembers, the budgets it began with, steps recorded for the
        rewiring to come, and the state of its own generator (None without one).
        """
        return {
            "steps": self.steps,
            "rewirings": self.rewirings,
            "overdue": self._overdue,
            "memory": dict(self.memory),
            "budgets": dict(self.budgets),
            "records": self._recorder.state(),
            "generator": None if self.generator is None else self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` stood. The topologies are in the model's own `state_dict`.

        Raises:
            ValueError: if the state is not one of `state_dict`, or has a generator where this object has none.
        """
        expected = {"steps", "rewirings", "overdue", "memory", "budgets", "records", "generator"}
        if set(state) != expected:
            raise ValueError(f"expected a state with {', '.join(sorted(expected))}, got {', '.join(sorted(map(str, state)))}")
        if (state["generator"] is None) != (self.generator is None) and not self._generator_made:
            raise ValueError(
                "the state was saved with a generator of its own and this Rewirer has none, or the other way round; pass generator= alike"
            )
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"].cpu())  # a checkpoint that was mapped to a GPU has it there
        self.steps, self.rewirings = state["steps"], state["rewirings"]
        self.memory, self.budgets = dict(state["memory"]), dict(state["budgets"])
        self._pending, self._overdue = False, state["overdue"]
        self._left_out = None
        self._recorder.load(state["records"], self._meet())
        self._begin_step()

    def _meet(self) -> Processes:
        """The processes that train together. They are made sure to begin alike when they are first more than one."""
        if self._processes.size > 1:
            return self._processes
        processes = together(self.layers.values(), self._group)
        if processes.size > 1:
            settings = {"every": self.schedule.every, "until": self.schedule.until, "grown_state": self.grown_state}
            said = ", ".join(f"{name}={value}" for name, value in settings.items())
            check_processes(processes, self.layers, self.optimizer, f"{self.algorithm}, {said}")
            if self.generator is None:
                self.generator, self._generator_made = shared_generator(processes, self._device), True
            check_generators(processes, self.generator, self._device)
        self._processes = processes
        return processes

    @property
    def _device(self) -> torch.device:
        return next(iter(self.layers.values())).parameter.device

    def _step(self) -> bool:
        self._owners.check()
        processes = self._meet()
        self._checked = True
        self.steps += 1
        self._left_out = None
        self._overdue |= self._pending  # the optimizer was never asked to take the step before it
        self._pending = False
        due = self.schedule.due(self.steps) or self._overdue
        if due and processes.size > 1:
            check_not_joined(self.layers)
        self._recorder.look()
        if due and self._sees_absent and not processes.all(self._has_gradients(), self._device):
            self._overdue, due = True, False
        if due and getattr(self.algorithm, "replaces_step", False):
            if self.steps == 2 and self.rewirings == 1:
                warnings.warn(
                    "every step so far was a rewiring in the place of the optimizer's step, so no weight was trained: pass every=2 or "
                    "more to the Rewirer (100 is usual)",
                    stacklevel=3,
                )
            self._rewire()
            self._left_out = next((grad for layer in self.layers.values() if (grad := layer.parameter.grad) is not None), None)
            return any(layer.met_float16 for layer in self.layers.values())
        if hasattr(self.algorithm, "penalty"):
            self._add_penalties()
        if due and getattr(self.algorithm, "sees_previous", False):
            self._previous = {name: layer.of_connections(layer.parameter.detach()).clone() for name, layer in self._trained().items()}
        self._pending = due
        self._steps_not_taken += 1
        if self._steps_not_taken == MOST_STEPS_NOT_TAKEN:
            warnings.warn(
                f"the last {MOST_STEPS_NOT_TAKEN} steps that rewirer.step() counted were not taken by the {type(self.optimizer).__name__} "
                "that this Rewirer holds: if training has another optimizer by now, make a Rewirer with that one",
                stacklevel=3,
            )
        if not due:
            self._recorder.end()
            self._begin_step()
        return True

    def _begin_step(self) -> None:
        """Record the step that begins, if it is one of those that the next rewiring looks at."""
        if self._sees_absent and (self._overdue or self.schedule.due_within(self.steps + 1, self._window)):
            self._recorder.begin(self._meet())
        else:
            self._recorder.clear()

    def _before_optimizer_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            if self._attachments:
                self._step()
            if not self._checked or self._owners.changed_alone():
                self._owners.check()
            self._leave_out()
            return None
        if not self._attachments:
            if self._sees_absent or hasattr(self.algorithm, "penalty"):
                raise RuntimeError(
                    "optimizer.step(closure) computes gradients after rewirer.step() has looked at them: call rewirer.attach() once, "
                    "and not step(); or run the closure before both, and optimizer.step() without it"
                )
            return None
        return self._with_step_after(closure, args, kwargs)

    def _with_step_after(self, closure: Callable[[], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The arguments of the optimizer's step with a closure that counts the iteration as soon as it has the gradients."""
        calls = 0

        def counted() -> Any:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise RuntimeError(
                    f"{type(self.optimizer).__name__} runs the closure several times in a step, with gradients of its own each time: there "
                    "is no one gradient to grow by. Use an optimizer that runs it once (SGD, Adam, AdamW, ...)"
                )
            loss = closure()
            with torch.no_grad():
                self._step()
                self._leave_out()
            return loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": counted}
        return (args[0], counted, *args[2:]), kwargs

    def _leave_out(self) -> None:
        """Keep the optimizer from a step that a rewiring has taken the place of."""
        left_out, self._left_out = self._left_out, None
        if left_out is None or not any(layer.parameter.grad is left_out for layer in self.layers.values()):
            return
        # An optimizer passes over parameters without a gradient: that is how a step is left out from inside.
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _after_optimizer_step(self, *_: Any) -> None:
        self._owners.stepped()
        self._checked = False
        self._steps_not_taken = 0
        if self._pending:
            self._rewire()

    def _trained(self) -> dict[str, TopologyLayer]:
        """Layers that may change; frozen ones, and those that the optimizer does not hold, stay as they are."""
        held = held_layers(self.layers, self.optimizer)  # asked anew: layers are unfrozen, and given to the optimizer, in the middle
        return {name: layer for name, layer in held.items() if layer.parameter.requires_grad}

    def _rewired(self) -> dict[str, TopologyLayer]:
        """Those of them that this rewiring is for: where gradients decide, the ones that have a gradient."""
        trained = self._trained()
        taking_part = {name: layer for name, layer in trained.items() if not self._recorder.of(name)[-1].empty}
        return taking_part if self._sees_absent and taking_part else trained

    def _has_gradients(self) -> bool:
        """Whether there is something to go by: no overflow, and no batch that is no number; a scaler skips such a step.

        Without any gradient a framework has left out a batch. A loop of one's own has called `step()` too early, which it is told.
        """
        gradients = [layer.parameter.grad for layer in self._trained().values()]
        present = [gradient for gradient in gradients if gradient is not None]
        return all(told(gradient.isfinite().all() for gradient in present)) and bool(present or not gradients or not self._attachments)

    @torch.no_grad()
    def _add_penalties(self) -> None:
        for name, layer in self._trained().items():
            if layer.parameter.grad is not None:
                layer.parameter.grad += layer.spread(self.algorithm.penalty(self._signals(name, layer)))  # type: ignore[union-attr]

    @torch.no_grad()
    def _rewire(self) -> None:
        began = time.perf_counter()
        self._pending = self._overdue = False
        # Two passes: whatever can be refused is refused before any layer changes.
        layers = self._rewired()
        self._recorder.settle()
        for layer in layers.values():
            # The kernels' plans are of topologies that are about to go, and would be the largest part of what is held meanwhile.
            layer.topology.forget()
        plans = {name: following(layer, self._wrapped, grown_state=self.grown_state) for name, layer in layers.items()}
        with exactly(next(iter(self.layers.values()))):
            new, memory = updated(self.algorithm, {name: self._signals(name, layer) for name, layer in layers.items()}, self.memory)
        moves = {name: move_of(layer, new[name]) for name, layer in layers.items()}
        for name, layer in layers.items():
            check_move(layer, moves[name])
        check_moves(self._meet(), moves, self.generator, self.rewirings + 1)
        for name, layer in layers.items():
            move = moves[name]
            if move.new is not layer.topology or bool(move.grown.any()) or move.acting is not layer.acting:
                apply(layer, move, plans[name])
        self.memory = memory
        self.absent_read, self._reads = self._reads.positions, Reads()
        self.rewirings += 1
        self._recorder.clear()
        self._owners.update()
        self._previous = {}
        self._begin_step()
        self.seconds += time.perf_counter() - began
        for hook in list(self._hooks.values()):
            hook(moves)

    def _signals(self, name: str, layer: TopologyLayer) -> Signals:
        def gradients() -> Tensor:
            if layer.parameter.grad is not None:
                return layer.of_connections(layer.parameter.grad)
            if all(one.parameter.grad is None for one in self._trained().values()):
                raise RuntimeError(f"layer {name!r} has no gradient: call loss.backward() before step(), and zero_grad() after it")
            return layer.of_connections(torch.zeros_like(layer.parameter))  # it took no part in this step

        def momentum() -> Tensor:
            found = momentum_of(self.optimizer, layer.parameter)
            return gradients() if found is None else layer.of_connections(found)

        group, second = group_of(self.optimizer, layer.parameter), second_moment_of(self.optimizer, layer)
        steps = self._recorder.of(name) if self._sees_absent else [DenseGradient(layer, unknown=NOT_SEEN)]
        return Signals(
            topology=layer.topology,
            values=layer.of_connections(layer.parameter.detach()),
            pattern=layer.pattern,
            absent=Gradient(name, steps[-1:], self._reads),
            absent_momentum=Momentum(name, steps, self._reads, smoothing_of(self.optimizer, group), second),
            progress=self.schedule.progress(self.steps),
            last=self.schedule.last(self.steps),
            generator=self.generator,
            name=name,
            output=name == self._output,
            budget=self.budgets[name],
            acting=None if layer.acting is None else layer.of_connections(layer.acting),
            learning_rate=learning_rate_of(self.optimizer, layer.parameter),
            read_gradients=gradients,
            read_momentum=momentum,
            read_previous=lambda: self._previous[name],
        )
