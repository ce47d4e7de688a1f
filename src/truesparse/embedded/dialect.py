"""What differs between the C of floats and that of integers? A dialect says how each step is declared, called and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from .network import Step


@dataclass(frozen=True)
class Declared:
    """The constants of one step.

    Args:
        text: their C.
        nbytes: that they take, structures aside.
    """

    text: tuple[str, ...] = ()
    nbytes: int = 0


@dataclass(frozen=True)
class Call:
    """What a step reads and writes, as C expressions.

    Args:
        name: prefix of its constants.
        sources: pointers.
        target: pointer.
        scratch: pointer, or "".
    """

    name: str
    sources: tuple[str, ...]
    target: str
    scratch: str


class Dialect(Protocol):
    """C of one type of numbers.

    Attributes:
        folder: of its kernels.
        number: C's type of what the steps hand on.
        item: bytes of that.
        memory: C's type of the block of memory.
    """

    folder: str
    number: str
    item: int
    memory: str

    def kernels(self, step: Step) -> tuple[str, ...]:
        """Files of the functions that it calls, in the order in which they need each other."""
        ...

    def declared(self, step: Step, name: str) -> Declared:
        """Its constants, whose names begin with `name`."""
        ...

    def called(self, step: Step, call: Call) -> list[str]:
        """The lines that run it; NAME stands for the prefix of functions."""
        ...

    def scratch(self, step: Step) -> int:
        """Bytes of memory that it needs for itself."""
        ...
