"""What is a layer's `.grad` made of, at every moment? Followed from the start of a step to `Rewirer.step()`, whatever happens to it."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan, nan

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..nn import TopologyLayer
from ..nn.base import Part
from ..ops import values_dtype
from .dense_gradient import DenseGradient
from .flags import Flag, told

FROM_BEFORE = (
    "its .grad still held the gradient of earlier steps, which is not recorded: call zero_grad() in every iteration, "
    "before backward() or after optimizer.step()"
)
CHANGED = (
    "its .grad was changed after backward() in a way that cannot be told of absent connections (element by element, as clip_grad_value_ "
    "does, or set by hand): call rewirer.step() before that; multiplying all of it, as clip_grad_norm_ and GradScaler do, is followed"
)
HOOKED = (
    "a hook on its values changes their gradient in a way that cannot be told of absent connections: remove the hook, or let it only "
    "multiply the gradient by a number"
)


COMPUTED = (
    "its values were computed from others in the forward pass (torch.func.functional_call, a parametrization), so the gradients of absent "
    "connections cannot be told: call the layer with its own values in the steps that rewire"
)


class Follower:
    """Follows the gradient of one layer through a step.

    A backward pass tells of its parts before it knows whether they reach `.grad`; they count once autograd has accumulated the
    gradient in that very pass, and are forgotten when the pass ends without it (`torch.autograd.grad`, an attack on the inputs).
    What is done to `.grad` between two passes is read off it: nothing, multiplied by a number, or discarded.

    Args:
        layer: whose gradient it is.
        before: called when a backward pass first tells of something, before it accumulates anything.
        shared: whether several processes train together.

    Attributes:
        gradient: what `.grad` was made of when it was last looked at. Where several processes train together: this process's part
            of it. The mean over all processes is what `.grad` is made of, once it has been synchronised.
    """

    def __init__(self, layer: TopologyLayer, before: Callable[[int], None], shared: bool = False) -> None:
        self.layer, self.before = layer, before
        # Zeros, or discarded before the next pass, as nearly always: then that pass sees it, and this is forgotten.
        self.gradient = DenseGradient(layer, unknown="" if layer.parameter.grad is None else FROM_BEFORE)
        # By the number of the backward pass, with what it is at connections.
        self._passes: dict[int, tuple[DenseGradient, Tensor | None]] = {}
        self._seen: Tensor | None = None  # .grad when it was last looked at; None where it was zero, or not there
        self._at = _identity(layer.parameter.grad)
        self._own: Tensor | None = self._zeros() if shared else None  # this process's part of .grad, at the connections
        self._handles: list[RemovableHandle] = [layer.register_gradient_hook(self._told)]
        self._on_values = False
        self._listen_to_values()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._passes.clear()

    def settle(self) -> None:
        """Let go of the copy of `.grad`, after which `change()` can tell nothing any more."""
        self.remove()
        self._seen = None

    def look(self) -> tuple[Flag, Flag]:
        """Whether there is no `.grad` but zeros, and whether it is what it was when it was last seen: `change` takes what they say."""
        now = self.layer.parameter.grad
        return _vanished(now), now is not None and self._seen is not None and _equal(now, self._seen)

    def change(self, vanished: bool, same: bool) -> float | None:
        """The number by which `.grad` was multiplied since it was last seen, 0 if it was discarded, NaN if it was changed otherwise.

        None where it cannot be read off: it was zero and is, but was written in between.
        """
        now = self.layer.parameter.grad
        if vanished:
            return 0.0 if self._seen is not None or self.gradient.unknown else 1.0 if _identity(now) == self._at else None
        if self.gradient.unknown or same:
            return 1.0
        return nan if now is None or self._seen is None else _factor(now, self._seen)

    def take(self, factor: float) -> None:
        """Let the gradient be what `change()` says."""
        now = self.layer.parameter.grad
        if self._own is not None:
            self._own = self._own * factor if factor else self._zeros()
        if factor == 0.0 or now is None:
            self.gradient = DenseGradient(self.layer)
        elif isnan(factor):
            self.gradient = DenseGradient(self.layer, unknown=CHANGED)
        elif factor != 1.0:
            self.gradient = self.gradient.scaled(factor)
        if factor != 1.0:
            self._seen = None if now is None or _vanished(now) else now.clone()
        self._at = _identity(now)

    def part(self) -> Tensor:
        """[nnz] this process's part of `.grad`, at the connections."""
        assert self._own is not None
        return self._own

    def synchronised(self) -> None:
        """A backward pass is over: what `.grad` is now, it is in all processes."""
        now = self.layer.parameter.grad
        if self._at != _identity(now):
            self._seen, self._at = None if now is None or _vanished(now) else now.clone(), _identity(now)

    def _listen_to_values(self) -> None:
        """Hooks on the parameter need it to be trained: a layer may be unfrozen in the middle of a step."""
        values = self.layer.parameter
        if values.requires_grad and not self._on_values:
            self._on_values = True
            self._handles += [
                values.register_hook(lambda gradient: self.before(torch._C._current_graph_task_id())),
                values.register_post_accumulate_grad_hook(self._accumulated),
            ]

    def _told(self, part: Part) -> None:
        number = torch._C._current_graph_task_id()
        self.before(number)
        self._listen_to_values()
        if part.of is not self.layer.parameter and part.of.is_leaf:
            return  # another tensor stood in for the values, and has the gradient
        if number not in self._passes:
            self._passes[number] = DenseGradient(self.layer), None
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._forget(number))
        gradient, present = self._passes[number]
        known = part.of is self.layer.parameter
        with exactly(self.layer):
            added = DenseGradient.of(self.layer, part) if known else DenseGradient(self.layer, unknown=COMPUTED)
            # A copy: what a backward pass has computed may be what becomes `.grad`.
            here = part.present.to(values_dtype(part.present.dtype), copy=True) if present is None else present.add_(part.present)
            self._passes[number] = gradient.plus(added), here

    def _forget(self, number: int) -> None:
        self._passes.pop(number, None)

    @torch.no_grad()
    def _accumulated(self, values: Tensor) -> None:
        added, present = self._passes.pop(torch._C._current_graph_task_id(), (DenseGradient(self.layer), None))
        present, now = self._zeros() if present is None else present, values.grad
        if now is None:
            self.take(0.0)  # a hook has stepped an optimizer and discarded it
            return
        alone = self._seen is None and self._own is None and now.dtype == present.dtype
        alone, vanished = told([alone and _equal(now, present), _vanished(now)])
        if alone:
            # As nearly always: what the pass has computed is all there is. Told without any array more, for there may be little room.
            self.gradient = self.gradient.plus(added)
            self._seen, self._at = None if vanished else present, _identity(now)
            return
        before = torch.zeros_like(now) if self._seen is None else self._seen
        with exactly(self.layer):
            self.gradient, kept = self._after(now, before, added, present)
        if self._own is not None:
            self._own = kept * self._own + self.layer.of_connections(now - kept * before)
        self._seen, self._at = None if vanished else now.clone(), _identity(now)

    def _after(self, now: Tensor, before: Tensor, added: DenseGradient, present: Tensor) -> tuple[DenseGradient, float]:
        """What `.grad` is made of once the parts of a backward pass, with `present` at the connections, have made it `now` from `before`.

        Also by which number the pass has multiplied what there was before.
        """
        if not _is_hooked(self.layer.parameter):
            direct = self.layer.of_connections(now - before) - present
            if not _negligible(direct, now):
                added = added.plus(DenseGradient(self.layer, direct=direct))
            return self.gradient.plus(added), 1.0
        for kept, times in _multiples(self.layer.of_connections(now), self.layer.of_connections(before), present):
            return self.gradient.scaled(kept).plus(added.scaled(times)), kept
        return DenseGradient(self.layer, unknown=HOOKED), 1.0

    def _zeros(self) -> Tensor:
        return torch.zeros(self.layer.topology.nnz, dtype=values_dtype(self.layer.parameter.dtype), device=self.layer.parameter.device)


