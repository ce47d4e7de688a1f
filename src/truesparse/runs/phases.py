"""Where does the time of a training step go?"""

from __future__ import annotations

import time
from collections.abc import Mapping

PHASES = ("forward", "backward", "rewiring", "optimizer", "other")


class Phases:
    """Seconds of each phase. Laps follow one another, so that together they are the whole time since `begin`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._last = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._last = time.perf_counter()

    def lap(self, phase: str, elsewhere: Mapping[str, float] | None = None) -> None:
        """What has passed since the last lap belongs to `phase`, but for the seconds of other phases in it."""
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now
        for other, seconds in (elsewhere or {}).items():
            self.seconds[other] += seconds
            self.seconds[phase] -= seconds

    @property
    def total(self) -> float:
        """Of all phases."""
        return sum(self.seconds.values())
