"""How is each step written in C of floats?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .dialect import GATES, Declared, Dialect, recurrent
from .network import Convolution, Function, Linear, Matrix, Recurrent, Step
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
        "gru": ("clamped", "matrix", "linear", "logistic", "recurrent"),
        "lstm": ("clamped", "matrix", "linear", "logistic", "recurrent"),
        "rnn_tanh": ("clamped", "matrix", "linear", "recurrent"),
        "rnn_relu": ("clamped", "matrix", "linear", "recurrent"),
    }

    def declared(self, step: Step, name: str) -> Declared:
        if not isinstance(step, Recurrent):
            return super().declared(step, name)
        parts = {part: self._matrix(matrix, f"{name}_{part}") for part, matrix in (("input", step.inputs), ("state", step.state))}
        return recurrent(step, name, parts)

    def scratch(self, step: Step) -> int:
        if not isinstance(step, Recurrent):
            return 0
        return self.item * step.hidden * (2 * GATES[step.mode] + (2 if step.mode == "LSTM" else 1))

    def matrix(self, step: Linear | Convolution, name: str) -> tuple[list[str], str, int]:
        return self._matrix(step.matrix, name)

    def settings(self, step: Step, name: str) -> list[str]:
        return [literal(one) for one in step.settings] if isinstance(step, Function) else []

    def _matrix(self, matrix: Matrix, name: str) -> tuple[list[str], str, int]:
        tables, fields, nbytes = self.tables(matrix, matrix.values, {"bias": matrix.bias}, name)
        return tables, f"{fields}, {literal(matrix.low)}, {literal(matrix.high)}", nbytes
