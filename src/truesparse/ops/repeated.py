"""How does a matrix that is used at every step of a sequence get its gradient? From all steps at once, when the last has been seen.

One sampled product over all steps reads and writes the nnz gradient once; a product for each step would do so every time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, Variable

from .autograd import Heard, _Sampled, _saved, _Transposed
from .verbs import Verbs, values_dtype, widened

Samples = list[tuple[Tensor, Tensor]]  # (dy, x) of each step


class Repeated:
    """x -> W x + bias, to be called at every step of one sequence. Differentiable, also twice, as `product` is.

    Args:
        values: [nnz].
        bias: [rows], or None.
        verbs: of the matrix.
        heard: as for `product`; called once in a backward pass, with the samples of all steps.
    """

    def __init__(self, values: Tensor, bias: Tensor | None, verbs: Verbs, heard: Heard | None = None) -> None:
        self.values, self.bias = widened(values), None if bias is None else widened(bias)
        self.verbs = verbs
        self.steps = _Steps(verbs, heard)
        self._end: Tensor = _End.apply(self.values, self.bias, self.steps)  # type: ignore[assignment]

    def __call__(self, x: Tensor) -> Tensor:
        """[batch, columns] -> [batch, rows]"""
        result: Tensor = _Step.apply(self._end, self.values, x, self.bias, self.steps)  # type: ignore[assignment]
        return result


class _Steps:
    """What the steps have left for the end, apart for each backward pass: one that ends before it takes its samples along."""

    def __init__(self, verbs: Verbs, heard: Heard | None) -> None:
        self.verbs, self.heard = verbs, heard
        self._samples: dict[int, Samples] = {}

    def add(self, dy: Tensor, x: Tensor) -> None:
        number = torch._C._current_graph_task_id()
        if number not in self._samples:
            self._samples[number] = []
            Variable._execution_engine.queue_callback(lambda: self._forget(number))
        self._samples[number].append((dy, x))

    def _forget(self, number: int) -> None:
        self._samples.pop(number, None)

    def take(self) -> Samples:
        return self._samples.pop(torch._C._current_graph_task_id(), [])


class _End(Function):
    """Gives a number that every step takes, so that its turn in a backward pass is after all of theirs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor | None, steps: _Steps) -> Tensor:
        ctx.steps = steps
        ctx.save_for_backward(values)
        return values.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        samples: Samples = ctx.steps.take()
        if not samples:
            return None, None, None
        (values,) = ctx.saved_tensors
        dy, x = (torch.cat([sample[side] for sample in samples]) for side in (0, 1))
        dvalues, _, dbias = ctx.steps.verbs.backward(values, x, dy, (ctx.needs_input_grad[0], False, ctx.needs_input_grad[1]))
        if ctx.steps.heard is not None and dvalues is not None:
            ctx.steps.heard(dvalues, dy, x)
        return dvalues, dbias, None


class _Step(Function):
    @staticmethod
    def forward(ctx: Any, end: Tensor, values: Tensor, x: Tensor, bias: Tensor | None, steps: _Steps) -> Tensor:
        ctx.steps = steps
        ctx.save_for_backward(values, x)
        return steps.verbs.spmm(values, x, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        values, x = _saved(ctx)
        need, steps = ctx.needs_input_grad, ctx.steps
        if torch.is_grad_enabled():
            # Someone asked for create_graph: the gradient of each step by itself, through the differentiable verbs.
            dvalues = _Sampled.apply(dy, x, steps.verbs, steps.heard) if need[1] else None
            dx = _Transposed.apply(values, dy, x.shape, steps.verbs, steps.heard) if need[2] else None
            dbias = dy.sum(0, dtype=values_dtype(dy.dtype)) if need[3] else None
            if steps.heard is not None and dvalues is not None:
                steps.heard(dvalues, dy, x)
            return None, dvalues, dx, dbias, None  # type: ignore[return-value]
        if need[0]:
            steps.add(dy, x)
        dx = steps.verbs.spmm_t(values, dy, x.shape) if need[2] else None
        return values.new_zeros(()) if need[0] else None, None, dx, None, None
