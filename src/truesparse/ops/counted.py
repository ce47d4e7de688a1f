"""How many operations does a product take, for torch's counter? The kernels are no operators of torch, so each says its own number.

`torch.utils.flop_counter.FlopCounterMode` sees operators only. While it, or any other mode that looks at operators, is active, layers run
on verbs that call one which does nothing but carry the number: 2 for each connection, sample and output position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch.utils.flop_counter import register_flop_formula

from .verbs import Verbs

_library = torch.library.Library("truesparse", "DEF")
_library.define("operations(SymInt count) -> ()")
_library.impl("operations", lambda count: None, "CompositeExplicitAutograd")


@register_flop_formula(torch.ops.truesparse.operations)
def _operations(count: int, *_: Any, **__: Any) -> int:
    return count


class Counted:
    """Verbs that tell what they do. All else is that of the verbs themselves.

    Args:
        verbs: of kernels that torch does not see.
        connections: how many there are.
    """

    def __init__(self, verbs: Verbs, connections: int) -> None:
        self.verbs, self.connections = verbs, connections

    def __getattr__(self, name: str) -> Any:
        return getattr(self.verbs, name)

    def spmm(self, values: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = self.verbs.spmm(values, x, bias)
        self._tell(y)
        return y

    def spmm_t(self, values: Tensor, dy: Tensor, like: torch.Size) -> Tensor:
        self._tell(dy)
        return self.verbs.spmm_t(values, dy, like)

    def sddmm(self, dy: Tensor, x: Tensor) -> Tensor:
        self._tell(dy)
        return self.verbs.sddmm(dy, x)

    def backward(
        self, values: Tensor, x: Tensor, dy: Tensor, need: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        self._tell(dy, need[0] + need[1])
        return self.verbs.backward(values, x, dy, need)

    def _tell(self, y: Tensor, products: int = 1) -> None:
        rows = y.shape[1]
        torch.ops.truesparse.operations(2 * self.connections * products * (y.numel() // rows if rows else 0))


def counted(verbs: Verbs, connections: int) -> Verbs:
    """`verbs`, telling what they do if a mode that looks at operators is active and does not see it already (dense layers)."""
    if not _len_torch_dispatch_stack() or verbs.name == "dense":
        return verbs
    return Counted(verbs, connections)  # type: ignore[return-value]
