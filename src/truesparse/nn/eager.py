"""Can a sparse layer run here and now? Who writes down programs in torch's operators can follow it, and others cannot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..common.tracing import JIT_TRACE, SYMBOLIC_TRACE, follower, may_be_followed

DENSE = torch.strided

EXPORT = "export it with torch.export, write a file with ts.export_onnx, or give it ts.densify(copy.deepcopy(model)), which computes the same"
ONNX = "torch.onnx.export"
NOT = (JIT_TRACE, SYMBOLIC_TRACE)
INSTEAD = {
    ONNX: "write the file with ts.export_onnx, or export ts.densify(copy.deepcopy(model)), which computes the same",
    SYMBOLIC_TRACE: "make it a leaf of the tracer (is_leaf_module), or trace ts.densify(copy.deepcopy(model)); "
    "ts.pack traces the model itself",
}


def check_followed(layer: nn.Module, x: Tensor) -> bool:
    """Whether somebody records or transforms what is called, who sees torch's operators; torch.compile does not count.

    Raises:
        TypeError: under torch.jit.trace, torch.onnx.export and fx.symbolic_trace, which know no operators of others, and for sparse inputs.
    """
    # Lines that cost next to nothing where all is well, which is always.
    if torch.compiler.is_compiling():
        return False
    followed = may_be_followed()
    if followed or type(x) is not Tensor or x.layout is not DENSE:
        _check(type(layer).__name__, x)
    return followed


def _check(kind: str, x: Tensor) -> None:
    who = follower(x)
    if who is not None and (who in NOT or torch.onnx.is_in_onnx_export()):
        raise refusal(kind, ONNX if torch.onnx.is_in_onnx_export() else who)
    if x.layout is not DENSE:
        raise TypeError(f"{kind} takes dense inputs, got one of layout {x.layout}: convert it with .to_dense()")


def refusal(kind: str, who: str) -> TypeError:
    """The error that says `who` cannot follow the kernels of a layer of this `kind`, and what can be done instead."""
    return TypeError(f"truesparse: {kind} runs kernels of its own, which {who} cannot follow: {INSTEAD.get(who, EXPORT)}")
