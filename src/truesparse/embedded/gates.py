"""What is a recurrent layer in integers? Written down exactly, as `integer.py` is: the C gives the same bits.

Inputs, weights and what the layer gives are int8. In between, sums, gates, states and cells are whole numbers of which `ONE`, 2^15, is 1:
a product of two is divided by `ONE`, to the nearest, halves away from zero. The logistic function is a table of steps of 1/16 between 0
and 16, with straight lines between them; tanh(x) is 2 logistic(2x) - 1. The state is rounded to int8 only where a matrix multiplies it,
and where it leaves the layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .integer import Factor, IntegerMatrix, Sums, integer_matrix, narrowed
from .network import Recurrent
from .scale import SIGNED, Bytes, Scale

ONE_BITS = 15
ONE = 1 << ONE_BITS
FIXED = Scale(1 / ONE, 0)
LARGEST_SUM = 1 << 24  # beyond, where no gate changes any more, sums stay there
PART_BITS = 11  # a step of the table is 2^11 / 2^15 = 1/16
PARTS = 256
LONGEST = 2**16 - 1  # steps: a cell grows by 1 in each, at most

LOGISTIC = np.round(ONE / (1 + np.exp(-np.arange(PARTS + 1) / 16))).astype(np.uint16)
"""Of 0, 1/16, ..., 16."""


@dataclass(frozen=True, eq=False)
class IntegerGates:
    """The weights of a recurrent layer in integers.

    Args:
        inputs, state: the matrices that multiply the input and the state.
        held: the int8 of the state that is multiplied.
    """

    inputs: IntegerMatrix
    state: IntegerMatrix
    held: Scale


def integer_gates(step: Recurrent, source: Scale) -> IntegerGates:
    """The weights of a recurrent layer that reads numbers of one scale.

    Raises:
        ValueError: if the sum of a row could leave 32 bits.
    """
    stated = step.state.stated
    held = SIGNED if stated is None or stated.source is None else stated.source
    return IntegerGates(integer_matrix(step.inputs, source, FIXED), integer_matrix(step.state, held, FIXED), held)


def fixed(sums: Sums, weights: IntegerMatrix) -> Sums:
    """Sums of products in parts of `ONE`, [..., rows]."""
    product = sums.astype(np.int64) * weights.mantissas.astype(np.int64)
    rounded = (np.abs(product) + (1 << (weights.shift - 1))) >> weights.shift
    return np.sign(product) * np.minimum(rounded, LARGEST_SUM)


def times(one: Sums, other: Sums) -> Sums:
    """The product of two fixed-point numbers."""
    product = one * other
    return np.sign(product) * ((np.abs(product) + ONE // 2) >> ONE_BITS)


def logistic(x: Sums) -> Sums:
    """1 / (1 + exp(-x))"""
    magnitude = np.minimum(np.abs(x), (PARTS << PART_BITS) - 1)
    at, rest = magnitude >> PART_BITS, magnitude & ((1 << PART_BITS) - 1)
    below, above = LOGISTIC[at].astype(np.int64), LOGISTIC[at + 1].astype(np.int64)
    value = below + (((above - below) * rest + (1 << (PART_BITS - 1))) >> PART_BITS)
    return np.where(x < 0, ONE - value, value)


def tanh(x: Sums) -> Sums:
    """2 logistic(2x) - 1"""
    return 2 * logistic(2 * x) - ONE


def run_gates(step: Recurrent, weights: IntegerGates, x: Bytes, target: Scale) -> Bytes:
    """What a recurrent layer gives.

    Args:
        x: [batch, steps, inputs] int8.
        target: scale of what it gives.
    """
    held, out = state_factor(weights.held), state_factor(target)
    by_input = fixed(_sums(weights.inputs, x), weights.inputs)
    state = np.zeros((len(x), step.hidden), np.int64)
    cell, states = state, []
    for at in range(step.steps):
        by_state = fixed(_sums(weights.state, narrowed(state, held.mantissa, held.shift, weights.held.zero)), weights.state)
        state, cell = _next(step.mode, by_input[:, at], by_state, state, cell)
        states.append(narrowed(state, out.mantissa, out.shift, target.zero))
    return np.stack(states, 1) if step.every else states[-1]


def state_factor(scale: Scale) -> Factor:
    """From a state to an int8."""
    return Factor.of(FIXED.scale / scale.scale)


def _next(mode: str, by_input: Sums, by_state: Sums, state: Sums, cell: Sums) -> tuple[Sums, Sums]:
    """(state, cell) after a step; gates in torch's order."""
    if mode == "GRU":
        (reset, update, new), (reset_too, update_too, new_too) = (np.split(one, 3, -1) for one in (by_input, by_state))
        fresh = tanh(new + times(logistic(reset + reset_too), new_too))
        return fresh + times(logistic(update + update_too), state - fresh), cell
    if mode == "LSTM":
        take, forget, new, give = np.split(by_input + by_state, 4, -1)
        cell = times(logistic(forget), cell) + times(logistic(take), tanh(new))
        return times(logistic(give), tanh(cell)), cell
    return tanh(by_input + by_state), cell


def _sums(weights: IntegerMatrix, x: Bytes) -> NDArray[np.int64]:
    return (x.astype(np.float64) @ weights.dense.T).astype(np.int64) + weights.folded
