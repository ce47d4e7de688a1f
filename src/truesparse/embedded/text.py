"""How are names and numbers written in C?"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 120
_RESERVED = re.compile(r"^[A-Za-z][A-Za-z0-9_]*$")
ENDS = {"counts", "gaps", "values", "bias", "mantissas", "taps", "table", "powers", "input", "state", "layer", "in"}
TYPES = {"float32": "float", "int8": "int8_t", "uint8": "uint8_t", "uint16": "uint16_t", "int32": "int32_t", "uint32": "uint32_t"}


def is_identifier(name: str) -> bool:
    """Whether C and C++ take it as the first part of names."""
    return bool(_RESERVED.match(name)) and "__" not in name


def identifiers(names: Sequence[str], taken: Collection[str] = ()) -> list[str]:
    """For each name one in small letters that C takes after a prefix: all different, also with the ends that tables of it have.

    Args:
        taken: what stands after the prefix already.
    """
    made: list[str] = []
    for name in names:
        one = re.sub(r"_+", "_", re.sub(r"[^a-z0-9]", "_", name.lower())).strip("_") or "layer"
        if one in taken or one.rpartition("_")[2] in ENDS:
            one += "_layer"
        number = 2
        while one in made:
            one = f"{one.removesuffix(f'_{number - 1}')}_{number}"
            number += 1
        made.append(one)
    return made


def array(name: str, values: NDArray[Any], said: str = "") -> str:
    """A table of constants, wrapped; `said` stands above it."""
    head = f"static const {TYPES[values.dtype.name]} {name}[{max(values.size, 1)}] = {{"
    text = "\n".join(wrapped(map(literal, values.ravel())) if values.size else ["    0"])
    return f"{f'/* {said} */' if said else ''}\n{head}\n{text}\n}};".lstrip("\n")


def wrapped(words: Iterable[str], indent: str = "    ") -> list[str]:
    """Lines of words with commas between them, none wider than `WIDTH`."""
    lines, line = [], indent
    for word in words:
        if len(line) + len(word) + 2 > WIDTH:
            lines.append(line.rstrip())
            line = indent
        line += f"{word}, "
    return [*lines, line.rstrip().rstrip(",")]


def structure(kind: str, name: str, *parts: str) -> str:
    """A constant structure with these fields, wrapped where it is long."""
    whole = ", ".join(parts)
    line = f"static const {kind} {name} = {{{whole}}};"
    return line if len(line) <= WIDTH else "\n".join((f"static const {kind} {name} = {{", *wrapped(whole.split(", ")), "};"))


def literal(value: Any) -> str:
    """A number as C writes it; floats as short as they are read back the same."""
    if isinstance(value, (int, np.integer)):
        return "INT32_MIN" if int(value) == -(2**31) else str(int(value))
    single = np.float32(value)
    if np.isinf(single):
        return "INFINITY" if single > 0 else "-INFINITY"
    said = repr(float(str(single)))
    return f"{said}f"


def in_comment(name: str) -> str:
    """A name on one line that ends no comment and begins none."""
    return " ".join(name.split()).replace("*/", "* /").replace("/*", "/ *")


def comment(lines: Sequence[str]) -> str:
    """A block of lines as one comment."""
    return "\n".join(["/* " + lines[0], *(f"   {line}".rstrip() for line in lines[1:])]) + " */"
