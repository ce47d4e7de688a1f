"""May the kernels of a packed network run now? Only on memory that is there, and not while torch writes down what is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.fx.experimental.proxy_tensor import get_proxy_mode

_inside_transform: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack  # type: ignore[attr-defined]
WITHOUT_MEMORY = (FakeTensor, FunctionalTensor)


def refuse_tracing(inputs: tuple[Any, ...]) -> None:
    """
    Args:
        inputs: of a call; while torch.fx traces it, no tuple.

    Raises:
        RuntimeError: if calls are being traced, exported or transformed, or an input has no memory.
    """
    # Asked at every call: three questions that the usual one answers with no.
    traced = torch._C._get_tracing_state() is not None or torch._C._len_torch_dispatch_stack() or _inside_transform() is not None
    if traced or type(inputs) is not tuple or not all([type(one) is Tensor for one in inputs]):  # noqa: C419  # a list is faster
        _refuse(inputs)


def _refuse(inputs: Any) -> None:
    who = _who_traces()
    if who is None and any(isinstance(one, WITHOUT_MEMORY) for one in inputs):
        who = "an input without memory (FakeTensor)"
    if who is not None:
        raise RuntimeError(refusal(who))


def refusal(who: str) -> str:
    """What to do instead."""
    return (
        f"a packed network of truesparse cannot go through {who}: its kernels are no operations of torch, a program made of them would "
        "compute something else. Give the network that it was packed from to truesparse.export_onnx or truesparse.densify, or pack after"
    )


def _who_traces() -> str | None:
    if is_fx_symbolic_tracing():
        return "torch.fx.symbolic_trace" if get_proxy_mode() is None else "make_fx"
    if torch.compiler.is_exporting():
        return "torch.export"
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace"
    if _inside_transform() is not None:
        return "a transform of torch.func"
    return "make_fx" if torch._C._len_torch_dispatch_stack() and get_proxy_mode() is not None else None
