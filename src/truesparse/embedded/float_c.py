"""How is each step written in C of floats?"""

from __future__ import annotations

from .connections import encoded
from .dialect import Call, Declared
from .network import Convolution, Copy, Function, Linear, Matrix, Pair, Pool, Recurrent, Softmax, Step, Transpose
from .shapes_in_c import convolution_fields, pool_fields, taps
from .text import array, literal, wrapped

TAP_BYTES = 12
GATES = {"GRU": 3, "LSTM": 4, "RNN_TANH": 1, "RNN_RELU": 1}
NEEDED = {  # of each kernel file, those before it
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


class FloatC:
    """The dialect of float32."""

    folder, number, item, memory = "float", "float", 4, "float"

    def kernels(self, step: Step) -> tuple[str, ...]:
        kernel = self._kernel(step)
        return (*NEEDED.get(kernel, ()), kernel)

    def declared(self, step: Step, name: str) -> Declared:
        if isinstance(step, Linear):
            tables, fields, nbytes = self._matrix(step.matrix, name)
            return Declared((*tables, f"static const NAME_matrix {name} = {{{fields}}};"), nbytes)
        if isinstance(step, Convolution):
            tables, fields, nbytes = self._matrix(step.matrix, name)
            positions = taps(step.window)
            tap = "\n".join((f"static const NAME_tap {name}_taps[{len(positions)}] = {{", *wrapped(positions), "};"))
            rest = ", ".join(convolution_fields(step))
            whole = f"static const NAME_convolution {name} = {{{{{fields}}},\n    {name}_taps, {rest}}};"
            return Declared((*tables, tap, whole), nbytes + TAP_BYTES * len(positions))
        if isinstance(step, Pool):
            return Declared((f"static const NAME_pool {name} = {{{', '.join(pool_fields(step))}}};",))
        if isinstance(step, Recurrent):
            tables, nbytes = [], 0
            for part, matrix in (("input", step.inputs), ("state", step.state)):
                own, fields, size = self._matrix(matrix, f"{name}_{part}")
                tables += [*own, f"static const NAME_matrix {name}_{part} = {{{fields}}};"]
                nbytes += size
            whole = f"static const NAME_recurrent {name} = {{&{name}_input, &{name}_state, {step.steps}, {int(step.every)}}};"
            return Declared((*tables, whole), nbytes)
        return Declared()

    def called(self, step: Step, call: Call) -> list[str]:
        function, target, size = f"NAME_{self._function(step)}", call.target, step.target.size
        source = call.sources[0]
        if isinstance(step, Linear) and step.samples > 1:
            moved = f"{source} + i * {step.matrix.columns}, {target} + i * {step.matrix.rows}"
            return [f"for (int i = 0; i < {step.samples}; ++i)", f"    {function}(&{call.name}, {moved});"]
        if isinstance(step, (Linear, Convolution, Pool)):
            return [f"{function}(&{call.name}, {source}, {target});"]
        if isinstance(step, Recurrent):
            return [f"{function}(&{call.name}, {source}, {target}, {call.scratch});"]
        if isinstance(step, Pair):
            return [f"{function}({source}, {call.sources[1]}, {target}, {size});"]
        if isinstance(step, Function):
            return [f"{function}({', '.join([source, target, str(size), *map(literal, step.settings)])});"]
        if isinstance(step, (Softmax, Transpose)):
            columns = step.source.shape[-1]
            return [f"{function}({source}, {target}, {step.source.size // columns}, {columns});"]
        return [f"{function}({source}, {target}, {size});"]

    def scratch(self, step: Step) -> int:
        if not isinstance(step, Recurrent):
            return 0
        return 4 * step.hidden * (2 * GATES[step.mode] + (2 if step.mode == "LSTM" else 1))

    def _kernel(self, step: Step) -> str:
        if isinstance(step, Pool):
            return "pool_mean" if step.mean else "pool_max"
        if isinstance(step, (Function, Pair)):
            return step.kind
        if isinstance(step, Recurrent):
            return step.mode.lower()
        return {Linear: "linear", Convolution: "convolution", Softmax: "softmax", Transpose: "transpose", Copy: "copy"}[type(step)]

    def _function(self, step: Step) -> str:
        return "convolve" if isinstance(step, Convolution) else self._kernel(step)

    def _matrix(self, matrix: Matrix, name: str) -> tuple[list[str], str, int]:
        """(its tables, the fields of its structure, bytes)."""
        held = encoded(matrix, matrix.values)
        tables = [array(f"{name}_{what}", one) for what, one in (("counts", held.counts), ("gaps", held.gaps)) if one is not None]
        tables += [array(f"{name}_values", held.values), array(f"{name}_bias", matrix.bias)]
        places = f"{name}_counts, {name}_gaps" if held.gaps is not None else "NULL, NULL"
        fields = f"{matrix.rows}, {matrix.columns}, {places}, {name}_values, {name}_bias, {literal(matrix.low)}, {literal(matrix.high)}"
        return tables, fields, held.nbytes + matrix.bias.nbytes
