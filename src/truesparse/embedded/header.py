"""How do steps become one C99 header? Constants, the functions that are called, and one function that calls them in turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import __version__
from .dialect import KERNELS, Call, Declared, Dialect
from .errors import NoC
from .memory import Plan, plan
from .network import Network, Place, Step, dense_multiply_adds, matrices_of, multiply_adds, sources_of
from .report import Exported, Row
from .shapes_in_c import said
from .text import comment, identifiers, in_comment


@dataclass(frozen=True)
class Written:
    """A header, and what it takes."""

    text: str
    exported: Exported


def written(
    network: Network, dialect: Dialect, path: Path, name: str, values: str, entries: Sequence[str] = (), facts: str = ""
) -> Written:
    """The header of a network.

    Args:
        path: where it will be.
        name: with which all its names begin.
        values: in words.
        entries: C of further functions, and of constants, that come last.
        facts: about them, for the comment at the top.
    """
    planned = plan(network, dialect.item, dialect.scratch)
    own = tuple(identifiers([step.name for step in network.steps], _taken(dialect)))
    labels = [f"NAME_{one}" for one in own]
    declared = [_declared(dialect, step, label) for step, label in zip(network.steps, labels, strict=True)]
    labels, again = _shared(declared, labels)
    declared = [Declared() if repeated else one for one, repeated in zip(declared, again, strict=True)]
    rows = tuple(
        Row(
            in_comment(step.name),
            said(step) + (", again" if repeated else ""),
            0 if repeated else sum(one.nnz for one in matrices_of(step)),
            0 if repeated else sum(one.rows * one.columns for one in matrices_of(step)),
            constants.nbytes,
            memory,
            multiply_adds(step),
            dense_multiply_adds(step),
        )
        for step, constants, memory, repeated in zip(network.steps, declared, planned.needed, again, strict=True)
    )
    item = dialect.item
    exported = Exported(path, name, values, rows, own, planned.size, item * network.input.size, item * network.output.size)
    kernels = list(dict.fromkeys(file for step in network.steps for file in dialect.kernels(step)))
    constants = [
        "\n\n".join((f"/* {row.layer}: {row.operation} */", *one.text)) for row, one in zip(rows, declared, strict=True) if one.text
    ]
    parts = [
        *map(dialect.kernel_text, kernels),
        *constants,
        _memory(planned, dialect),
        _predict(network, dialect, planned, labels, rows),
        *entries,
    ]
    body = "\n\n".join(part for part in parts if part)
    includes = ["#include <stddef.h>", "#include <stdint.h>"]
    if re.search(r"\b(expf|tanhf|INFINITY)\b", body):
        includes.insert(0, "#include <math.h>")
    guard = "NAME_H_"
    top = _top(network, dialect, exported, links_math=bool(re.search(r"\b(expf|tanhf)\(", body)), facts=facts)
    text = "\n\n".join((top, f"#ifndef {guard}\n#define {guard}", "\n".join(includes), NEEDS, body, f"#endif /* {guard} */"))
    return Written(_named(text, name) + "\n", exported)


NEEDS = "typedef char NAME_needs_int_of_32_bits[sizeof(int) >= 4 ? 1 : -1];"


def _declared(dialect: Dialect, step: Step, label: str) -> Declared:
    try:
        return dialect.declared(step, label)
    except NoC as error:
        raise TypeError(f"layer {step.name!r} has no C here: {error}") from error


def _shared(declared: Sequence[Declared], labels: Sequence[str]) -> tuple[list[str], list[bool]]:
    """(whose constants each step uses, whether these are of a step before): a layer that is called several times has them once."""
    first: dict[tuple[str, ...], str] = {}
    # Without blanks: where lines end depends on how long the label is.
    own = [tuple("".join(text.replace(label, "").split()) for text in one.text) for one, label in zip(declared, labels, strict=True)]
    used = [first.setdefault(text, label) if text else label for text, label in zip(own, labels, strict=True)]
    return used, [one != label for one, label in zip(used, labels, strict=True)]


def _taken(dialect: Dialect) -> frozenset[str]:
    """What functions, types and parameters of kernels are called."""
    texts = [path.read_text() for path in (KERNELS / dialect.folder).glob("*.h")]
    return frozenset({"predict", "needs", *(name for text in texts for name in re.findall(r"NAME_(\w+)", text))})


def _named(text: str, name: str) -> str:
    """Macros are in capitals: NAME_MEMORY; everything else begins with the name as it is."""
    text = re.sub(r"\bNAME_(?=[A-Z][A-Z0-9_]*\b)", f"{name.upper()}_", text)
    return re.sub(r"\bNAME(?=_|:)", name, text)


def _top(network: Network, dialect: Dialect, exported: Exported, links_math: bool, facts: str) -> str:
    shape = " x ".join(map(str, network.input.shape))
    plural = f"numbers of {dialect.number}"
    lines = [
        f"NAME: a neural network with {sum(row.connections for row in exported.rows):,} connections, written by truesparse {__version__}",
        "",
        f"int NAME_predict{dialect.suffix}(const {dialect.number} *x, {dialect.number} *y)",
        f"    x        {network.input.size} {plural}: {shape}, the last dimension beside one another",
        f"    y        {network.output.size} {plural}; x and y must not overlap",
        "    returns  0, or -1 if a pointer is NULL",
        *facts.splitlines(),
        "",
        f"Takes {exported.flash:,} bytes of constants (flash), and {exported.memory:,} bytes of memory for a call (RAM).",
        "Nothing is allocated, and no variable outside the call is written. The memory is on the stack;",
        "#define NAME_STORAGE static before the #include gives it a fixed place (then one call at a time);",
        f"NAME_predict{dialect.suffix}_in(x, y, memory) takes yours, of NAME_MEMORY bytes.",
        *(["Link with -lm."] if links_math else []),
        "",
        *exported.lines(),
        "",
        "flash: bytes of the layer's constants; memory: bytes in use during it; dense: multiply-adds if every weight existed.",
    ]
    return comment(lines)


def _memory(planned: Plan, dialect: Dialect) -> str:
    size = max(planned.size, 4)
    return "\n".join(
        (
            f"#define NAME_MEMORY {size} /* bytes */",
            "#ifndef NAME_STORAGE",
            "#define NAME_STORAGE /* on the stack */",
            "#endif",
        )
    )


def _predict(network: Network, dialect: Dialect, planned: Plan, labels: Sequence[str], rows: Sequence[Row]) -> str:
    kind, number, base = dialect.suffix, dialect.number, "memory" if dialect.number == dialect.memory else "at"
    steps: list[str] = []
    for step, label, scratch, row in zip(network.steps, labels, planned.scratch, rows, strict=True):
        pointers = tuple(_pointer(place, dialect, planned, base) for place in sources_of(step))
        own = "" if scratch is None else _plus("memory", scratch // 4)
        call = Call(label, pointers, _pointer(step.target, dialect, planned, base), own)
        steps += [f"    /* {row.layer}: {row.operation} */", *(f"    {line}" for line in dialect.called(step, call))]
    lines = [
        f"static inline int NAME_predict{kind}_in(const {number} *x, {number} *y, {dialect.memory} *memory)",
        "{",
        *([f"    {number} *at = ({number} *)memory;"] if any(re.search(rf"\b{base}\b", line) for line in steps) and base == "at" else []),
        "    if (x == NULL || y == NULL || memory == NULL)",
        "        return -1;",
        *steps,
        "    return 0;",
        "}",
        "",
        f"static inline int NAME_predict{kind}(const {number} *x, {number} *y)",
        "{",
        f"    NAME_STORAGE {dialect.memory} memory[NAME_MEMORY / sizeof({dialect.memory})];",
        f"    return NAME_predict{kind}_in(x, y, memory);",
        "}",
    ]
    return "\n".join(lines)


def _pointer(place: Place, dialect: Dialect, planned: Plan, base: str) -> str:
    if place.buffer == 0:
        return _plus("x", place.offset)
    if place.buffer in planned.in_output:
        return _plus("y", place.offset)
    return _plus(base, planned.offsets[place.buffer] // dialect.item + place.offset)


def _plus(pointer: str, offset: int) -> str:
    return f"{pointer} + {offset}" if offset else pointer
