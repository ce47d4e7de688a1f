"""What is the integer arithmetic of an int8 network? Written down exactly: the C gives the same bits.

Activations: x is about `scale * (q - zero)` with q an int8, one scale a tensor. Weights: int8, -127 to 127, one scale a row, no zero.
A sum of products is int32, and begins with the bias as an int32 of scale (input scale * weight scale). It becomes the int8 of the
output by one rule: times an integer mantissa of its row, below 2^31, divided by 2^shift of its layer, rounded to the nearest with
halves away from zero, plus the output's zero, clamped. Jacob et al. 2018, https://arxiv.org/abs/1712.05877, has the idea; the rounding
is as said here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import frexp
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .network import Matrix
from .scale import LEAST, MOST, Bytes, Scale

Sums = NDArray[np.int64]

LARGEST_WEIGHT = 127
SUM_LIMIT = 2**31 - 1
BIAS_LIMIT = 2**30
MANTISSA_BITS = 31
SMALLEST_FACTOR = 2.0**-16  # from a sum to an output: finer would be of no use
NEAR = 1e-3  # of 1: whole numbers are recognised in products of float32
MEAN_PARTS = 256
MOST_AVERAGED = 2**15  # numbers: their sum in 256ths is inside of 32 bits
ADD_BITS = 20  # of the larger of two mantissas of an addition: both products and their sum are of 31 bits


@dataclass(frozen=True)
class Factor:
    """A positive number as mantissa / 2^shift."""

    mantissa: int
    shift: int

    @classmethod
    def of(cls, real: float) -> Factor:
        """
        Raises:
            ValueError: if it is 2^30 or larger.
        """
        fraction, exponent = frexp(real)
        mantissa = round(fraction * 2**MANTISSA_BITS)
        if mantissa == 2**MANTISSA_BITS:
            mantissa, exponent = mantissa // 2, exponent + 1
        shift = MANTISSA_BITS - exponent
        if shift > 62:  # rounds every sum to 0
            return cls(0, 1)
        if shift < 1:
            raise ValueError(f"a sum would be multiplied by {real:.3g} to become an int8: the ranges of activations cannot be right")
        return cls(mantissa, shift)


@dataclass(frozen=True, eq=False)
class IntegerMatrix:
    """The weights of a layer in integers.

    Args:
        matrix: its connections, those whose weight rounds to 0 left out; the values are those that the integers stand for.
        values: int8, [nnz].
        bias: int32 at scale (input scale * weight scale of the row), [rows].
        folded: the same minus input zero * sum of the row's weights: with it, sums begin that take the inputs as they are, [rows].
        mantissas: of the factor of each row, [rows].
        shift: of them all.
        low, high: that the output is clamped to.
        source, target: scales of input and output.
    """

    matrix: Matrix
    values: Bytes
    bias: NDArray[np.int32]
    folded: NDArray[np.int32]
    mantissas: NDArray[np.int32]
    shift: int
    low: int
    high: int
    source: Scale
    target: Scale

    @property
    def dense(self) -> NDArray[np.float64]:
        """[rows, columns], of which products are exact: whole numbers below 2^53."""
        dense = np.zeros((self.matrix.rows, self.matrix.columns))
        dense[self.matrix.row_of_each, self.matrix.indices] = self.values
        return dense


def integer_matrix(matrix: Matrix, source: Scale, target: Scale) -> IntegerMatrix:
    """The weights of a layer between two scales: the numbers that it has been rounded to, or else the largest weight of a row is 127.

    Raises:
        ValueError: if the sum of a row could leave 32 bits.
    """
    row = matrix.row_of_each
    if matrix.stated is not None and matrix.stated.scales is not None:
        weight_scales = matrix.stated.scales
        numbers = np.abs(matrix.values / weight_scales[row])
        if numbers.size and (np.abs(numbers - np.round(numbers)).max() > NEAR or numbers.max() > LARGEST_WEIGHT + NEAR):
            raise ValueError(
                "its weights are not the whole numbers that ts.quantize has made of them: ts.dequantize(model) first, and report it"
            )
    else:
        weight_scales = np.zeros(matrix.rows)
        np.maximum.at(weight_scales, row, np.abs(matrix.values.astype(np.float64)) / LARGEST_WEIGHT)
    bias = matrix.bias.astype(np.float64)
    # A row of small weights, or of none, must leave its bias inside 30 bits, and its factor a factor. Numbers that are stated then
    # become coarser, where that is less than a 500th of a step of the output, or a 2^30th of the bias, for each.
    least = np.maximum(np.abs(bias) / (source.scale * BIAS_LIMIT), target.scale / source.scale * SMALLEST_FACTOR)
    scales = np.maximum(weight_scales, least)
    values = _rounded(matrix.values / scales[row])
    kept = values != 0
    fan_in = np.bincount(row[kept], minlength=matrix.rows)
    q = np.clip(values[kept], -LARGEST_WEIGHT, LARGEST_WEIGHT).astype(np.int8)
    whole_bias = _rounded(bias / (source.scale * scales)).astype(np.int64)
    sums = np.bincount(row[kept], q, matrix.rows).astype(np.int64)
    most = np.abs(whole_bias) + np.bincount(row[kept], np.abs(q.astype(np.int64)), matrix.rows) * (MOST - LEAST)
    if most.size and most.max() > SUM_LIMIT:
        raise ValueError(f"the sum of row {int(most.argmax())} could leave 32 bits: it has {fan_in[most.argmax()]:,} connections")
    factors = source.scale * scales / target.scale
    shift = Factor.of(float(factors.max(initial=SMALLEST_FACTOR))).shift
    real = (q.astype(np.float64) * scales[row[kept]]).astype(np.float32)
    return IntegerMatrix(
        replace(matrix, fan_in=fan_in, indices=matrix.indices[kept], values=real),
        q,
        whole_bias.astype(np.int32),
        (whole_bias - source.zero * sums).astype(np.int32),
        np.minimum(_rounded(factors * 2.0**shift), SUM_LIMIT).astype(np.int32),
        shift,
        target.bound(matrix.low),
        target.bound(matrix.high),
        source,
        target,
    )


def narrowed(sums: Sums, mantissa: NDArray[np.int64] | int, shift: int, zero: int, low: int = LEAST, high: int = MOST) -> Bytes:
    """The int8 of sums: times mantissa, divided by 2^shift, rounded with halves away from zero, plus zero, clamped."""
    product = sums.astype(np.int64) * mantissa
    rounded = np.sign(product) * ((np.abs(product) + (1 << (shift - 1))) >> shift)
    return np.clip(rounded + zero, low, high).astype(np.int8)


def divided(sums: Sums, count: NDArray[np.int64] | int) -> Sums:
    """Rounded to the nearest, halves away from zero."""
    return np.sign(sums) * ((np.abs(sums) + np.asarray(count) // 2) // count)


def mean_factor(source: Scale, target: Scale) -> Factor:
    """From 256ths of a step of what is averaged to steps of the mean."""
    return Factor.of(source.scale / target.scale / MEAN_PARTS)


def mean(sums: Sums, count: NDArray[np.int64] | int, source: Scale, target: Scale) -> Bytes:
    """Of sums of (q - zero): rounded to 256ths of a step, then to the output."""
    factor = mean_factor(source, target)
    return narrowed(divided(MEAN_PARTS * sums, count), factor.mantissa, factor.shift, target.zero)


def table(source: Scale, target: Scale, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Bytes:
    """What a function of one number gives for each of the 256 inputs, from -128 on."""
    x = (np.arange(LEAST, MOST + 1, dtype=np.float64) - source.zero) * source.scale
    return np.clip(_rounded(function(x) / target.scale) + target.zero, LEAST, MOST).astype(np.int8)


def powers(source: Scale) -> NDArray[np.uint16]:
    """exp(-scale * d) for d = 0 to 255, as parts of 65535."""
    return np.round(65535 * np.exp(-source.scale * np.arange(256))).astype(np.uint16)


def softmax(q: Bytes, source: Scale) -> Bytes:
    """Over the last dimension, as parts of 256."""
    shares = powers(source).astype(np.int64)[q.max(-1, keepdims=True).astype(np.int64) - q]
    whole = shares.sum(-1, keepdims=True)
    return np.minimum((shares * 256 + whole // 2) // whole + LEAST, MOST).astype(np.int8)


def add_factors(one: Scale, other: Scale, target: Scale) -> tuple[int, int, int]:
    """(mantissa of the one, of the other, shift): both shifted by the same, the larger one of `ADD_BITS` bits."""
    larger = max(one.scale, other.scale) / target.scale
    shift = min(max(ADD_BITS - frexp(larger)[1], 1), 30)
    return round(one.scale / target.scale * 2**shift), round(other.scale / target.scale * 2**shift), shift


def added(x: Bytes, other: Bytes, one: Scale, two: Scale, target: Scale) -> Bytes:
    """The sum of two tensors."""
    first, second, shift = add_factors(one, two, target)
    total = (x.astype(np.int64) - one.zero) * first + (other.astype(np.int64) - two.zero) * second
    return narrowed(total, 1, shift, target.zero)


def _rounded(x: NDArray[Any]) -> NDArray[np.float64]:
    """To the nearest, halves away from zero."""
    return np.sign(x) * np.floor(np.abs(x).astype(np.float64) + 0.5)
