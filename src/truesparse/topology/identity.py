"""Are a layer's buffers still the topology that was installed? What tells at once, and what tells for certain."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

FINGERPRINTS = 2**24  # below it, whole numbers are exact in float32, in which averages of state dicts are often taken
SPREAD = -1640531535  # 2^32 over the golden ratio, odd: places of neighbours are far apart modulo 2^32
SLAB = 2**17
SCATTER = -2048144789  # odd, as are about half of its bits: neighbouring entries are far apart, and differ in high bits


def version_of(tensor: Tensor) -> int:
    """How often it was written in place."""
    return 0 if tensor.is_inference() else tensor._version


def state_of(tensor: Tensor) -> tuple[int, int]:
    """What changes when it is written in place or its memory moves."""
    try:
        return tensor._version, tensor.data_ptr()
    except RuntimeError:  # an inference tensor counts nothing; asking first would take as long again
        return version_of(tensor), tensor.data_ptr()


def identity_of(indptr: Tensor, indices: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """The same of both arrays of a topology."""
    return state_of(indptr), state_of(indices)


def fingerprint(*buffers: Tensor) -> Tensor:
    """A number in [0, 2^24) made of all that the buffers hold, [] int32 on their device, which nothing waits for.

    The average of two topologies is another one with another number: of each entry and its place a number is made whose high bits are laid
    over the low ones before it is squared. A sum of squares alone would not do: of entries that differ by little, the square of the average
    is nearly the average of the squares.
    """
    total = torch.zeros((), dtype=torch.int32, device=buffers[0].device)
    for buffer in buffers:
        total = total * 31
        for start in range(0, buffer.numel(), SLAB):  # what is held beside them is little, and stays in the cache
            slab = buffer[start : start + SLAB]
            mixed = torch.arange(start, start + slab.numel(), dtype=torch.int32, device=buffer.device).mul_(SPREAD)
            mixed.add_(slab.to(torch.int32), alpha=SCATTER)
            mixed ^= mixed >> 15
            total = total + mixed.mul_(mixed).sum(dtype=torch.int32)
    return (total >> 8) & (FINGERPRINTS - 1)


def is_fingerprint(number: float | Tensor, *buffers: Tensor) -> bool:
    """Whether a number that was kept is that of the buffers: of today, or as states and pickles of before there were GPUs have it."""
    number = float(number)
    return number == float(fingerprint(*buffers)) or number == _crc(*buffers)


def _crc(*buffers: Tensor) -> int:
    """What fingerprints were at first: a GPU would wait for it."""
    code = 0
    for buffer in buffers:
        code = zlib.crc32(buffer.cpu().contiguous().numpy(), code)  # type: ignore[arg-type]
    return code % FINGERPRINTS
