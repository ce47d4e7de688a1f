"""How does one network of a comparison train? Step by step, from any step, always in the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..common.devices import (
    CPU,
    clock_of,
    forget_peak,
    generator_state,
    held_bytes,
    module_of,
    on_device,
    peak_bytes,
    set_generator_state,
    synchronize,
)
from ..distributed import ALONE, Processes
from ..metrics import Tracker, connections, gradient_norms, live_bytes
from ..rewiring import Rewirer
from ..stability import ActivationPenalty, Average, DecayGrace
from ..stability.activations import hidden_layers
from ..topology.schedules import cosine, warmup
from .algorithm import is_file
from .batches import Batches, derived_seed, part_of
from .config import RunConfig
from .devices import AMP
from .errors import ConfigError, RunError
from .made import made_optimizer, made_variant
from .measure import right_answers, share_of_dx
from .phases import Phases
from .recipe import Recipe
from .rehearsal import rehearse
from .updates import Updates
from .user_file import failure

Metrics = dict[str, Any]
LOOKED_AT = 64  # samples, at the end of each epoch, for the zeros that layers read
STEPS_BETWEEN_READS = 50  # of losses on a GPU: reading one waits for all that the GPU has been asked to do


@dataclass(frozen=True)
class StepReport:
    """What an observer hears after each step. On a GPU the loss is that of the last step at which losses were read."""

    variant: str
    epoch: int  # from 1
    step: int  # from 1
    steps: int
    loss: float
    seconds: float  # of training, since the epoch began, by the clock of the host
    model: nn.Module | None = field(default=None, repr=False, compare=False)  # as this step has left it


@dataclass(frozen=True)
class Beginning:
    """How a network begins that its config alone does not make: one that was pruned, or rewound.

    Args:
        prepare: called with the new network before anything else sees it, to give it connections and values.
        step: of the training to begin at; those before are behind it.
    """

    prepare: Callable[[nn.Module], None]
    step: int = 0


class Variant:
    """One network ("dense", "masked" or "sparse") with its optimizer, its rewirer and its place in the training.

    Args:
        name: which variant.
        config: of the run.
        recipe: what is trained.
        train: training batches, on the device that trains.
        test: test batches, there too.
        state: a `state()` to go on from; None starts anew.
        processes: that train it together, each with its part of every batch.
        beginning: what is done to the network when it starts anew; None: nothing.

    Raises:
        ConfigError: if the model cannot be made sparse this way, the optimizer refuses it, or data, model and loss do not fit together.
    """

    def __init__(
        self,
        name: str,
        config: RunConfig,
        recipe: Recipe,
        train: Batches,
        test: Batches,
        state: Mapping[str, Any] | None = None,
        processes: Processes = ALONE,
        beginning: Beginning | None = None,
    ):
        self.name, self.config, self.recipe, self.train, self.test = name, config, recipe, train, test
        self.processes = processes
        self.epoch = 0  # epochs completed
        self.step = 0  # steps completed in the epoch under way
        self.device = train.device
        self.loss_sum, self.samples = 0.0, 0  # of those trained here
        self.phases = Phases(clock_of(self.device))
        self.bytes: dict[str, int] = {}
        self.peak_bytes: int | None = None
        self.gradient_norms: dict[str, float] = {}
        self.history: list[Metrics] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            # On the CPU, and then to the device: one seed is one network on all of them.
            self.model = made_variant(name, config, recipe.make_model())
        if state is None:
            if beginning is not None:
                beginning.prepare(self.model)
                self.epoch, self.step = divmod(beginning.step, train.steps)
            self.model.to(self.device)
            rehearse(self.model, recipe, train, test, self.autocast)
        else:
            self.model.load_state_dict(state["model"])
            self.model.to(self.device)
        self.parallel: nn.Module = self.model if processes.size == 1 else DistributedDataParallel(self.model)
        self.optimizer = made_optimizer(config, self.model)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.amp == "float16")
        self.rewirer = self._made_rewirer() if name != "dense" else None
        if self.rewirer is not None:
            self.rewirer.steps = self.epoch * train.steps + self.step
        with torch.random.fork_rng(devices=[]):
            self.tracker = Tracker(self.model, self.rewirer, test.first(LOOKED_AT), samples=min(LOOKED_AT, test.samples))
        self.updates = Updates(self.rewirer, train.steps) if self.rewirer is not None else None
        self.last_updates: dict[str, NDArray[Any]] = {}  # of the epoch completed last
        self.penalty, self.grace, self.average = self._made_stable()
        self.random_state = Generator().manual_seed(derived_seed(config.seed, "train")).get_state()
        self.device_random_state: Tensor | None = None  # of the device's own generator, on the CPU
        self._unread: list[tuple[Tensor, int, Any]] = []  # (loss, samples, inputs) of the steps since losses were read
        self._loss = 0.0  # of the last step read
        if state is not None:
            self._go_on(state)

    @property
    def total_steps(self) -> int:
        return self.train.steps * self.config.epochs

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.epochs

    def train_epoch(self, heard: Callable[[StepReport], None], stop: Callable[[], bool]) -> bool:
        """Trains to the end of the epoch, or to the first step after which `stop()` is true.

        Returns:
            Whether the epoch is complete; it then has been evaluated, and its metrics are the last of `history`.

        Raises:
            RunError: if the loss is no longer a number, or the recipe's or an own algorithm's code fails.
        """
        forget_peak(self.device)
        before = held_bytes(self.device)
        held = None if before is None else sum(live_bytes(self.model, self.optimizer).values())
        with self._own_randomness():
            self.model.train()
            batches = self.train.shuffled(self.epoch, self.step)
            asked = False
            while self.step < self.train.steps:
                self.phases.begin()
                try:
                    inputs, targets = next(batches)
                    loss = self._train_step(inputs, targets)
                    # Inputs are kept for what is said of a loss that is no number: only where it is read at once.
                    self._unread.append((loss, len(targets), inputs if self.device.type == "cpu" else None))
                    if self._reads():
                        asked = self._read(stop)
                except (ConfigError, RunError):
                    raise
                except Exception as error:
                    raise self._failed(f"epoch {self.epoch + 1}, step {self.step + 1}", error) from error
                self.phases.lap("other")
                self.step += 1
                heard(StepReport(self.name, self.epoch + 1, self.step, self.train.steps, self._loss, self.phases.elapsed, self.model))
                if self.step < self.train.steps and (asked if self.processes.size > 1 else stop()):
                    self._read(stop)
                    return False
            self.phases.settle()
            if before is not None and held is not None and (peak := peak_bytes(self.device)) is not None:
                # Of this network: beside it lie the data and the other variants.
                self.peak_bytes = max(self.peak_bytes or 0, held + peak - before)
            try:
                self._end_epoch()
            except Exception as error:
                raise self._failed(f"the test after epoch {self.epoch + 1}", error) from error
        return True

    def state(self) -> dict[str, Any]:
        """Everything that the steps to come depend on, as tensors on the CPU and plain values."""
        model = self.model.state_dict()
        for name, tensor in model.items():
            model[name] = tensor.to(CPU)  # in place: the mapping has the versions of its modules beside its entries
        held = {
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "samples": self.samples,
            "seconds": dict(self.phases.seconds),
            "history": self.history,
            "random_state": self.random_state,
            "device_random_state": {} if self.device_random_state is None else {self.device.type: self.device_random_state},
            "scaler": self.scaler.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rewirer": self.rewirer.state_dict() if self.rewirer is not None else None,
            "tracker": self.tracker.state_dict(),
            "updates": self.updates.state_dict() if self.updates is not None else None,
            "grace": self.grace.state_dict() if self.grace is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
        }
        return {**on_device(held, CPU), "model": model}

    def share_of_dx(self) -> float:
        """Of the backward pass, measured on a copy of the model, on the first training batch."""
        inputs, targets = next(self.train.in_order())
        with self._own_randomness():
            return share_of_dx(deepcopy(self.model).train(), lambda model: self._loss_of(model, inputs, targets))

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the network is called."""
        return nullcontext() if self.config.amp is None else torch.autocast(self.device.type, AMP[self.config.amp])

    def _loss_of(self, model: nn.Module, inputs: Any, targets: Tensor) -> Tensor:
        with self.autocast():
            return self.recipe.loss(model(inputs), targets)

    def _go_on(self, state: Mapping[str, Any]) -> None:
        self.epoch, self.step, self.loss_sum = (state[key] for key in ("epoch", "step", "loss_sum"))
        self.samples = state.get("samples", self.step * self.config.batch_size)  # an older checkpoint, of a run that began at its beginning
        self.phases.go_on(state["seconds"])
        self.history = [dict(metrics) for metrics in state["history"]]
        self.random_state = state["random_state"]
        self.device_random_state = state.get("device_random_state", {}).get(self.device.type)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state.get("scaler", {}) or self.scaler.state_dict())
        if self.rewirer is not None:
            # Numbers that were recorded lie where the layers are; the generator stays on the CPU.
            self.rewirer.load_state_dict({**state["rewirer"], "records": on_device(state["rewirer"]["records"], self.device)})
        self.tracker.load_state_dict(state["tracker"])
        if self.updates is not None:
            self.updates.load_state_dict(state["updates"])
        if self.grace is not None:
            self.grace.load_state_dict(state["grace"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def _reads(self) -> bool:
        """Whether losses are read after the step under way: on a CPU always, which has them."""
        return self.device.type == "cpu" or self.step % STEPS_BETWEEN_READS == 0 or self.step + 1 == self.train.steps

    def _read(self, stop: Callable[[], bool]) -> bool:
        """Takes in the losses of the steps since the last time; whether any of several processes has been asked to stop.

        Raises:
            RunError: if one is no number.
        """
        unread, self._unread = self._unread, []
        asked = False
        if not unread:
            return asked
        numbers = torch.stack([loss for loss, _, _ in unread]).double()
        if self.processes.size > 1:
            own = torch.cat([numbers / self.processes.size, numbers.new_tensor([float(stop())])])
            *losses, stopping = self.processes.total(own).tolist()
            asked = bool(stopping)
        else:
            losses = numbers.tolist()  # whoever hears of the step may still ask to stop
        self.phases.settle()
        for place, (loss, (_, samples, inputs)) in enumerate(zip(losses, unread, strict=True), 1 - len(unread)):
            if not isfinite(loss):
                raise RunError(self._without_a_loss(loss, self.step + 1 + place, inputs))
            self.loss_sum += loss * samples
            self.samples += samples
        self._loss = losses[-1]
        return asked

    def _train_step(self, inputs: Any, targets: Tensor) -> Tensor:
        """One step; the loss of this process's part of the batch, times its weight among all."""
        samples = len(targets)
        inputs, targets, weight = part_of((inputs, targets), self.processes)
        if self.processes.size > 1:  # each process draws for its own samples, and any step can be made anew
            torch.manual_seed(derived_seed(self.config.seed, "train", self.epoch, self.step, self.processes.rank))
        rate = self._learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            # Before the step and not after it: the gradients of the last step are still there when bytes are counted. What zero_grad
            # does around this takes as long as a small layer.
            for parameter in group["params"]:
                parameter.grad = None
        self.phases.lap("other")
        loss = self._loss_of(self.parallel, inputs, targets)
        penalised = loss if self.penalty is None else loss + self.penalty.loss()
        penalised = penalised if weight == 1.0 else penalised * weight
        self.phases.lap("forward")
        self.scaler.scale(penalised).backward()
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        if self.rewirer is not None and self.rewirer.schedule.due(self.rewirer.steps + 1):
            synchronize(self.device)  # what a rewiring takes is seen from the host: it shall not wait for the backward pass
        self.phases.lap("backward")
        self.tracker.step(samples)
        last = self.step + 1 == self.train.steps
        if last:  # here the kernel plans of this step are alive too; the optimizer may still have to make its state
            self.bytes = live_bytes(self.model, self.optimizer)
            self.gradient_norms = gradient_norms(self.model)
        self.phases.lap("other")
        rewiring, measuring = self._seconds_inside()
        if self.config.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if self.rewirer is None or self.rewirer.step():
            self.scaler.step(self.optimizer)
            if self.average is not None:
                self.average.update()
        if self.scaler.is_enabled():
            self.scaler.update()
        rewired, measured = self._seconds_inside()
        self.phases.lap("optimizer", {"rewiring": rewired - rewiring, "other": measured - measuring})
        if last:
            after = live_bytes(self.model, self.optimizer)
            self.bytes = {kind: max(count, after[kind]) for kind, count in self.bytes.items()}
            if self.average is not None:
                self.bytes["averages"] = self.average.nbytes
        return loss.detach() if weight == 1.0 else loss.detach() * weight

    def _seconds_inside(self) -> tuple[float, float]:
        """Seconds of (rewiring, following it) so far, both of which happen inside the optimizer's part of a step."""
        if self.rewirer is None or self.updates is None:
            return 0.0, 0.0
        return self.rewirer.seconds, self.tracker.seconds + self.updates.seconds

    def _learning_rate(self) -> float:
        step, rising = self.epoch * self.train.steps + self.step, self.config.warmup * self.train.steps
        highest = self.config.learning_rate * warmup(step, rising)
        return cosine(highest, (step - rising) / (self.total_steps - rising)) if self.config.schedule == "cosine" else highest

    def _end_epoch(self) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        test_loss, accuracy = self._evaluate()
        averaged: Metrics = {}
        if self.average is not None:
            with self.average.applied():
                averaged["ema_test_loss"], averaged["ema_test_accuracy"] = self._evaluate()
        report = self.tracker.report(self.gradient_norms)
        measuring, self.tracker.seconds = self.tracker.seconds, 0.0
        if self.updates is not None:
            self.last_updates = self.updates.take()
            measuring += self.updates.seconds
            self.updates.seconds = 0.0
        self.epoch += 1
        self.history.append(
            {
                "variant": self.name,
                "epoch": self.epoch,
                "train_loss": self.loss_sum / self.samples,
                "test_loss": test_loss,
                "test_accuracy": accuracy,
                **averaged,
                "seconds": round(self.phases.total, 4),
                "seconds_of": {phase: round(seconds, 4) for phase, seconds in self.phases.seconds.items()},
                "seconds_measuring": round(measuring, 4),
                "device": self.device.type,
                "learning_rate": rate,
                "connections": connections(self.model),
                "rewirings": self.rewirer.rewirings if self.rewirer is not None else 0,
                "bytes": {**self.bytes, "total": sum(self.bytes.values())},
                **({} if self.peak_bytes is None else {"peak_bytes": self.peak_bytes}),
                **report,
            }
        )
        self.step, self.loss_sum, self.samples, self.phases = 0, 0.0, 0, Phases(clock_of(self.device))
        self.peak_bytes = None

    @torch.no_grad()
    def _evaluate(self) -> tuple[float, float | None]:
        """(mean loss, share of right answers) on the test data; None where outputs are not scores of classes."""
        if self.processes.rank:
            return 0.0, None  # the first process has the buffers (of batch norm) that are kept, and its answers count
        self.model.eval()
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)  # read when all is done, as the right answers are
        right: Tensor | int = 0
        answers = 0
        for inputs, targets in self.test.in_order():
            with self.autocast():
                outputs = self.model(inputs)
                loss_sum += self.recipe.loss(outputs, targets).double() * len(targets)
            found = right_answers(outputs, targets)
            right, answers = right + found[0], answers + found[1]
        return loss_sum.item() / self.test.samples, int(right) / answers if answers else None

    def _made_rewirer(self) -> Rewirer:
        config = self.config
        every, until = config.steps_between_rewirings(self.train.steps), config.rewiring_ends * self.total_steps
        if not every < until and getattr(config.make_algorithm(), "rewires", True):
            raise ConfigError(
                f"{self.name}: no topology would ever change: the training has {self.total_steps} steps and rewires every {every} until "
                f"step {until:g}; pass a smaller --every, more --epochs, or --algorithm static"
            )
        try:
            return Rewirer(
                self.model,
                self.optimizer,
                config.make_algorithm(),
                every=every,
                until=until,
                generator=Generator().manual_seed(derived_seed(config.seed, "rewire")),
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.name}: {error}") from error

    def _made_stable(self) -> tuple[ActivationPenalty | None, DecayGrace | None, Average | None]:
        config = self.config
        penalty = grace = average = None
        try:
            if config.activation_l1 or config.activation_l2:
                penalty = ActivationPenalty(hidden_layers(self.model), config.activation_l1, config.activation_l2)
            if config.decay_grace and self.rewirer is not None:
                grace = DecayGrace(self.rewirer, config.decay_grace)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.name}: {error}") from error
        if config.ema is not None:
            average = Average(self.model, self.rewirer, config.ema)
        return penalty, grace, average

    def _failed(self, where: str, error: Exception) -> RunError:
        """The files of the epochs before are kept, and a resumed run comes to the same place again."""
        own = [Path(self.config.algorithm)] if is_file(self.config.algorithm) else []
        return RunError(failure(f"training of {self.name} failed in {where}", error, self.recipe.path, *own))

    def _without_a_loss(self, loss: float, step: int, inputs: Any) -> str:
        where = f"the loss of {self.name} is {loss} in epoch {self.epoch + 1}, step {step}"
        if isinstance(inputs, Tensor) and inputs.is_floating_point() and not bool(inputs.isfinite().all()):
            return f"{where}: the inputs of that step hold NaN or infinity: clean them in data() or augment()"
        return f"{where}: try a lower --lr, --clip 1 or --warmup 1; the files of the epochs before are kept"

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Whatever draws from torch's global generator (dropout, ...) draws from this variant's own stream."""
        before = generator_state(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.random_state)
            if before is not None:
                if self.device_random_state is None:
                    module_of(self.device).manual_seed(derived_seed(self.config.seed, "train", self.device.type))
                else:
                    set_generator_state(self.device, self.device_random_state)
            try:
                yield
            finally:
                self.random_state = torch.get_rng_state()
                if before is not None:
                    self.device_random_state = generator_state(self.device)
                    set_generator_state(self.device, before)
