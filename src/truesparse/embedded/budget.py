"""Does a network fit into a microcontroller, and which layer is it that does not?"""

from __future__ import annotations

from .report import Exported


def check_fits(exported: Exported, flash: int | None, ram: int | None) -> None:
    """
    Args:
        flash: bytes for constants; None: any number.
        ram: bytes for the memory of a call, with its input and output; None: any number.

    Raises:
        ValueError: if it takes more; the message names the layer and by how much.
    """
    for option, limit in (("flash", flash), ("ram", ram)):
        if limit is not None and limit < 1:
            raise ValueError(f"{option} is a number of bytes of at least 1, got {limit}")
    if flash is not None and exported.flash > flash:
        largest = max(exported.rows, key=lambda row: row.flash)
        raise ValueError(
            f"the constants take {exported.flash:,} bytes of flash, {exported.flash - flash:,} more than {flash:,}; the largest layer, "
            f"{largest.layer!r} ({largest.operation}), takes {largest.flash:,}. {_advice(exported)}"
        )
    around = exported.input_bytes + exported.output_bytes
    if ram is not None and exported.memory + around > ram:
        largest = max(exported.rows, key=lambda row: row.memory)
        raise ValueError(
            f"a call takes {exported.memory + around:,} bytes of RAM ({exported.memory:,} of memory, {around:,} of input and output), "
            f"{exported.memory + around - ram:,} more than {ram:,}; the most is in use during {largest.layer!r} ({largest.operation}): "
            f"{largest.memory:,}. {'Use values=' + repr('int8') + ', or' if exported.values != 'int8' else 'Use'} fewer channels there"
        )


def _advice(exported: Exported) -> str:
    return "Make it sparser" if exported.values == "int8" else "Make it sparser, or use values='int8'"
