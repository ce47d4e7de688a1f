"""What does the compiled network take? Asked of a compiler and its nm, function by function and layer by layer."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.shown import Table
from .report import Exported
from .text import ENDS

OF_A_LAYER = f"(_(input|state))?(_({'|'.join(sorted(ENDS))}))?"
KINDS = {"t": "text", "r": "rodata", "b": "bss", "d": "data"}
FLAGS = ("-std=c99", "-fno-inline", "-ffunction-sections", "-fdata-sections", "-fno-asynchronous-unwind-tables", "-fno-pie")


class CompilerError(RuntimeError):
    """A compiler is not there, or does not take the header."""


@dataclass(frozen=True)
class Size:
    """Bytes of one symbol of the object.

    Args:
        symbol: its name.
        section: "text" (code), "rodata" (constants), "bss" (memory) or "data".
        nbytes: that it takes.
    """

    symbol: str
    section: str
    nbytes: int


@dataclass(frozen=True)
class Sizes:
    """What the object file of a header takes, with the memory of a call at a fixed place.

    Args:
        compiler: and its options.
        symbols: of the object.
        rows: name of each step, and the bytes of its constants, structures with them.
    """

    compiler: str
    symbols: tuple[Size, ...]
    rows: tuple[tuple[str, int], ...]

    def section(self, name: str) -> int:
        """Bytes of "text", "rodata", "bss" or "data"."""
        return sum(one.nbytes for one in self.symbols if one.section == name)

    def table(self) -> Table:
        """A row for each function and each layer."""
        code = tuple((one.symbol, f"{one.nbytes:,}", "", "") for one in self.symbols if one.section == "text")
        layers = tuple((name, "", f"{nbytes:,}", "") for name, nbytes in self.rows if nbytes)
        memory = tuple((one.symbol, "", "", f"{one.nbytes:,}") for one in self.symbols if one.section in ("bss", "data"))
        total = ("in all", *(f"{self.section(name):,}" for name in ("text", "rodata", "bss")))
        rows = (*code, *layers, *memory)
        return Table(("function or layer", ".text", ".rodata", ".bss"), rows, total, frozenset({1, 2, 3}), caption=self.compiler)

    def __str__(self) -> str:
        return self.table().text()


def size(exported: Exported, compiler: str = "gcc", flags: Sequence[str] = ("-Os",)) -> Sizes:
    """The bytes of a network's code, constants and memory, as a compiler makes them.

    Args:
        exported: what `export_c` gave; its header is compiled by itself.
        compiler: a name or path of GCC or Clang, such as "arm-none-eabi-gcc".
        flags: its options, such as ("-Os", "-mcpu=cortex-m4", "-mthumb").

    Raises:
        CompilerError: if there is no such compiler, or it refuses the header.
    """
    name, header = exported.name, exported.path.resolve()
    with tempfile.TemporaryDirectory() as folder:
        source, object_file = Path(folder) / "size.c", Path(folder) / "size.o"
        source.write_text(
            f'#define {name.upper()}_STORAGE static\n#include "{header}"\n'
            f"int run(const float *x, float *y);\nint run(const float *x, float *y) {{ return {name}_predict(x, y); }}\n"
        )
        _output(compiler, *flags, *FLAGS, "-c", "-o", str(object_file), str(source))
        nm = _output(compiler, "-print-prog-name=nm").strip() or "nm"
        symbols = tuple(_symbols(_output(nm, "-S", "--size-sort", str(object_file))))
    constants = [one for one in symbols if one.section == "rodata"]
    rows = tuple(
        (row.layer, sum(one.nbytes for one in constants if re.fullmatch(rf"{name}_{label}{OF_A_LAYER}", one.symbol)))
        for row, label in zip(exported.rows, exported.labels, strict=True)
    )
    return Sizes(" ".join((compiler, *flags)), tuple(one for one in symbols if one.symbol != "run"), rows)


def _symbols(listing: str) -> list[Size]:
    found = []
    for line in listing.splitlines():
        _, size, kind, symbol = line.split()
        found.append(Size(symbol, KINDS.get(kind.lower(), "data"), int(size, 16)))
    return sorted(found, key=lambda one: (one.section != "text", -one.nbytes))


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise CompilerError(f"cannot run {command[0]}: {error.strerror}; install it, or name another compiler") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no reason said"]
        raise CompilerError(f"{command[0]} refuses the header: {lines[0]}")
    return done.stdout
