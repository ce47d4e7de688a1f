"""How does a student learn from its teacher? By a loss for any loop: the teacher's softened answers beside the right ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from .logits import Logits, logits_of
from .probe import Batch, Forward, Loss, called, evaluating

IGNORED = -100  # the label that cross entropy skips


def distill(
    student: nn.Module,
    teacher: nn.Module | Logits,
    temperature: float = 2.0,
    alpha: float = 0.5,
    *,
    match: Mapping[str, str] | None = None,
    match_weight: float = 1.0,
    loss: Loss | None = None,
    forward: Forward = called,
) -> Distillation:
    """A loss that has a student answer as its teacher does. Hinton et al. 2015, https://arxiv.org/abs/1503.02531

        distillation = ts.distill(model, dense)
        for x, y in loader:
            distillation(model(x), x, y).backward()

    It is (1 - alpha) times the loss of the right answers, plus alpha T^2 KL(p || q) with the softmax p of the teacher's logits over T and q
    of the student's, the mean over all samples and positions; T^2 keeps the size of the gradients whatever T is (section 2.1).

    Args:
        student: the model that trains, which the loop runs.
        teacher: the model it learns from, run here in eval mode without gradients; or what `teacher_logits` has kept of it.
        temperature: T, greater than 0.
        alpha: share of the teacher, in [0, 1].
        match: names of modules of the student, and of those of the teacher whose outputs theirs shall equal: their mean square
            differences are added. Of an output that is a tuple the first tensor counts.
        match_weight: what they are multiplied with.
        loss: of (logits, target); None: cross entropy, classes last. Where no target is given it is the `loss` of the student's output, as
            models of transformers give it.
        forward: calls the teacher on a batch, see `prune`.

    Raises:
        ValueError: if a setting is out of its range, or there is no module of a name.
    """
    return Distillation(student, teacher, temperature, alpha, match or {}, match_weight, loss or _cross_entropy, forward)


class Distillation:
    """What `distill` returns: a function of the student's output, see `__call__`."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Logits,
        temperature: float,
        alpha: float,
        match: Mapping[str, str],
        match_weight: float,
        loss: Loss,
        forward: Forward,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be greater than 0, got {temperature}")
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is the teacher's share of the loss and lies in [0, 1], got {alpha}")
        if match and isinstance(teacher, Logits):
            raise ValueError(
                "match compares with what is inside the teacher, of which a file of logits knows nothing: pass the teacher itself"
            )
        self.teacher, self.temperature, self.alpha = teacher, temperature, alpha
        self.match_weight, self._loss, self._forward = match_weight, loss, forward
        self._names = tuple(match.items())
        self._student = _Outputs(student, "student", [mine for mine, _ in self._names])
        self._teacher = _Outputs(teacher, "teacher", [theirs for _, theirs in self._names]) if match else None
        for outputs in (self._student, self._teacher):  # once the names of both are known to be there
            if outputs is not None:
                outputs.attach()

    def __call__(self, output: Any, batch: Batch, target: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """The loss, a scalar.

        Args:
            output: of the student for the batch: logits [..., classes], or an object with `logits`. Under autocast they are widened.
            batch: what the student was run on: the teacher's input too. Of a dict with "attention_mask", positions at 0 do not count.
            target: [...] the right classes; -100 does not count. Not needed with alpha=1, or where the output has a `loss`.
            index: [samples] which samples these are, where the teacher is a file of logits.

        Raises:
            ValueError: if shapes do not fit, or something that is needed is missing.
        """
        logits = logits_of(output)
        theirs = self._teacher_logits(batch, index, logits)
        if theirs.shape != logits.shape:
            raise ValueError(f"the teacher's logits are of shape {tuple(theirs.shape)}, the student's of {tuple(logits.shape)}")
        total = logits.new_zeros((), dtype=torch.promote_types(logits.dtype, torch.float32))
        if self.alpha < 1:
            total = total + (1 - self.alpha) * self._right_answers(output, logits, target)
        if self.alpha > 0:
            total = total + self.alpha * soft_loss(logits, theirs, self.temperature, _counting(batch, target, logits))
        for (mine, others), (hidden, wanted) in zip(self._names, self._hidden(), strict=True):
            if hidden.shape != wanted.shape:
                raise ValueError(
                    f"match: the output of {mine!r} in the student is of shape {tuple(hidden.shape)}, that of {others!r} in the teacher "
                    f"of {tuple(wanted.shape)}: name modules whose outputs are of one shape"
                )
            wide = _widened(hidden)
            total = total + self.match_weight * F.mse_loss(wide, wanted.to(wide))
        return total

    def detach(self) -> None:
        """Remove the hooks on student and teacher that matching needs."""
        self._student.detach()
        if self._teacher is not None:
            self._teacher.detach()

    @torch.no_grad()
    def _teacher_logits(self, batch: Batch, index: Tensor | None, like: Tensor) -> Tensor:
        if isinstance(self.teacher, Logits):
            if index is None:
                raise ValueError("the teacher is a file of logits, which knows samples by their number: pass index=")
            return self.teacher[index].to(like.device)
        with evaluating(self.teacher):
            return logits_of(self._forward(self.teacher, batch))

    def _right_answers(self, output: Any, logits: Tensor, target: Tensor | None) -> Tensor:
        if target is not None:
            return self._loss(logits, target)
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if own is None:
            raise ValueError("the loss of the right answers needs them: pass target=, or alpha=1 to learn from the teacher alone")
        return own

    def _hidden(self) -> list[tuple[Tensor, Tensor]]:
        if self._teacher is None:
            return []
        return list(zip(self._student.taken(), self._teacher.taken(), strict=True))


def soft_loss(logits: Tensor, wanted: Tensor, temperature: float, counting: Tensor | None = None) -> Tensor:
    """T^2 KL(softmax(wanted / T) || softmax(logits / T)), the mean over samples and positions. Hinton et al. 2015.

    Args:
        logits, wanted: [..., classes].
        temperature: T.
        counting: [...] bool, which positions count; None: all.
    """
    ours, theirs = (_widened(one) / temperature for one in (logits, wanted))
    each = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    mean = each.mean() if counting is None else (each * counting).sum() / counting.sum().clamp(min=1)
    return temperature**2 * mean


class _Outputs:
    """Keeps what modules of a model gave last."""

    def __init__(self, model: Any, whose: str, names: list[str]) -> None:
        self.whose, self.names = whose, names
        self.found: dict[str, Any] = {}
        self._modules = dict(model.named_modules())
        missing = [name for name in names if name not in self._modules]
        if missing:
            there = ", ".join(filter(None, self._modules))
            raise ValueError(f"match names {', '.join(map(repr, missing))}, which the {whose} has not; it has {there}")
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        self._handles = [self._modules[name].register_forward_hook(self._keeping(name)) for name in dict.fromkeys(self.names)]

    def taken(self) -> list[Tensor]:
        """In the order of the names; each run is for one loss."""
        found, self.found = self.found, {}
        silent = [name for name in self.names if name not in found]
        if silent:
            raise ValueError(f"match: {', '.join(map(repr, silent))} of the {self.whose} was not run since the last loss: run it, then ask")
        return [found[name] for name in self.names]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _keeping(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            self.found[name] = output if isinstance(output, Tensor) else next(iter(output))

        return keep


def _counting(batch: Batch, target: Tensor | None, logits: Tensor) -> Tensor | None:
    """[...] which positions count; None: all."""
    present = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if present is not None and present.shape == logits.shape[:-1]:
        return present.bool()
    return target != IGNORED if target is not None and target.shape == logits.shape[:-1] and not target.is_floating_point() else None


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"expected one class for each position, a target of shape {tuple(logits.shape[:-1])}, got {tuple(target.shape)}; "
            "for another loss pass loss="
        )
    return F.cross_entropy(_widened(logits).flatten(0, -2), target.flatten())


def _widened(array: Tensor) -> Tensor:
    """Rounded to 16 bits, a softmax has a handful of different values."""
    return array.to(torch.promote_types(array.dtype, torch.float32))