def exactly(layer: TopologyLayer) -> torch.autocast:
    """Inside, nothing is rounded to a narrower dtype: gradients of absent connections would be, before they are added up."""
    return torch.autocast(layer.parameter.device.type, enabled=False)


def _vanished(gradient: Tensor | None) -> Flag:
    return gradient is None or gradient.any().logical_not()


def _identity(gradient: Tensor | None) -> tuple[int, int] | None:
    return None if gradient is None else (id(gradient), gradient._version)


def _is_hooked(values: Tensor) -> bool:
    """Whether others than a `Follower` have hooks on the parameter, which may change its gradient."""
    return len(values._backward_hooks or ()) + len(values._post_accumulate_grad_hooks or ()) > 2  # type: ignore[attr-defined]


def _factor(now: Tensor, before: Tensor) -> float:
    """By which number `before`, not zero, was multiplied to give `now`; NaN if it was not."""
    if _equal(now, before):
        return 1.0
    one, other = now.double().flatten(), before.double().flatten()
    factor = float(one @ other / (other @ other))
    return factor if _negligible(one - factor * other, now) else nan


def _multiples(now: Tensor, before: Tensor, added: Tensor) -> list[tuple[float, float]]:
    """(a, b) such that `now` is a x before + b x added: at most one pair, none if there is no such."""
    if _equal(now, before + added):
        return [(1.0, 1.0)]
    columns = torch.stack([before.double(), added.double()], 1)
    if not columns.isfinite().all():
        return []
    solution = torch.linalg.lstsq(columns, now.double()[:, None], driver="gelsd").solution.squeeze(1)
    return [(float(solution[0]), float(solution[1]))] if _negligible(now.double() - columns @ solution, now) else []


def _equal(one: Tensor, other: Tensor) -> Flag:
    """Entry by entry, NaN equal to NaN."""
    other = other.to(one.dtype)
    if one.device.type != "cpu" and one.shape == other.shape:
        return ((one == other) | (one.isnan() & other.isnan())).all()
    return torch.equal(one, other) or (torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num()))


def _negligible(rest: Tensor, beside: Tensor) -> bool:
    """Whether `rest` is what rounding leaves of numbers like those in `beside`."""
    if not rest.numel():
        return True
    return float(rest.abs().max()) <= 8 * torch.finfo(beside.dtype).eps * float(beside.abs().max())
