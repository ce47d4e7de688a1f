"""How is a tensor written? Byte by byte of its numbers, lowest bytes first: all lowest bytes a stream, then all next ones, and so on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .container import Pieces
from .streams import Coded, decode, encode

NAMES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in NAMES}


@dataclass(frozen=True)
class CodedTensor:
    """A tensor as a file has it."""

    dtype: str
    shape: tuple[int, ...]
    planes: tuple[Coded, ...]

    @property
    def description(self) -> dict[str, Any]:
        return {"dtype": self.dtype, "shape": list(self.shape), "planes": [len(plane.content) for plane in self.planes]}

    @property
    def pieces(self) -> list[bytes]:
        return [plane.content for plane in self.planes]

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.pieces))

    @property
    def entropy(self) -> float:
        """In bits, of its bytes by their places."""
        return sum(plane.entropy for plane in self.planes)


def encode_tensor(tensor: Tensor) -> CodedTensor:
    """A tensor on the CPU.

    Raises:
        TypeError: if its numbers are of a kind that no file holds.
    """
    name = str(tensor.dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise TypeError(f"a compressed file holds tensors of {', '.join(DTYPES)}, got {name}")
    width = tensor.element_size()
    array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().reshape(-1, width)
    planes = tuple(encode(np.ascontiguousarray(array[:, place])) for place in range(width))
    return CodedTensor(name, tuple(tensor.shape), planes)


def decode_tensor(said: Any, pieces: Pieces) -> Tensor:
    """The tensor that was encoded.

    Raises:
        ValueError: if the description or the pieces are not of one.
    """
    dtype, shape, planes = fields(said, dtype=str, shape=list, planes=list)
    if dtype not in DTYPES:
        raise ValueError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r:.40}")
    width = DTYPES[dtype].itemsize
    if len(planes) != width or any(type(extent) is not int or not 0 <= extent < 2**62 for extent in shape) or len(shape) > 64:
        raise ValueError(f"a tensor of {dtype} has {width} planes and a shape, got {planes!r:.80} and {shape!r:.80}")
    count = prod(shape)
    array = np.stack([decode(pieces.take(length), count) for length in planes], axis=1)
    if dtype == "bool" and bool((array > 1).any()):
        raise ValueError("truths must be bytes of 0 and 1")
    return torch.from_numpy(array).reshape(-1).view(DTYPES[dtype]).reshape(shape)


def fields(said: Any, **kinds: type) -> Sequence[Any]:
    """The values of a JSON object, in order, which has exactly these names, of these types.

    Raises:
        ValueError: if it is another.
    """
    if type(said) is not dict or said.keys() != kinds.keys() or any(type(said[name]) is not kind for name, kind in kinds.items()):
        wanted = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
        raise ValueError(f"expected an object with {wanted}, got {said!r:.200}")
    return [said[name] for name in kinds]
