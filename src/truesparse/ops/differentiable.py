"""How is an operator differentiated, by torch.autograd and by torch.func alike? By formulas that are made of operators.

`torch.library.register_autograd` makes operators that torch.func.grad and forward mode cannot go through.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, _C
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled

Keep = Callable[..., None]
Formula = Callable[..., Any]


def differentiable(library: torch.library.Library, operator: Any, keep: Keep, backward: Formula, forward: Formula) -> None:
    """Give `operator` its formulas.

    Args:
        keep: called with (ctx, *inputs), keeps on ctx what the formulas want; tensors by `save_for_backward`.
        backward: called with (ctx, *gradients of the outputs), None for those that are zero; returns those of the inputs.
        forward: called with (ctx, *tangents of the inputs), None for those that have none; returns those of the outputs.
    """

    def below(keyset: Any, *inputs: Any) -> Any:
        with _C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & _C._after_autograd_keyset, *inputs)

    class Differentiable(Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            keyset, *inputs = inputs
            # torch.func hands the call on to the transforms around it: this function is not where their derivatives stop.
            with torch.enable_grad(), _set_fwd_grad_enabled(True):
                output = below(keyset, *inputs)
            keep(ctx, *inputs)
            ctx.save_for_forward(*ctx.to_save)
            ctx.set_materialize_grads(False)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> Any:
            return None, *backward(ctx, *gradients)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Any:
            return forward(ctx, *tangents[1:])

    # What Function.apply itself adds for torch.func is for functions that are no operators.
    apply = super(Function, Differentiable).apply  # type: ignore[misc]

    def kernel(keyset: Any, *inputs: Any) -> Any:
        transformed = _C._are_functorch_transforms_active()
        if not (transformed or forward_ad._current_level >= 0 or (_C.is_grad_enabled() and _C._any_requires_grad(*inputs))):
            return below(keyset, *inputs)
        with enable_single_level_autograd_function() if transformed else nullcontext():
            return apply(keyset, *inputs)

    library.impl(operator, kernel, "Autograd", with_keyset=True)
