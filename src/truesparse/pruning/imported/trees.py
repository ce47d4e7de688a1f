"""What does a tree of parameters of Flax or Haiku say, in torch's names and shapes? Pruned weights in it, as of jaxpruner, are zero."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from .marked import from_anything
from .source import Source

COLLECTIONS = ("params", "batch_stats")
LEAVES = {
    "kernel": "weight",
    "w": "weight",
    "scale": "weight",
    "embedding": "weight",
    "embeddings": "weight",
    "b": "bias",
    "offset": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
INPUTS_FIRST = ("kernel", "w")


def is_tree(source: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Mapping) for value in source.values())


def read_tree(tree: Mapping[str, Any]) -> Source:
    """Kernels [inputs, outputs] and [height, width, inputs, outputs] are turned to what torch has.

    Raises:
        TypeError: if a leaf is no array of numbers.
    """
    leaves = sorted(_leaves(tree, ()), key=lambda leaf: [_natural(part) for part in leaf[0]])
    found: dict[str, Tensor] = {}
    linear, kernels = set[str](), set[str]()
    for path, value in leaves:
        *layer, leaf = path
        name = ".".join((*layer, LEAVES.get(leaf, leaf)))
        tensor = from_anything("/".join(path), value)
        if leaf in INPUTS_FIRST and tensor.ndim > 1:
            outputs, inputs, *space = tensor.ndim - 1, tensor.ndim - 2, *range(tensor.ndim - 2)
            tensor = tensor.permute(outputs, inputs, *space).contiguous()
            (linear if tensor.ndim == 2 else kernels).add(name)
        found[name] = tensor
    return Source(found, linear=frozenset(linear), kernels=frozenset(kernels), foreign=True)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        inside = path if not path and name in COLLECTIONS else (*path, *str(name).split("/"))
        if isinstance(value, Mapping):
            yield from _leaves(value, inside)
        elif value is not None:
            yield inside, value


def _natural(name: str) -> list[tuple[int, str]]:
    """Such that Dense_10 comes after Dense_2."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
