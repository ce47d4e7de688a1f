"""May the kernels of a packed network run now? Only on memory that is there, and not while torch writes down what is called."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..common.tracing import follower, may_be_followed


def refuse_tracing(inputs: tuple[Any, ...]) -> None:
    """
    Args:
        inputs: of a call; while torch.fx traces it, no tuple.

    Raises:
        RuntimeError: if calls are being traced, exported or transformed, or an input has no memory.
    """
    # Asked at every call.
    if may_be_followed() or type(inputs) is not tuple or not all([type(one) is Tensor for one in inputs]):  # noqa: C419  # a list is faster
        who = follower(*inputs) if type(inputs) is tuple else follower(inputs)
        if who is not None:
            raise RuntimeError(refusal(who))


def refusal(who: str) -> str:
    """What to do instead."""
    return (
        f"a packed network of truesparse cannot go through {who}: its kernels are no operations of torch, a program made of them would "
        "compute something else. Give the network that it was packed from to truesparse.export_onnx or truesparse.densify, or pack after"
    )
