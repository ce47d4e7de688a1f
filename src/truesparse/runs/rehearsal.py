"""Will this recipe train? A copy of the model takes a batch or two before anything is begun, so that what does not fit is one line."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import topology_layers
from .batches import Batches
from .errors import ConfigError
from .recipe import Recipe
from .user_file import failure

LOOKS = 8  # batches after which a layer without a gradient is believed to be unused: networks may leave out layers at random
IGNORED = -100  # the label that cross entropy skips


def rehearse(
    model: nn.Module, recipe: Recipe, train: Batches, test: Batches, autocast: Callable[[], AbstractContextManager[object]] = nullcontext
) -> None:
    """Trains a copy of `model` on the first batch, and on the last where that is smaller, without a step; then tests it on a batch.

    Nothing is changed by it: not the model, and not the random numbers to come.

    Raises:
        ConfigError: if data, model and loss do not fit together. The message says what to do.
    """
    with _randomness_kept():
        rehearsal = _Rehearsal(model, recipe, autocast)
        for which, batches in (("training", train), ("test", test)):
            if batches.tensors is not None:
                rehearsal.refuse_unfinite(f"the {which} data", batches.tensors[0])
        outputs = rehearsal.train_on("a training batch", train, 0)
        remainder = train.samples % train.batch_size
        if train.steps > 1 and remainder:
            try:
                rehearsal.train_on("the last training batch", train, train.steps - 1)
            except ConfigError as error:
                had = f"the last batch of an epoch has {remainder} of {train.samples} samples"
                raise ConfigError(f"{had}: {_other_batch_size(train)} ({error})") from error.__cause__
        rehearsal.refuse_unused_layers(train)
        for which, batches in (("training", train), ("test", test)):
            if batches.tensors is not None and rehearsal.takes_classes:
                rehearsal.refuse_classes(f"the {which} data", outputs, batches.tensors[1])
        rehearsal.test_on(test)


class _Rehearsal:
    def __init__(self, model: nn.Module, recipe: Recipe, autocast: Callable[[], AbstractContextManager[object]]) -> None:
        self.recipe, self.autocast = recipe, autocast
        try:
            self.model = deepcopy(model).train()
        except Exception as error:
            raise self._failed("its model cannot be copied", error) from error

    def train_on(self, what: str, train: Batches, step: int) -> Any:
        """Forward, loss and backward on the batch of the first epoch at `step`; the outputs."""
        inputs, targets = self._batch(what, train, step)
        outputs = self._outputs(what, inputs)
        loss = self._loss(what, outputs, targets)
        if not loss.requires_grad:
            raise ConfigError(f"{self._named}: the loss depends on no weight: compute it in loss() from the outputs, without detach()")
        try:
            loss.backward()
        except Exception as error:
            raise self._failed("its backward pass fails", error) from error
        return outputs

    def test_on(self, test: Batches) -> None:
        """A batch of the test data, and one sample: what happens between epochs."""
        self.model.eval()
        with torch.no_grad():
            inputs, targets = self._batch("a test batch", test, 0)
            self._loss("a test batch", self._outputs("a test batch", inputs), targets)
            self._outputs("a single test sample", test.first(1))

    def refuse_unused_layers(self, train: Batches) -> None:
        """Layers with a topology that come to no gradient: they could not be trained, and nobody would know."""
        for look in range(1, LOOKS):
            if not self._unused():
                return
            self.train_on("a training batch", train, look)
        unused = self._unused()
        if not unused:
            return
        layers = f"layer {unused[0]!r} takes" if len(unused) == 1 else f"layers {', '.join(map(repr, unused))} take"
        excluded = " ".join(f"--exclude {name}" for name in unused)
        raise ConfigError(
            f"{self._named}: {layers} no part in the loss: use it in forward(), remove it, or leave it dense and untrained with {excluded}"
        )

    def _unused(self) -> list[str]:
        def waits(layer: nn.Module) -> bool:
            own = [parameter for parameter in layer.parameters(recurse=False) if parameter.requires_grad]
            return bool(own) and all(parameter.grad is None for parameter in own)

        layers = topology_layers(self.model)
        unused = [name for name, layer in layers.items() if waits(layer)]
        # None at all: a forward() that is a closure works on the model itself, whatever its copy is called with.
        return unused if len(unused) < len(layers) else []

    def refuse_unfinite(self, what: str, inputs: Any) -> None:
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or bool(inputs.isfinite().all()):
            return
        sample = int((~inputs.isfinite()).flatten(1).any(1).nonzero()[0]) if inputs.ndim > 1 else int((~inputs.isfinite()).nonzero()[0])
        raise ConfigError(f"{self._named}: NaN or infinity in {what}, first in sample {sample}: clean it in data()")

    def refuse_classes(self, what: str, outputs: Tensor, targets: Tensor) -> None:
        """Labels for which the outputs have no score."""
        if targets.is_floating_point():
            return
        classes, counted = outputs.shape[1], targets[targets != IGNORED]
        if not counted.numel() or 0 <= int(counted.min()) <= int(counted.max()) < classes:
            return
        low, high = int(counted.min()), int(counted.max())
        remedy = "number them from 0" if low < 0 or high - low < classes else f"give its last layer {high + 1} outputs"
        found = f"the labels of {what} go from {low} to {high}, but the model has {classes} outputs, for 0 to {classes - 1}"
        raise ConfigError(f"{self._named}: {found}: {remedy}")

    @property
    def takes_classes(self) -> bool:
        """Whether the loss is the one of a recipe without one."""
        return self.recipe.loss is F.cross_entropy

    def _batch(self, what: str, batches: Batches, step: int) -> tuple[Any, Tensor]:
        try:
            return next(batches.shuffled(0, step % batches.steps))
        except ConfigError:
            raise
        except Exception as error:
            raise self._failed(f"its data or augment() fail at {what}", error) from error

    def _outputs(self, what: str, inputs: Any) -> Any:
        self.refuse_unfinite(what, inputs)
        with _entered(self.model) as entered, self.autocast():
            try:
                return self.model(inputs)
            except Exception as error:
                layer = f" in layer {entered[-1]!r}" if entered else ""
                raise self._failed(f"its model cannot take {what} {_said(inputs)}{layer}", error) from error

    def _loss(self, what: str, outputs: Any, targets: Tensor) -> Tensor:
        if self.takes_classes:
            self._refuse_targets(what, outputs, targets)
        try:
            with self.autocast():
                loss = self.recipe.loss(outputs, targets)
        except Exception as error:
            raise self._failed(f"loss() fails on {what}, outputs {_said(outputs)} and targets {_said(targets)}", error) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            raise ConfigError(f"{self._named}: loss() must return one number, the mean over a batch, got {_said(loss)}")
        if not bool(loss.isfinite()):
            raise ConfigError(
                f"{self._named}: the loss of {what} is {loss.item()} before any step, though its inputs are numbers: "
                "look at the model's initial weights and at loss()"
            )
        return loss

    @property
    def _named(self) -> str:
        return f"the recipe {self.recipe.path.name}"

    def _failed(self, happened: str, error: Exception) -> ConfigError:
        return ConfigError(failure(f"{self._named} cannot be trained: {happened}", error, self.recipe.path))

    def _refuse_targets(self, what: str, outputs: Any, targets: Tensor) -> None:
        """What cross entropy, the loss of a recipe without one, cannot take."""
        own = "or define loss(outputs, targets) for another task"
        if not isinstance(outputs, Tensor) or outputs.ndim < 2:
            raise ConfigError(f"{self._named}: the model must return scores of classes, [batch, classes], got {_said(outputs)}; {own}")
        expected = (*outputs.shape[:1], *outputs.shape[2:])
        if targets.is_floating_point() and targets.shape == outputs.shape:
            return  # shares of classes
        if targets.dtype not in (torch.int64, torch.uint8) or targets.shape != expected:
            wanted = f"numbers of classes, int64 {list(expected)} (labels.long()"
            flattened = ", .flatten()" if targets.numel() == outputs.numel() // outputs.shape[1] and targets.shape != expected else ""
            raise ConfigError(f"{self._named}: the targets of {what} must be {wanted}{flattened}), got {_said(targets)}; {own}")
        self.refuse_classes(what, outputs, targets)


@contextmanager
def _randomness_kept() -> Iterator[None]:
    """Whatever is drawn within, of torch's global generator, Python's or NumPy's, is drawn again afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def _entered(model: nn.Module) -> Iterator[list[str]]:
    """Names of the modules under way, the innermost last: where an error came from."""
    under_way: list[str] = []

    def enter(name: str) -> Any:
        return lambda *_: under_way.append(name)

    def leave(*_: Any) -> None:
        under_way.pop()

    handles = []
    for name, module in model.named_modules():
        if name:
            handles += [module.register_forward_pre_hook(enter(name)), module.register_forward_hook(leave)]
    try:
        yield under_way
    finally:
        for handle in handles:
            handle.remove()


def _other_batch_size(train: Batches) -> str:
    sizes = sorted(range(2, train.samples + 1), key=lambda size: abs(size - train.batch_size))
    alone = train.samples % train.batch_size == 1
    size = next((size for size in sizes if (train.samples % size != 1 if alone else train.samples % size == 0)), None)
    return "give more data" if size is None else f"choose another --batch-size, such as {size}"


def _said(value: Any) -> str:
    """Dtype and shape of a tensor, else the type."""
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
