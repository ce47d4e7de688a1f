"""How is each step written in C of integers? `integer.py` says what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from .dialect import GATES, Declared, Dialect, recurrent
from .gates import LOGISTIC, state_factor
from .integer import Factor, IntegerMatrix, add_factors, mean_factor, powers, table
from .network import Convolution, Copy, Function, Linear, Pair, Pool, Recurrent, Softmax, Step
from .quantised import Quantised, function_of
from .scale import Scale
from .text import array, literal, wrapped

SUM_BYTES = 4


class Int8C(Dialect):
    """The dialect of int8.

    Args:
        model: the network in int8.
    """

    folder, number, item, memory, suffix = "int8", "int8_t", 1, "int32_t", "_int8"
    needed: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "linear": ("narrowed", "matrix"),
        "convolution": ("narrowed", "matrix"),
        "pool_max": ("pool",),
        "pool_mean": ("pool", "divided", "narrowed"),
        "add": ("narrowed",),
        "multiply": ("narrowed",),
        "copy": ("narrowed",),
        "gru": ("narrowed", "matrix", "fixed", "product", "recurrent"),
        "lstm": ("narrowed", "matrix", "fixed", "product", "recurrent"),
        "rnn_tanh": ("narrowed", "matrix", "fixed", "product", "recurrent"),
    }

    def __init__(self, model: Quantised) -> None:
        super().__init__(model.network)
        self.model = model

    def kernel(self, step: Step) -> str:
        return "function" if isinstance(step, Function) else super().kernel(step)

    def declared(self, step: Step, name: str) -> Declared:
        if isinstance(step, Function):
            values = table(self._scale(step), self._target(step), function_of(step))
            return Declared((array(f"{name}_table", values),), values.nbytes)
        if isinstance(step, Softmax):
            shares = powers(self._scale(step))
            return Declared((array(f"{name}_powers", shares),), shares.nbytes)
        if isinstance(step, Recurrent):
            gates = self.model.gates[step.target.buffer]
            parts = {part: self._matrix(one, f"{name}_{part}") for part, one in (("input", gates.inputs), ("state", gates.state))}
            held = (
                f"{{{one.mantissa}, {one.shift}, {scale.zero}}}"
                for scale in (gates.held, self._target(step))
                for one in [state_factor(scale)]
            )
            made = recurrent(step, name, parts, *held)
            first = next(one for one in self.model.network.steps if isinstance(one, Recurrent))
            return replace(made, nbytes=made.nbytes + (LOGISTIC.nbytes if step is first else 0))
        return super().declared(step, name)

    def kernel_text(self, file: str) -> str:
        return super().kernel_text(file).replace("LOGISTIC", "\n".join(wrapped(map(str, LOGISTIC))))

    def scratch(self, step: Step) -> int:
        if isinstance(step, Recurrent):  # of both products, of what is handed on, and of an int8 of the state
            return step.hidden * (SUM_BYTES * (2 * GATES[step.mode] + (step.mode != "RNN_TANH")) + 1)
        return SUM_BYTES * step.window.output[0] * step.window.output[1] if isinstance(step, Convolution) else 0

    def matrix(self, step: Linear | Convolution, name: str) -> tuple[list[str], str, int]:
        return self._matrix(self.model.matrices[step.target.buffer], name)

    def _matrix(self, m: IntegerMatrix, name: str) -> tuple[list[str], str, int]:
        tables, fields, nbytes = self.tables(m.matrix, m.values, {"bias": m.folded, "mantissas": m.mantissas}, name)
        return tables, f"{fields}, {m.shift}, {m.target.zero}, {m.low}, {m.high}", nbytes

    def own_fields(self, step: Convolution | Pool) -> list[str]:
        if isinstance(step, Pool):
            factor = mean_factor(self._scale(step), self._target(step)) if step.mean else Factor(0, 0)
            zeros = (self._scale(step).zero, self._target(step).zero) if step.mean else (0, 0)
            return [str(one) for one in (zeros[0], factor.mantissa, factor.shift, zeros[1])]
        return [str(self._scale(step).zero)]

    def settings(self, step: Step, name: str) -> list[str]:
        scale, target = self._scale(step), self._target(step)
        if isinstance(step, Function):
            return [f"{name}_table"]
        if isinstance(step, Softmax):
            return [f"{name}_powers"]
        if isinstance(step, Pair):
            other = self.model.scales[step.other.buffer]
            if step.kind == "add":
                first, second, shift = add_factors(scale, other, target)
                return [str(one) for one in (scale.zero, first, other.zero, second, shift, target.zero)]
            factor = Factor.of(scale.scale * other.scale / target.scale)
            return [str(one) for one in (scale.zero, other.zero, factor.mantissa, factor.shift, target.zero)]
        if isinstance(step, Copy):
            factor = Factor.of(scale.scale / target.scale)
            return [str(one) for one in (scale.zero, factor.mantissa, factor.shift, target.zero)]
        return []

    def _scale(self, step: Step) -> Scale:
        return self.model.scales[step.source.buffer]

    def _target(self, step: Step) -> Scale:
        return self.model.scales[step.target.buffer]


def constants(model: Quantised) -> str:
    """What the function that takes floats needs to know, and what whoever calls the other one does."""
    source, target, network = model.input_scale, model.output_scale, model.network
    lines = (
        f"#define NAME_INPUT_SIZE {network.input.size}",
        f"#define NAME_INPUT_ZERO {_signed(source.zero)}",
        f"#define NAME_INPUT_INVERSE_SCALE {literal(source.inverse)}",
        f"#define NAME_INPUT_LEAST {_signed(f'{-128 - source.zero}.0f')}",
        f"#define NAME_INPUT_MOST {127 - source.zero}.0f",
        f"#define NAME_OUTPUT_SIZE {network.output.size}",
        f"#define NAME_OUTPUT_ZERO {_signed(target.zero)}",
        f"#define NAME_OUTPUT_SCALE {literal(target.scale)}",
    )
    return "\n".join(lines)


def _signed(number: int | str) -> str:
    return f"({number})" if str(number).startswith("-") else str(number)
