"""Does someone at the terminal press a key? Without waiting for Enter, and with the terminal as it was afterwards."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

LEAVE = b"qQ\x04"  # q, and Ctrl-D


class Leave(Exception):
    """Someone has pressed q."""


class Keys(Protocol):
    """Someone who may press keys."""

    def wait(self) -> None:
        """
        Raises:
            Leave: if it is q.
        """
        ...

    def pressed(self, seconds: float) -> bool:
        """Whether a key is pressed within so many seconds. Raises as `wait` does."""
        ...


class Nobody:
    """Nobody is there to press a key, and nothing waits."""

    def wait(self) -> None:
        pass

    def pressed(self, seconds: float) -> bool:
        return True


class Somebody:
    """The keyboard of stdin's terminal."""

    def wait(self) -> None:
        while not self.pressed(3600):
            pass

    def pressed(self, seconds: float) -> bool:
        key = _key(seconds)
        if key is not None and key in LEAVE and key != b"":
            raise Leave
        return key is not None


@contextmanager
def silent_terminal() -> Iterator[None]:
    """Within this block keys come at once and are not shown. Ctrl-C still interrupts."""
    if os.name != "posix":
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _key(seconds: float) -> bytes | None:
    """The key pressed within so many seconds, or None; b"" at the end of the input."""
    if os.name != "posix":
        return _key_on_windows(seconds)
    import select

    descriptor = sys.stdin.fileno()
    if not select.select([descriptor], [], [], seconds)[0]:
        return None
    return os.read(descriptor, 64)[:1]  # a special key sends several characters


def _key_on_windows(seconds: float) -> bytes | None:
    import msvcrt

    end = time.monotonic() + seconds
    while not msvcrt.kbhit():  # type: ignore[attr-defined]
        if time.monotonic() > end:
            return None
        time.sleep(0.02)
    return msvcrt.getch()  # type: ignore[attr-defined]
