"""How does the `Conv1D` of transformers, a linear layer with its weight transposed, become one that can be sparse?"""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from .base import Opened, linear


class OpenedConv1D(Opened):
    """`transformers.pytorch_utils.Conv1D`, as GPT-2 has it: y = x W + b with W [inputs, outputs], in a child `linear`.

    Attributes:
        linear: `nn.Linear(nx, nf)`, or the sparse layer in its place.
        dense_class: the class of the dense module.
    """

    linear: nn.Linear

    def __init__(self, layer: nn.Linear, dense_class: type[nn.Module]) -> None:
        super().__init__()
        self.linear, self.dense_class = layer, dense_class

    @classmethod
    def opening(cls, module: Any) -> Self:
        weight, bias = module.weight, module.bias
        layer = linear(weight.detach().t().contiguous().clone(), bias, (weight.requires_grad, bias.requires_grad))
        return cls(layer, type(module)).train(module.training)

    def closed(self) -> nn.Module:
        with torch.device("meta"):
            dense: Any = self.dense_class(self.nf, self.nx)  # type: ignore[call-arg]
        weight = self.linear.weight
        dense.weight, dense.bias = nn.Parameter(weight.detach().t().contiguous().clone(), weight.requires_grad), self.linear.bias
        return dense.train(self.training)  # type: ignore[no-any-return]

    @property
    def nf(self) -> int:
        """Outputs."""
        return self.linear.out_features

    @property
    def nx(self) -> int:
        """Inputs."""
        return self.linear.in_features

    @property
    def weight(self) -> Tensor:
        """[nx, nf], to be read."""
        return self.linear.weight.t()

    @property
    def bias(self) -> Tensor:
        """[nf]"""
        return self.linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """[..., nx] -> [..., nf]"""
        return self.linear(x)  # type: ignore[no-any-return]
