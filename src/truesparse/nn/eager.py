"""Can a sparse layer run here and now? Its kernels want numbers in memory; what records or transforms programs has none for them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch._C import _are_functorch_transforms_active, _get_dispatch_mode, _is_tracing, _len_torch_dispatch_stack
from torch._C import _TorchDispatchModeKey as Mode
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

DENSE = torch.strided


EXPORT = "export ts.densify(copy.deepcopy(model)), which computes the same, or write a file with ts.export_onnx; for speed use ts.pack"
TRACE = "make it a leaf of the tracer (is_leaf_module), or trace ts.densify(copy.deepcopy(model)); ts.pack traces the model itself"
TRANSFORM = "transform ts.densify(copy.deepcopy(model)), which computes the same; torch.autograd works as ever, also twice"


def check_eager(layer: nn.Module, x: Tensor) -> None:
    """Refuse an input that is being traced or transformed.

    Raises:
        TypeError: under torch.jit.trace, make_fx, torch.export, fx.symbolic_trace and torch.func, and for sparse inputs.
    """
    # One line that costs next to nothing where all is well, which is always.
    if _is_tracing() or _are_functorch_transforms_active() or _len_torch_dispatch_stack() or type(x) is not Tensor or x.layout is not DENSE:
        _check(type(layer).__name__, x)


def _check(kind: str, x: Tensor) -> None:
    if _is_tracing():
        raise refusal(kind, "torch.jit.trace")
    if _are_functorch_transforms_active():
        raise refusal(kind, "torch.func (grad, vmap, jacrev and others)", TRANSFORM)
    if _get_dispatch_mode(Mode.PROXY) is not None:
        raise refusal(kind, "make_fx")
    if isinstance(x, fx.Proxy):
        raise refusal(kind, "torch.fx.symbolic_trace", TRACE)
    fake = _get_dispatch_mode(Mode.FAKE) is not None or _get_dispatch_mode(Mode.FUNCTIONAL) is not None
    if fake or isinstance(x, (FakeTensor, FunctionalTensor)):
        raise refusal(kind, "torch.export")
    if x.layout is not DENSE:
        raise TypeError(f"{kind} takes dense inputs, got one of layout {x.layout}: convert it with .to_dense()")


def refusal(kind: str, what: str, instead: str = EXPORT) -> TypeError:
    """The error that says `what` cannot follow the kernels of a layer of this `kind`, and what can be done `instead`."""
    return TypeError(f"truesparse: {kind} runs kernels of its own, which {what} cannot follow: {instead}")
