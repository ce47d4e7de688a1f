"""What is an opened module? It computes what a dense one does whose matrices no layer can replace; here they are layers, its children."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

# What may be inside of an opened module that can be closed again.
PARTS = (nn.Linear, nn.ModuleList, nn.ModuleDict)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Opened(nn.Module):
    """Computes the same as a dense module, from matrices that are `nn.Linear` children, so that each can be made sparse by itself.

    To everything else (budgets, names, files, twins, rewiring, packing) those children are layers like all others. What is added here:
    `opening` makes it of the dense module, `closed` makes the dense module of it.
    """

    when_asked: ClassVar[bool] = False  # whether modules of its kind stay closed unless somebody asks
    whole: ClassVar[bool] = False  # whether a graph holds it as one call, for what it does depends on values or lengths

    @classmethod
    def reason_against(cls, module: nn.Module) -> str:
        """Why this dense module, of the right class, cannot be opened; or nothing."""
        return ""

    @classmethod
    @abstractmethod
    def opening(cls, module: nn.Module) -> Self:
        """An opened module with the parameters, device and mode of a dense one, which is left as it is.

        Each child has memory of its own, or the very parameter that `module` has: one child may stay dense where others become sparse.
        """

    @abstractmethod
    def closed(self) -> nn.Module:
        """The dense module that computes exactly the same, under the names that its parameters have in a `state_dict`.

        Only where `can_be_closed`.
        """

    @property
    def can_be_closed(self) -> bool:
        """Whether all matrices are dense, and there is nothing here that the dense module has no place for: other layers, hooks."""
        parts = [part for part in self.modules() if part is not self]
        return all(type(part) in PARTS for part in parts) and not any(getattr(one, hooks) for one in (self, *parts) for hooks in HOOKS)


def outside(forward: Callable[..., Any], *inputs: Any) -> Any:
    """A call that torch.compile leaves as it is: its graph ends before it and goes on after it, as torch has it for its own LSTM.

    How many operations there are depends on lengths and on values, and a graph would be one of them.
    """
    called: Callable[..., Any] = torch.compiler.disable(forward)  # type: ignore[assignment]
    return called(*inputs)


def linear(weight: Tensor, bias: Tensor | None, requires_grad: tuple[bool, bool] = (True, True)) -> nn.Linear:
    """A dense layer of a weight [rows, columns] and a bias [rows], which are its own or parameters that it takes over."""
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias is not None, device="meta")
    layer.weight = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad[0])
    if bias is not None:
        layer.bias = bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias, requires_grad[1])
    return layer
