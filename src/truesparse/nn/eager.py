"""Can a sparse layer run here and now? Who writes down programs in torch's operators can follow it, and others cannot."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..common.tracing import JIT_TRACE, SYMBOLIC_TRACE, follower, may_be_followed

DENSE = torch.strided

EXPORT = "export it with torch.export, write a file with ts.export_onnx, or give it ts.densify(copy.deepcopy(model)), which computes the same"
INSTEAD = {
    SYMBOLIC_TRACE: "make it a leaf of the tracer (is_leaf_module), or trace ts.densify(copy.deepcopy(model)); "
    "ts.pack traces the model itself",
}


def check_eager(layer: nn.Module, x: Tensor) -> None:
    """Refuse an input that is being traced by what knows no operators of others.

    Raises:
        TypeError: under torch.jit.trace, torch.onnx.export and fx.symbolic_trace, and for sparse inputs.
    """
    # One line that costs next to nothing where all is well, which is always.
    if may_be_followed() or type(x) is not Tensor or x.layout is not DENSE:
        _check(type(layer).__name__, x)


def _check(kind: str, x: Tensor) -> None:
    who = "torch.onnx.export" if torch.onnx.is_in_onnx_export() else follower(x)
    if who in ("torch.onnx.export", JIT_TRACE, SYMBOLIC_TRACE):
        raise refusal(kind, who)
    if x.layout is not DENSE:
        raise TypeError(f"{kind} takes dense inputs, got one of layout {x.layout}: convert it with .to_dense()")


def refusal(kind: str, who: str) -> TypeError:
    """The error that says `who` cannot follow the kernels of a layer of this `kind`, and what can be done instead."""
    return TypeError(f"truesparse: {kind} runs kernels of its own, which {who} cannot follow: {INSTEAD.get(who, EXPORT)}")
