"""How is each step written in C of floats?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .dialect import GATES, Call, Declared, Dialect, recurrent
from .network import Cell, Convolution, Function, Linear, Matrix, Recurrent, Step
from .text import literal


class FloatC(Dialect):
    """The dialect of float32."""

    folder, number, item, memory, suffix = "float", "float", 4, "float", ""
    needed: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "linear": ("clamped", "matrix"),
        "convolution": ("clamped", "matrix"),
        "pool_max": ("pool",),
        "pool_mean": ("pool",),
        "clamp": ("clamped",),
        "sigmoid": ("logistic",),
        "silu": ("logistic",),
        "hardswish": ("clamped",),
        "hardsigmoid": ("clamped",),
        "gru": ("clamped", "matrix", "linear", "logistic", "gru_gates", "recurrent"),
        "lstm": ("clamped", "matrix", "linear", "logistic", "lstm_gates", "recurrent"),
        "gru_cell": ("clamped", "matrix", "linear", "logistic", "gru_gates"),
        "lstm_cell": ("clamped", "matrix", "linear", "logistic", "lstm_gates"),
        "rnn_tanh_cell": ("clamped", "matrix", "linear"),
        "rnn_relu_cell": ("clamped", "matrix", "linear"),
        "rnn_tanh": ("clamped", "matrix", "linear", "recurrent"),
        "rnn_relu": ("clamped", "matrix", "linear", "recurrent"),
    }

    def declared(self, step: Step, name: str) -> Declared:
        if not isinstance(step, (Recurrent, Cell)):
            return super().declared(step, name)
        parts = {part: self._matrix(matrix, f"{name}_{part}") for part, matrix in (("input", step.inputs), ("state", step.state))}
        return recurrent(step, name, parts)

    def kernels(self, step: Step) -> tuple[str, ...]:
        files = super().kernels(step)
        return ("zeros", *files) if isinstance(step, Cell) and not step.before else files

    def called(self, step: Step, call: Call) -> list[str]:
        if not isinstance(step, Cell):
            return super().called(step, call)
        states, zeros = call.sources[1:], f"{call.scratch} + {self._products(step)}"
        given = [f"&{call.name}_input", f"&{call.name}_state", call.sources[0], *(states or (zeros,) * self._parts(step))]
        lines = [f"NAME_{self.kernel(step)}({', '.join((*given, call.target, call.scratch))});"]
        return lines if states else [f"NAME_zeros({zeros}, {step.hidden});", *lines]

    def scratch(self, step: Step) -> int:
        if isinstance(step, Cell):  # zeros stand for the state and for the cell
            return self.item * (self._products(step) + (0 if step.before else step.hidden))
        return self.item * (self._products(step) + step.hidden * self._parts(step)) if isinstance(step, Recurrent) else 0

    @staticmethod
    def _products(step: Recurrent | Cell) -> int:
        """Numbers of both products."""
        return 2 * GATES[step.mode] * step.hidden

    @staticmethod
    def _parts(step: Recurrent | Cell) -> int:
        """Of a state."""
        return 2 if step.mode == "LSTM" else 1

    def matrix(self, step: Linear | Convolution, name: str) -> tuple[list[str], str, int]:
        return self._matrix(step.matrix, name)

    def settings(self, step: Step, name: str) -> list[str]:
        return [literal(one) for one in step.settings] if isinstance(step, Function) else []

    def _matrix(self, matrix: Matrix, name: str) -> tuple[list[str], str, int]:
        tables, fields, nbytes = self.tables(matrix, matrix.values, {"bias": matrix.bias}, name)
        return tables, f"{fields}, {literal(matrix.low)}, {literal(matrix.high)}", nbytes
