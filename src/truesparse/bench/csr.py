"""How does torch itself run a sparse weight? As a CSR tensor: `F.linear` takes one, and so does `addmm`, which wants features first."""

from __future__ import annotations

import warnings
from copy import deepcopy

import torch
from torch import Tensor, nn


def csr_linear(dense: nn.Linear) -> nn.Linear:
    """The same layer, bias included, with its weight as a CSR tensor of torch, which `F.linear` takes; its gradient is dense."""
    layer = nn.Linear(dense.in_features, dense.out_features, bias=False, device="meta")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        layer.weight = nn.Parameter(dense.weight.detach().to_sparse_csr())
    if dense.bias is not None:
        layer.bias = nn.Parameter(dense.bias.detach().clone())
    return layer


def csr_network(dense: nn.Module) -> nn.Module | None:
    """A copy of a network whose linear layers have CSR weights, `addmm` or `F.linear` as the batch asks; convolutions stay dense.

    None if the network has no linear layer: torch has no convolution with a CSR weight.
    """
    if type(dense) is nn.Linear:
        return CSRLinear(dense).eval()
    network = deepcopy(dense)
    names = [name for name, module in network.named_modules() if type(module) is nn.Linear]
    for name in names:
        network.set_submodule(name, CSRLinear(network.get_submodule(name)))  # type: ignore[arg-type]
    return network.eval() if names else None


class CSRLinear(nn.Module):
    """A linear layer with a CSR weight, called in the way that is fast on a CPU.

    One sample goes through `F.linear`; more go through `addmm`, which with MKL is several times as fast for them.
    """

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.linear = csr_linear(dense)

    def forward(self, input: Tensor) -> Tensor:
        x = input.reshape(-1, self.linear.in_features)
        y = self.linear(x) if len(x) == 1 else csr_addmm(self.linear, x.t()).t()
        return y.reshape(*input.shape[:-1], self.linear.out_features)


def csr_addmm(layer: nn.Linear, x: Tensor) -> Tensor:
    """W x + bias [rows, batch] for `x` [columns, batch], W the CSR weight of `layer`."""
    if layer.bias is None:
        return torch.mm(layer.weight, x)
    return torch.addmm(layer.bias[:, None], layer.weight, x)
