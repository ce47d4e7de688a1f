"""How does a network of floats become one of int8, and what does that give? Scales from what values came; then only integers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import integer
from .floats import FUNCTIONS, counts, padded, put, run, take
from .gates import LONGEST, IntegerGates, integer_gates, run_gates
from .integer import Bytes, Factor, IntegerMatrix, integer_matrix
from .network import Cell, Convolution, Copy, Function, Linear, Network, Pair, Pool, Recurrent, Softmax, Step, matrices_of, sources_of
from .scale import Scale
from .scaling import scaled


@dataclass(frozen=True, eq=False)
class Quantised:
    """A network in int8.

    Args:
        network: its steps; layers with the values that their integers stand for.
        scales: of each buffer.
        matrices: of each layer, by the buffer that it writes.
        gates: the same of recurrent layers.
    """

    network: Network
    scales: Mapping[int, Scale]
    matrices: Mapping[int, IntegerMatrix]
    gates: Mapping[int, IntegerGates]

    @property
    def input_scale(self) -> Scale:
        return self.scales[self.network.input.buffer]

    @property
    def output_scale(self) -> Scale:
        return self.scales[self.network.output.buffer]


def ranges(network: Network, batches: Iterable[Tensor]) -> dict[int, tuple[float, float]]:
    """The smallest and the largest number that each buffer had.

    Raises:
        ValueError: if there is no batch, one of another shape, or one with NaN or infinity.
    """
    found: dict[int, tuple[float, float]] = {}
    for number, batch in enumerate(batches):
        if not isinstance(batch, Tensor) or tuple(batch.shape[1:]) != network.input.shape or not len(batch):
            came = tuple(batch.shape) if isinstance(batch, Tensor) else type(batch).__name__
            expected = ", ".join(("batch", *map(str, network.input.shape)))
            raise ValueError(f"calibration: expected batches of shape [{expected}], got {came} as batch {number}")
        with torch.no_grad():
            for buffer, y in run(network, batch.float()).items():
                low, high = float(y.min()), float(y.max())
                if not (-inf < low <= high < inf):
                    raise ValueError(f"calibration: batch {number} leads to NaN or infinity; leave out what is no number")
                before = found.get(buffer, (inf, -inf))
                found[buffer] = min(before[0], low), max(before[1], high)
    if not found:
        raise ValueError("int8 needs calibration=batches, inputs like those to come, at least one: ranges of activations come from them")
    return found


def quantised(network: Network, found: Mapping[int, tuple[float, float]]) -> Quantised:
    """The network in int8.

    Args:
        found: the range of each buffer that no layer of `truesparse.quantize` has said anything about.

    Raises:
        TypeError: if a step has no int8 here.
        ValueError: if a sum could leave 32 bits, or a range is missing.
    """
    for step in network.steps:
        _check_int8(step)
    network, scales = scaled(network, found)
    matrices: dict[int, IntegerMatrix] = {}
    gates: dict[int, IntegerGates] = {}
    steps: list[Step] = []
    for step in network.steps:
        source, buffer = scales[step.source.buffer], step.target.buffer
        try:
            if isinstance(step, (Linear, Convolution)):
                matrices[buffer] = integer_matrix(step.matrix, source, scales[buffer])
                step = replace(step, matrix=matrices[buffer].matrix)
            if isinstance(step, Recurrent):
                gates[buffer] = integer_gates(step, source)
                step = replace(step, inputs=gates[buffer].inputs.matrix, state=gates[buffer].state.matrix)
        except ValueError as error:
            raise ValueError(f"layer {step.name!r}: {error}") from error
        steps.append(step)
    return Quantised(replace(network, steps=tuple(steps)), scales, matrices, gates)


def _check_int8(step: Step) -> None:
    if isinstance(step, Cell):
        raise TypeError(
            f"layer {step.name!r} ({step.mode} cell) has no int8 here, for a state of 8 bits forgets what changes slowly: use "
            "values='float32', or nn.GRU, nn.LSTM or nn.RNN over a sequence, whose state has 16 bits"
        )
    if isinstance(step, Recurrent) and step.mode == "RNN_RELU":
        raise TypeError(
            f"layer {step.name!r} ({step.mode}) has no int8 here, for its state may be of any size: use tanh, or values='float32'"
        )
    if isinstance(step, Recurrent) and step.steps > LONGEST:
        raise TypeError(f"layer {step.name!r} has no int8 here for {step.steps:,} steps; at most {LONGEST:,}")
    if any(one.stated is not None and one.stated.scales is None for one in matrices_of(step)):
        raise TypeError(
            f"layer {step.name!r} has a codebook, and int8 whole numbers with a scale a row: quantise by='row', or ts.dequantize(model) "
            "first, after which its values are rounded once more; values='float32' has its values as they are"
        )
    if isinstance(step, Pool) and step.mean and step.window.taps > integer.MOST_AVERAGED:
        raise TypeError(f"layer {step.name!r} has no int8 here: a mean over {step.window.taps:,}; at most {integer.MOST_AVERAGED:,}")


def run_integers(model: Quantised, x: Bytes) -> Bytes:
    """What the C gives, bit by bit.

    Args:
        x: [batch, ...] int8.
    """
    buffers: dict[int, Tensor] = {0: torch.from_numpy(x).flatten(1)}
    for step in model.network.steps:
        sources = [take(buffers, place).numpy() for place in sources_of(step)]
        scales = [model.scales[place.buffer] for place in sources_of(step)]
        if isinstance(step, Recurrent):
            y = run_gates(step, model.gates[step.target.buffer], sources[0], model.scales[step.target.buffer])
        else:
            y = _computed(step, model.matrices.get(step.target.buffer), sources, scales, model.scales[step.target.buffer])
        put(buffers, step.target, torch.from_numpy(np.ascontiguousarray(y)).reshape(len(x), *step.target.shape))
    return take(buffers, model.network.output).numpy()


def function_of(step: Function) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Of numbers, in float64."""
    return lambda x: FUNCTIONS[step.kind](torch.from_numpy(x), *step.settings).numpy()


