"""What has been read from where pruned weights are? Tensors by name, in the shapes that torch's modules have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Source:
    """
    Attributes:
        tensors: by name, weights marked (see `marked.py`). Those of one layer have names that differ after the last dot only: "fc1.weight",
            "fc1.bias".
        may_be_left: those that need no place in a model: constants that only a graph has.
        linear: matrices [outputs, inputs] of products, which are weights of an `nn.Linear` and of nothing else.
        kernels: those of convolutions that their library lays out differently where they are transposed, which is not read.
        foreign: names are not those of torch's modules, so that where they match nothing, order and shapes may tell.
    """

    tensors: Mapping[str, Tensor]
    may_be_left: frozenset[str] = frozenset()
    linear: frozenset[str] = frozenset()
    kernels: frozenset[str] = frozenset()
    foreign: bool = False

    def layers(self) -> dict[str, dict[str, Tensor]]:
        """What must find a place, by layer and last part of the name, in order."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            if name not in self.may_be_left:
                layer, _, leaf = name.rpartition(".")
                found.setdefault(layer, {})[leaf] = tensor
        return found
