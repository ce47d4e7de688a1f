"""Does somebody write down or transform what is called? Kernels want numbers in memory, and are no operators to those who do."""

from __future__ import annotations

import torch
from torch import fx
from torch._C import _are_functorch_transforms_active, _get_dispatch_mode, _is_tracing, _len_torch_dispatch_stack
from torch._C import _TorchDispatchModeKey as Mode
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

FUNC = "torch.func (grad, vmap, jacrev and others)"
JIT_TRACE = "torch.jit.trace"
SYMBOLIC_TRACE = "torch.fx.symbolic_trace"
EXPORT = "torch.export"  # and all else that calls with tensors that have no memory


def may_be_followed() -> bool:
    """Whether it is worth asking `follower`: three questions that cost next to nothing, and are answered with no nearly always."""
    return _is_tracing() or _are_functorch_transforms_active() or _len_torch_dispatch_stack() > 0


def follower(*inputs: object) -> str | None:
    """Who writes down or transforms a call with these inputs, by its name in torch; None if nobody does."""
    if torch.compiler.is_exporting():
        return EXPORT
    if _is_tracing():
        return JIT_TRACE
    if _are_functorch_transforms_active():
        return FUNC
    if _get_dispatch_mode(Mode.PROXY) is not None:
        return "make_fx"
    if is_fx_symbolic_tracing() or any(isinstance(one, fx.Proxy) for one in inputs):
        return SYMBOLIC_TRACE
    faked = _get_dispatch_mode(Mode.FAKE) is not None or _get_dispatch_mode(Mode.FUNCTIONAL) is not None
    return EXPORT if faked or any(isinstance(one, (FakeTensor, FunctionalTensor)) for one in inputs) else None
