"""About how much energy does a network cost? An estimate by a model that is stated here, never a measurement.

The figures are those of Horowitz, "Computing's energy problem (and what we can do about it)", ISSCC 2014,
https://doi.org/10.1109/ISSCC.2014.6757323, for a 45 nm process at 0.9 V. In picojoules: float32 addition 0.9, multiplication 3.7; int8
multiplication 0.2, addition 0.03, int32 addition 0.1; 64 bits from a cache of 8 KB 10, from DRAM 1300 to 2600, of which the lower end is
taken. (Han and others halve them for 32 bits: 5 and 640.) Newer processes need less of everything; ratios of arithmetic to memory have
changed less. Estimated are, for one sample, layers with weights:

    arithmetic   a multiplication and an addition for each weight that exists and output position, as `flops` counts them
    weights      values and column numbers (int32, of sparse layers) come from DRAM once a batch
    activations  each product reads its input from the cache, each output is written there once

A layer that is quantised by row, and its input with it, has int8 products that are added up in int32, one byte for an activation, and
`bits` for a value. All other layers have float32, but for values of fewer bits. Biases, norms and activation functions are left out. A
training step in float32 has three times the arithmetic and the activations of a forward pass (more where a dense gradient is needed, see
`Flops.step`); values are read twice and written once, their gradient is written once, column numbers are read twice; the optimizer is
left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn

from ..nn import TopologyLayer
from ..nn.quantized import QuantizedLayer
from .flops import Flops, layer_flops, output_positions, shape_of, weight_layers

FLOAT_PRODUCT, INT8_PRODUCT = 3.7 + 0.9, 0.2 + 0.1  # picojoules, each with the addition to a sum
CACHE, DRAM = 10 / 8, 1300 / 8  # picojoules a byte
FLOAT, INT8, INDEX = 4.0, 1.0, 4.0  # bytes


@dataclass(frozen=True)
class Energy:
    """An estimate for one sample, in picojoules. See the module for the model behind it."""

    arithmetic: float
    weights: float
    activations: float

    @property
    def total(self) -> float:
        return self.arithmetic + self.weights + self.activations

    def __add__(self, other: Energy) -> Energy:
        return Energy(self.arithmetic + other.arithmetic, self.weights + other.weights, self.activations + other.activations)


@dataclass(frozen=True)
class EnergyEstimate:
    """Of a network, and of its layers by name: with the connections that exist, and with all that there could be, in float32.

    It is an estimate: `truesparse.metrics.energy` states the model.
    """

    layers: Mapping[str, Energy]
    dense_layers: Mapping[str, Energy]

    @property
    def sparse(self) -> Energy:
        """Of all layers."""
        return sum(self.layers.values(), NOTHING)

    @property
    def dense(self) -> Energy:
        """Of all layers with all connections."""
        return sum(self.dense_layers.values(), NOTHING)


NOTHING = Energy(0.0, 0.0, 0.0)


def energy(
    model: nn.Module, example: Any, *, samples: int | None = None, batch: int = 1, training: bool = False, every: int | None = None
) -> EnergyEstimate:
    """An estimate of the energy that one sample costs, by operations and bytes moved at the figures of Horowitz 2014 for 45 nm.

        estimate = ts.metrics.energy(model, x)
        print(estimate.sparse.total, estimate.dense.total)  # picojoules

    Args:
        model: dense, sparse, masked or quantised; it runs once, in eval mode.
        example: an input of the model.
        samples: in `example`; None: its first dimension.
        batch: samples that share one reading of the weights.
        training: of a training step, not of a forward pass.
        every: of a training step: steps between two that need the dense gradient; None: no step does, 0: every step does.

    Raises:
        ValueError: if `batch` is less than 1, or `every` is given for a forward pass.
        TypeError: if `samples` is left out and `example` is not a tensor.
    """
    if batch < 1:
        raise ValueError(f"batch is a number of samples, at least 1, got {batch}")
    if every is not None and not training:
        raise ValueError(f"every is about the dense gradient of training steps: pass training=True, got every={every}")
    return energy_at(model, output_positions(model, example, samples), batch, training, every)


def energy_at(
    model: nn.Module, positions: Mapping[str, int], batch: int = 1, training: bool = False, every: int | None = None
) -> EnergyEstimate:
    """The same where the output positions are known, as `output_positions` gives them."""
    layers, flops = weight_layers(model), layer_flops(model, positions)
    found, dense = dict.fromkeys(layers, NOTHING), dict.fromkeys(layers, NOTHING)
    for name in [name for name in layers if positions[name]]:
        shape, own = shape_of(layers[name]), flops[name]
        outputs = positions[name] * shape[0]
        found[name] = _energy(own, _held(layers[name], training), outputs, batch, training, every)
        dense[name] = _energy(Flops(own.dense, own.dense), _Held(prod(shape)), outputs, batch, training, None)
    return EnergyEstimate(found, dense)


@dataclass(frozen=True)
class _Held:
    """How the weights of a layer are held: their number, bytes a value and a column number; whether products are those of int8."""

    count: int
    value: float = FLOAT
    index: float = 0.0
    int8: bool = False


def _held(layer: nn.Module, training: bool) -> _Held:
    if not isinstance(layer, TopologyLayer):
        return _Held(prod(shape_of(layer)))
    if training or not isinstance(layer, QuantizedLayer):
        return _Held(layer.connections, FLOAT, INDEX)
    return _Held(layer.connections, layer.rounding.bits / 8, INDEX, layer.rounding.by == "row" and layer.input_rounding is not None)


def _energy(flops: Flops, held: _Held, outputs: int, batch: int, training: bool, every: int | None) -> Energy:
    products = (flops.step(every) if training else flops.sparse) / 2
    product, activation = (INT8_PRODUCT, INT8) if held.int8 else (FLOAT_PRODUCT, FLOAT)
    value_times, index_times, passes = (4, 2, 3) if training else (1, 1, 1)
    moved = held.count * (value_times * held.value + index_times * held.index)
    return Energy(products * product, moved * DRAM / batch, (products + passes * outputs) * activation * CACHE)
