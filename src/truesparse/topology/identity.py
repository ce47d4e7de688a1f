"""Are a layer's buffers still the topology that was installed? What tells at once, and what tells for certain."""

from __future__ import annotations

import zlib

from torch import Tensor

FINGERPRINTS = 2**24  # below it, whole numbers are exact in float32, in which averages of state dicts are often taken


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


def fingerprint(*buffers: Tensor) -> int:
    """A number in [0, 2^24) made of all that the buffers hold: the average of two topologies is another one with another number."""
    code = 0
    for buffer in buffers:
        code = zlib.crc32(buffer.cpu().contiguous().numpy(), code)  # type: ignore[arg-type]
    return code % FINGERPRINTS
