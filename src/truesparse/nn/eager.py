"""Can a sparse layer run here and now? Its kernels want numbers in memory; what records or transforms programs has none for them."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch._C import _TorchDispatchModeKey as Mode
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor

KNOWN = (Tensor, nn.Parameter)


EXPORT = "export ts.densify(copy.deepcopy(model)), which computes the same, or write a file with ts.export_onnx; for speed use ts.pack"
TRACE = "make it a leaf of the tracer (is_leaf_module), or trace ts.densify(copy.deepcopy(model)); ts.pack traces the model itself"
TRANSFORM = "transform ts.densify(copy.deepcopy(model)), which computes the same; torch.autograd works as ever, also twice"


def check_eager(kind: str, x: Tensor) -> None:
    """Refuse an input that is being traced or transformed. `kind` names the layer.

    Raises:
        TypeError: under torch.jit.trace, make_fx, torch.export, fx.symbolic_trace and torch.func, and for sparse inputs.
    """
    if torch._C._is_tracing():
        raise refusal(kind, "torch.jit.trace")
    if torch._C._are_functorch_transforms_active():
        raise refusal(kind, "torch.func (grad, vmap, jacrev and others)", TRANSFORM)
    if torch._C._len_torch_dispatch_stack():
        if torch._C._get_dispatch_mode(Mode.PROXY) is not None:
            raise refusal(kind, "make_fx")
        if any(torch._C._get_dispatch_mode(mode) is not None for mode in (Mode.FAKE, Mode.FUNCTIONAL)):
            raise refusal(kind, "torch.export")
    if type(x) not in KNOWN:
        if isinstance(x, fx.Proxy):
            raise refusal(kind, "torch.fx.symbolic_trace", TRACE)
        if isinstance(x, (FakeTensor, FunctionalTensor)):
            raise refusal(kind, "torch.export")
    if x.layout is not torch.strided:
        raise TypeError(f"{kind} takes dense inputs, got one of layout {x.layout}: convert it with .to_dense()")


def refusal(kind: str, what: str, instead: str = EXPORT) -> TypeError:
    """The error that says `what` cannot follow the kernels of a layer of this `kind`, and what can be done `instead`."""
    return TypeError(f"truesparse: {kind} runs kernels of its own, which {what} cannot follow: {instead}")