def _computed(step: Step, weights: IntegerMatrix | None, sources: list[Bytes], scales: list[Scale], target: Scale) -> Bytes:
    x, scale = sources[0], scales[0]
    if isinstance(step, (Linear, Convolution)):
        assert weights is not None
        sums = _sums(step, weights, x)
        shape = (-1, *(1,) * (sums.ndim - 2)) if isinstance(step, Convolution) else (-1,)
        mantissas = weights.mantissas.astype(np.int64).reshape(shape)
        return integer.narrowed(sums, mantissas, weights.shift, target.zero, weights.low, weights.high)
    if isinstance(step, Pool):
        return _pooled(step, x, scale, target)
    if isinstance(step, Function):
        return integer.table(scale, target, function_of(step))[x.astype(np.int64) + 128]
    if isinstance(step, Pair) and step.kind == "add":
        return integer.added(x, sources[1], scale, scales[1], target)
    if isinstance(step, Pair):
        factor = Factor.of(scale.scale * scales[1].scale / target.scale)
        products = (x.astype(np.int64) - scale.zero) * (sources[1].astype(np.int64) - scales[1].zero)
        return integer.narrowed(products, factor.mantissa, factor.shift, target.zero)
    if isinstance(step, Softmax):
        return integer.softmax(x, scale)
    if isinstance(step, Copy):
        factor = Factor.of(scale.scale / target.scale)
        return integer.narrowed(x.astype(np.int64) - scale.zero, factor.mantissa, factor.shift, target.zero)
    return x.swapaxes(1, 2)


def _sums(step: Linear | Convolution, weights: IntegerMatrix, x: Bytes) -> NDArray[np.int64]:
    if isinstance(step, Linear):
        return (x.astype(np.float64) @ weights.dense.T).astype(np.int64) + weights.folded
    window = step.window
    images = padded(window, torch.from_numpy(x.astype(np.float64)), float(weights.source.zero))
    kernel = torch.from_numpy(weights.dense).view(weights.matrix.rows, -1, *window.kernel)
    sums = torch.nn.functional.conv2d(images, kernel, None, window.stride, 0, window.dilation, window.groups)
    return sums.numpy().astype(np.int64) + weights.folded.astype(np.int64).reshape(-1, 1, 1)


def _pooled(step: Pool, x: Bytes, scale: Scale, target: Scale) -> Bytes:
    window = step.window
    outside = 0.0 if step.mean else -1e9
    images = padded(window, torch.from_numpy(x.astype(np.float64)) - (scale.zero if step.mean else 0), outside)
    reached = torch.nn.functional.unfold(images, window.kernel, window.dilation, 0, window.stride)
    reached = reached.view(len(x), window.channels, window.taps, -1).numpy()
    if not step.mean:
        return reached.max(2).astype(np.int8)
    count = window.taps if step.with_padding else counts(window).numpy().astype(np.int64)
    return integer.mean(reached.sum(2).astype(np.int64), count, scale, target)
