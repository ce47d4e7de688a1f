"""How does an int8 stand for a number?"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.int8]

LEAST, MOST = -128, 127
SMALLEST_SCALE = 2.0**-60  # of what is always zero


@dataclass(frozen=True)
class Scale:
    """How an int8 stands for a number: scale * (q - zero)."""

    scale: float
    zero: int

    @classmethod
    def of_range(cls, low: float, high: float) -> Scale:
        """The scale of numbers in [low, high], of which 0 is always one that is met exactly."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = float(np.float32(max((high - low) / (MOST - LEAST), SMALLEST_SCALE)))
        return cls(scale, int(np.clip(round(LEAST - low / scale), LEAST, MOST)))

    def quantised(self, x: NDArray[np.float32]) -> Bytes:
        """To the nearest, halves away from zero, clamped; NaN becomes 0. Each operation is one of float32, as in the C."""
        way = x.astype(np.float32) * self.inverse
        way = np.where(np.isnan(way), np.float32(0), way)
        way = np.clip(way, np.float32(LEAST - self.zero), np.float32(MOST - self.zero))
        rounded = np.trunc(way + np.where(way < 0, np.float32(-0.5), np.float32(0.5)))
        return np.clip(rounded.astype(np.int32) + self.zero, LEAST, MOST).astype(np.int8)

    @property
    def inverse(self) -> np.float32:
        return np.float32(1.0 / self.scale)

    def real(self, q: Bytes) -> NDArray[np.float32]:
        """What they stand for."""
        return (q.astype(np.int32) - self.zero).astype(np.float32) * np.float32(self.scale)

    def bound(self, value: float) -> int:
        """The int8 that a clamp at `value`, which may be infinite, comes to."""
        return LEAST if value == -inf else MOST if value == inf else int(np.clip(round(value / self.scale) + self.zero, LEAST, MOST))


PROBABILITIES = Scale(1 / 256, LEAST)
"""Of a softmax or a sigmoid."""
SIGNED = Scale(1 / 128, 0)
"""Of a tanh."""
