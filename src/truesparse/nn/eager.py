"""Can a sparse layer run here and now? Who records or transforms calls of torch's operators can follow it, and others cannot."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C import _is_any_autocast_enabled

from ..common.tracing import JIT_TRACE, SYMBOLIC_TRACE, follower, may_be_followed

DENSE = torch.strided

ONNX = "torch.onnx.export"
EXPORT = (
    "give it ts.densify(copy.deepcopy(model)), which computes the same, export the model itself with torch.export, or write a file with "
    "ts.export_onnx; for speed use ts.pack"
)
INSTEAD = {
    SYMBOLIC_TRACE: "make it a leaf of the tracer (is_leaf_module), or trace ts.densify(copy.deepcopy(model)); "
    "ts.pack traces the model itself",
    ONNX: "write the file with ts.export_onnx, or give it ts.densify(copy.deepcopy(model)), which computes the same",
}


def check_followed(layer: nn.Module, x: Tensor) -> bool:
    """Whether somebody records or transforms what is called, and sees it: all that does but torch.compile.

    Raises:
        TypeError: under torch.jit.trace, torch.onnx.export and fx.symbolic_trace, and for sparse inputs.
    """
    if torch.compiler.is_compiling():
        return False
    followed = may_be_followed()
    if followed or type(x) is not Tensor or x.layout is not DENSE:  # never, nearly always
        _check(type(layer).__name__, x)
    return followed


def nothing_unusual(x: Tensor) -> bool:
    """Whether nobody compiles, follows or rounds a call with this input, and it is a dense tensor of no class of its own."""
    return not (
        torch.compiler.is_compiling() or may_be_followed() or type(x) is not Tensor or x.layout is not DENSE or _is_any_autocast_enabled()
    )


def _check(kind: str, x: Tensor) -> None:
    who = follower(x)
    if who in (JIT_TRACE, SYMBOLIC_TRACE):
        raise refusal(kind, ONNX if torch.onnx.is_in_onnx_export() else who)
    if x.layout is not DENSE:
        raise TypeError(f"{kind} takes dense inputs, got one of layout {x.layout}: convert it with .to_dense()")


def refusal(kind: str, who: str) -> TypeError:
    """The error that says `who` cannot follow the kernels of a layer of this `kind`, and what can be done instead."""
    return TypeError(f"truesparse: {kind} runs kernels of its own, which {who} cannot follow: {INSTEAD.get(who, EXPORT)}")
