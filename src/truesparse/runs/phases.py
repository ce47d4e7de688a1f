"""Where does the time of a training step go?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..common.devices import Clock, HostClock

PHASES = ("forward", "backward", "rewiring", "optimizer", "other")


class Phases:
    """Seconds of each phase. Laps follow one another, so that together they are the whole time since `begin`.

    They are those of the device that works, and what it takes is asked when `seconds` are: a lap does not wait for it.

    Args:
        clock: of the device.

    Attributes:
        elapsed: seconds of all laps by the clock of the host, which need not wait for a device.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or HostClock()
        self.elapsed = 0.0
        self._seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._laps: list[tuple[str, Any, Any]] = []
        self._last: Any = None
        self._began = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._last, self._began = self.clock.mark(), time.perf_counter()

    def lap(self, phase: str, elsewhere: Mapping[str, float] | None = None) -> None:
        """What has passed since the last lap belongs to `phase`, but for the seconds of other phases in it."""
        mark, now = self.clock.mark(), time.perf_counter()
        self._laps.append((phase, self._last, mark))
        self._last = mark
        self.elapsed += now - self._began
        self._began = now
        for other, seconds in (elsewhere or {}).items():
            self._seconds[other] += seconds
            self._seconds[phase] -= seconds

    def go_on(self, seconds: Mapping[str, float]) -> None:
        """From what an earlier one of these has counted."""
        self._seconds, self._laps = dict(seconds), []
        self.elapsed = sum(seconds.values())

    def settle(self) -> None:
        """Let the marks of laps go. Waits until the device has come to the last of them."""
        laps, self._laps = self._laps, []
        for phase, first, last in laps:
            self._seconds[phase] += self.clock.seconds(first, last)

    @property
    def seconds(self) -> dict[str, float]:
        """By phase. Waits as `settle` does."""
        self.settle()
        return self._seconds

    @property
    def total(self) -> float:
        """Of all phases. Waits as `seconds` does."""
        return sum(self.seconds.values())
