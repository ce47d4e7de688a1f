"""In which other numbers could a linear layer be computed? Ways of its forward pass beside those of one dtype, as a GPU has them."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn import SparseConv2d, SparseLinear
from ..topology.patterns import NM
from .request import multiplied_in
from .wrong import TOLERANCE, TOLERANCE_OF_TF32

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
TWO_FOUR = NM(2, 4)


@dataclass(frozen=True)
class Beside:
    """One more way.

    Args:
        call: gives y.
        expected: what it should be, float64.
        tolerance: as `refuse_if_wrong` takes it.
    """

    call: Callable[[], Tensor]
    expected: Tensor
    tolerance: float


def beside(name: str, sparse: SparseLinear | SparseConv2d, dense: nn.Linear, x: Tensor, y: Tensor) -> Beside:
    """The way called `name`.

    Args:
        name: "dense_tf32"; "dense_bfloat16", "dense_float16"; "sparse_bfloat16", "sparse_float16" (samples; values stay in float32);
            "two_four", other weights of half as many, in torch's own 2:4 tensor in bfloat16.
        sparse: the layer.
        dense: its dense twin.
        x: [batch, columns] float32.
        y: [batch, rows] float64, what they should give.

    Raises:
        RuntimeError, NotImplementedError: if torch has not got it here.
    """
    if name == "dense_tf32":
        return Beside(_without_gradients(lambda: _in_tf32(dense, x)), y, TOLERANCE_OF_TF32)
    if name == "two_four":
        return _two_four(dense.weight.detach(), x)
    way, _, named = name.partition("_")
    dtype = DTYPES[named]
    narrow = x.to(dtype)
    if way == "sparse":
        layer = deepcopy(sparse).to(dtype)
        return Beside(_without_gradients(lambda: layer(narrow)), y, TOLERANCE[dtype])
    weight = dense.weight.detach().to(dtype)
    return Beside(_without_gradients(lambda: F.linear(narrow, weight)), y, TOLERANCE[dtype])


def _in_tf32(dense: nn.Module, x: Tensor) -> Tensor:
    with multiplied_in(tf32=True):
        return dense(x)


def _two_four(weight: Tensor, x: Tensor) -> Beside:
    generator = torch.Generator().manual_seed(0)
    rows, columns = weight.shape
    topology = TWO_FOUR.random((rows, columns), weight.numel() // 2, generator).to(weight.device)
    values = torch.randn(topology.nnz, generator=generator).to(weight.device, torch.bfloat16)
    pruned, narrow = topology.scatter(values), x.bfloat16()
    expected = F.linear(narrow.double(), pruned.double())
    held = torch.sparse.to_sparse_semi_structured(pruned)
    return Beside(_without_gradients(lambda: F.linear(narrow, held)), expected, TOLERANCE[torch.bfloat16])


def _without_gradients(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return torch.no_grad()(call)
