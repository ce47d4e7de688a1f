"""How is each step written in C? What floats and integers have in common; each of them adds what is its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from numpy.typing import NDArray

from .connections import count_type, encoded
from .network import Cell, Convolution, Copy, Linear, Matrix, Network, Pair, Pool, Recurrent, Softmax, Step, Transpose
from .network import Function as FunctionStep
from .shapes_in_c import convolution_fields, pool_fields, taps
from .text import TYPES, array, structure, wrapped

KERNELS = Path(__file__).parent / "kernels"
TAP_BYTES = 10
GATES = {"GRU": 3, "LSTM": 4, "RNN_TANH": 1, "RNN_RELU": 1}


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


def recurrent(step: Recurrent | Cell, name: str, parts: Mapping[str, tuple[list[str], str, int]], *others: str) -> Declared:
    """The constants of a recurrent layer, or of a cell, which has no structure of its own.

    Args:
        parts: "input" and "state": (tables of the weights, the fields of their structure, bytes of the tables).
        others: fields that stand last in its own structure.
    """
    text = [one for part, (tables, fields, _) in parts.items() for one in (*tables, structure("NAME_matrix", f"{name}_{part}", fields))]
    if isinstance(step, Recurrent):
        own = (f"&{name}_input", f"&{name}_state", str(step.steps), str(int(step.every)), *others)
        text.append(structure("NAME_recurrent", name, *own))
    return Declared(tuple(text), sum(nbytes for *_, nbytes in parts.values()))


class Dialect(ABC):
    """C of one type of numbers; NAME stands for the prefix of all names.

    Attributes:
        folder: of its kernels.
        number: C's type of what the steps hand on.
        item: bytes of that.
        memory: C's type of the block of memory.
        suffix: of the functions that take it.
        needed: of a kernel's file, those whose functions it calls.
    """

    folder: ClassVar[str]
    number: ClassVar[str]
    item: ClassVar[int]
    memory: ClassVar[str]
    suffix: ClassVar[str]
    needed: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init__(self, network: Network) -> None:
        self.counted = count_type(network, self.item)

    @property
    def count_type(self) -> str:
        """C's type of how many connections a row has."""
        return TYPES[self.counted.__name__]

    def kernels(self, step: Step) -> tuple[str, ...]:
        """Files of the functions that it calls, in the order in which they need each other."""
        kernel = self.kernel(step)
        return (*self.needed.get(kernel, ()), kernel)

    def kernel_text(self, file: str) -> str:
        """What stands in the file of a function."""
        return (KERNELS / self.folder / f"{file}.h").read_text().rstrip().replace("COUNT_TYPE", self.count_type)

    def kernel(self, step: Step) -> str:
        """The file of the function that it calls."""
        if isinstance(step, Pool):
            return "pool_mean" if step.mean else "pool_max"
        if isinstance(step, (FunctionStep, Pair)):
            return step.kind
        if isinstance(step, Recurrent):
            return step.mode.lower()
        if isinstance(step, Cell):
            return f"{step.mode.lower()}_cell"
        return {Linear: "linear", Convolution: "convolution", Softmax: "softmax", Transpose: "transpose", Copy: "copy"}[type(step)]

    def declared(self, step: Step, name: str) -> Declared:
        """Its constants, whose names begin with `name`."""
        if isinstance(step, Linear):
            tables, fields, nbytes = self.matrix(step, name)
            return Declared((*tables, structure("NAME_matrix", name, fields)), nbytes)
        if isinstance(step, Convolution):
            tables, fields, nbytes = self.matrix(step, name)
            positions = taps(step.window)
            tap = "\n".join((f"static const NAME_tap {name}_taps[{len(positions)}] = {{", *wrapped(positions), "};"))
            rest = (*convolution_fields(step), *self.own_fields(step))
            whole = structure("NAME_convolution", name, f"{{{fields}}}", f"{name}_taps", *rest)
            return Declared((*tables, tap, whole), nbytes + TAP_BYTES * len(positions))
        if isinstance(step, Pool):
            return Declared((structure("NAME_pool", name, *pool_fields(step), *self.own_fields(step)),))
        return Declared()

    def called(self, step: Step, call: Call) -> list[str]:
        """The lines that run it."""
        if isinstance(step, Linear) and step.samples > 1:
            moved = f"{call.sources[0]} + i * {step.matrix.columns}, {call.target} + i * {step.matrix.rows}"
            return [f"for (int i = 0; i < {step.samples}; ++i)", f"    NAME_linear(&{call.name}, {moved});"]
        pointers = [*call.sources, call.target]
        function = "convolve" if isinstance(step, Convolution) else self.kernel(step)
        if isinstance(step, (Linear, Convolution, Pool, Recurrent)):
            given = [f"&{call.name}", *pointers, *([call.scratch] if call.scratch else [])]
        elif isinstance(step, (Softmax, Transpose)):
            columns = step.source.shape[-1]
            given = [*pointers, str(step.source.size // columns), str(columns), *self.settings(step, call.name)]
        else:
            given = [*pointers, str(step.target.size), *self.settings(step, call.name)]
        return [f"NAME_{function}({', '.join(given)});"]

    @abstractmethod
    def scratch(self, step: Step) -> int:
        """Bytes of memory that it needs for itself."""

    @abstractmethod
    def matrix(self, step: Linear | Convolution, name: str) -> tuple[list[str], str, int]:
        """(tables of its weights, the fields of their structure, bytes of the tables)."""

    @abstractmethod
    def settings(self, step: Step, name: str) -> list[str]:
        """What its function takes last, where it has no structure."""

    def own_fields(self, step: Convolution | Pool) -> list[str]:
        """What stands last in its structure."""
        return []

    def tables(self, matrix: Matrix, values: NDArray[Any], others: Mapping[str, NDArray[Any]], name: str) -> tuple[list[str], str, int]:
        """(tables of connections, of their values and of others; the first fields of their structure; bytes).

        Args:
            values: of the connections, in the type that they are to have.
            others: one number a row each, by the end of their name.
        """
        held = encoded(matrix, values, self.counted)
        both = {"counts": held.counts, "gaps": held.gaps} if held.gaps is not None else {}
        tables = {**both, "values": held.values, **others}
        places = [f"{name}_counts, {name}_gaps" if both else "NULL, NULL", *(f"{name}_{what}" for what in ("values", *others))]
        text = [array(f"{name}_{what}", one) for what, one in tables.items() if one is not None]
        return text, ", ".join((f"{matrix.rows}, {matrix.columns}", *places)), held.nbytes + sum(one.nbytes for one in others.values())
