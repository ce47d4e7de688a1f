"""Are a layer's buffers still the topology that was installed? What tells at once, and what tells for certain."""

from __future__ import annotations

import zlib

from torch import Tensor

FINGERPRINTS = 2**24  # below it, whole numbers are exact in float32, in which averages of state dicts are often taken


def identity_of(*buffers: Tensor) -> tuple[tuple[int, int], ...]:
    """What changes when a tensor is written in place or its memory moves."""
    return tuple((0 if buffer.is_inference() else buffer._version, buffer.data_ptr()) for buffer in buffers)


def fingerprint(*buffers: Tensor) -> int:
    """A number in [0, 2^24) made of all that the buffers hold: the average of two topologies is another one with another number."""
    code = 0
    for buffer in buffers:
        code = zlib.crc32(buffer.cpu().contiguous().numpy(), code)  # type: ignore[arg-type]
    return code % FINGERPRINTS
