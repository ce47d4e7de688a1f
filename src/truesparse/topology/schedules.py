"""When does an algorithm act, and how much does it change?"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi


def cosine(fraction: float, progress: float) -> float:
    """`fraction` decaying to 0 as `progress` goes from 0 to 1. Evci et al. 2020, section 3: f = alpha / 2 (1 + cos(pi t / T_end))."""
    return fraction / 2 * (1 + cos(pi * min(max(progress, 0.0), 1.0)))


def cubic(start: float, end: float, progress: float) -> float:
    """From `start` to `end`, fast at first. Zhu & Gupta 2017, equation 1: s = s_f + (s_i - s_f)(1 - t / T)^3."""
    return end + (start - end) * (1 - min(max(progress, 0.0), 1.0)) ** 3


def remaining(start: int, size: int, sparsity: float, progress: float, rounding: int = 0) -> int:
    """Connections left of `start` on the cubic way to `sparsity` of `size` positions, to the nearest connection and never more.

    Args:
        start: connections at progress 0.
        size: positions.
        sparsity: at progress 1.
        progress: 0 to 1.
        rounding: how many connections the start may lack of the end, because patterns round; all are left then.

    Raises:
        ValueError: if it lacks more.
    """
    end = round(size * (1 - sparsity))
    if start + rounding < end:
        raise ValueError(
            f"the layers begin with {start} connections of {size}, fewer than the {end} that a sparsity of {sparsity} leaves: "
            "make the model less sparse, or ask for a higher final sparsity"
        )
    return min(start, round(size * (1 - cubic(1 - start / size, sparsity, progress)))) if size else 0


def warmup(step: int, steps: float) -> float:
    """Factor of the learning rate at `step` (from 0), rising in a line to 1 over the first `steps` steps. Goyal et al. 2017, section 2.2,
    https://arxiv.org/abs/1706.02677

    Any loop can use it: `torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup(step, 500))`.
    """
    return min((step + 1) / steps, 1.0) if steps > 0 else 1.0


@dataclass(frozen=True)
class Periodic:
    """Acts every `every` steps, before step `until`.

    Args:
        every: steps between two actions, at least 1; the first comes at step `every`.
        until: steps; no action at this step or later. None: no end.

    Raises:
        ValueError: if `every` is not a positive whole number, or `until` is negative or a share of the training instead of a step.
    """

    every: int = 100
    until: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.every, int) or isinstance(self.every, bool) or self.every < 1:
            raise ValueError(f"every must be a whole number of steps, at least 1, got {self.every!r}")
        if self.until is not None and not self.until >= 0:
            raise ValueError(f"until must be a number of steps, at least 0, or None, got {self.until!r}")
        if self.until is not None and 0 < self.until < 1:
            raise ValueError(f"until is a step, not a share of the training: pass until={self.until} * total_steps, got {self.until!r}")

    def check_acts(self, replaces_step: bool = False) -> None:
        """
        Args:
            replaces_step: whether an action takes the place of a training step (RigL).

        Raises:
            ValueError: if no action would ever happen, or no training step before the last action.
        """
        if self.until is not None and not self.every < self.until:
            raise ValueError(
                f"no topology would ever change: the first rewiring is at step every={self.every}, and rewiring ends before step "
                f"until={self.until:g}. Pass a smaller every=, train longer, or use Static()"
            )
        if replaces_step and self.every == 1 and self.until is not None:
            raise ValueError(
                f"no weight would be trained before step until={self.until:g}: with this algorithm a rewiring takes the place of the "
                "optimizer's step, and every=1 leaves none. Pass every=2 or more (the paper: 100)"
            )

    def due(self, step: int) -> bool:
        """Whether to act at `step`, counted from 1."""
        return step % self.every == 0 and (self.until is None or step < self.until)

    def due_within(self, step: int, steps: int) -> bool:
        """Whether to act at `step` or one of those after it, `steps` in all."""
        due = -(-step // self.every) * self.every
        return due < step + steps and self.due(due)

    def last(self, step: int) -> bool:
        """Whether no action follows one at `step`."""
        return self.until is not None and not step + self.every < self.until

    def progress(self, step: int) -> float:
        """Share of the time to `until` that has passed at `step`: 0 to 1, always 0 without an end."""
        return min(step / self.until, 1.0) if self.until else 0.0
