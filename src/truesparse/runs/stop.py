"""How does a run end early? A first Ctrl-C (or SIGTERM) asks for it, a second one insists."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether someone has asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __call__(self) -> bool:
        return self.signal is not None


@contextmanager
def stop_on_signals(insists: bool = True) -> Iterator[StopRequest]:
    """Within this block the first SIGINT or SIGTERM is noted; the next one acts as it did before the block.

    Args:
        insists: whether it does. Of several processes each gets a Ctrl-C twice, from the terminal and from what began them.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def note(number: int, frame: FrameType | None) -> None:
        request.signal = signal.Signals(number)
        if insists:
            restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
