"""How much is there to do, and how much of what the machine can do is that? The roofline.

Counted are, for a layer with `connections` connections whose output has `positions` positions (samples of a matrix; samples x
output height x output width of a convolution):

    multiply-adds   forward            connections x positions (taps that fall into the padding included)
                    forward + backward three times that: y, dx and dW on the connections
    least bytes     forward            reads x, values and column indices (int32) once each, writes y once
                    backward           reads dy, x, values and indices once each, writes dx and dW once each
                    forward + backward both: what the backward reads has left the caches by then

Activations (x, y and their gradients) have 4 bytes an entry, 2 under autocast in bfloat16; values, their gradients and indices have 4.
A share above 100 % of the memory bandwidth says that the caches served; one above 100 % of the multiply-adds, which are float32,
that bfloat16 units did.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from math import prod

import torch

from .. import _core
from ..common.devices import CPU, elapsed
from ..topology.geometry import Convolution, Geometry

BYTES_OF_VALUE = BYTES_OF_INDEX = 4
PEAK_ROUNDS = 5_000_000  # some 10 ms: starting threads shall not count
SIDE = 4096  # of the dense matrices by which the peak of a GPU is taken
COPIED_FLOATS = 32 << 20  # 128 MB from, 128 MB to: more than the caches next to a core
PEAK_TRIES = 20


@dataclass(frozen=True)
class Work:
    """Multiply-adds to do, and the least bytes to move between memory and processor."""

    multiply_adds: int
    least_bytes: int

    def __add__(self, other: Work) -> Work:
        return Work(self.multiply_adds + other.multiply_adds, self.least_bytes + other.least_bytes)


@dataclass(frozen=True)
class Peaks:
    """What the machine does at best on that many threads, a second.

    Args:
        multiply_adds: float32, from registers, with the instruction set of the kernels.
        bytes: read plus written by a copy of 128 MB.
    """

    threads: int
    multiply_adds: float
    bytes: float


def forward_work(geometry: Geometry, connections: int, input_shape: tuple[int, ...], activation_bytes: int) -> Work:
    """Of y from x of `input_shape` (batch first)."""
    inputs, outputs, positions = _sizes(geometry, input_shape)
    topology = connections * (BYTES_OF_VALUE + BYTES_OF_INDEX)
    return Work(connections * positions, activation_bytes * (inputs + outputs) + topology)


def backward_work(geometry: Geometry, connections: int, input_shape: tuple[int, ...], activation_bytes: int) -> Work:
    """Of dx and dW from dy and x."""
    inputs, outputs, positions = _sizes(geometry, input_shape)
    topology = connections * (BYTES_OF_VALUE + BYTES_OF_INDEX + BYTES_OF_VALUE)
    return Work(2 * connections * positions, activation_bytes * (outputs + 2 * inputs) + topology)


def shares(work: Work, seconds: float, peaks: Peaks) -> tuple[float, float]:
    """(share of the peak multiply-adds, share of the memory bandwidth) that doing `work` in `seconds` achieves."""
    return work.multiply_adds / seconds / peaks.multiply_adds, work.least_bytes / seconds / peaks.bytes


def measure_peaks(threads: int, device: torch.device = CPU) -> Peaks:
    """The best of a few tries on `threads` threads, which stay torch's; or of a GPU, whose multiply-adds are those of cuBLAS in float32."""
    torch.set_num_threads(threads)
    if device.type != "cpu":
        return _peaks_of(device, threads)
    source, target = torch.ones(COPIED_FLOATS), torch.ones(COPIED_FLOATS)  # written, or there would be no memory behind them yet
    multiply_adds, copied = 0.0, 0.0
    for _ in range(PEAK_TRIES):
        start = time.perf_counter()
        done = _core.multiply_adds(PEAK_ROUNDS, threads)
        middle = time.perf_counter()
        target.copy_(source)
        end = time.perf_counter()
        multiply_adds = max(multiply_adds, done / (middle - start))
        copied = max(copied, 2 * source.nbytes / (end - middle))
    return Peaks(threads, multiply_adds, copied)


def _peaks_of(device: torch.device, threads: int) -> Peaks:
    matrix, source = torch.ones(SIDE, SIDE, device=device), torch.ones(COPIED_FLOATS, device=device)
    target = torch.empty_like(source)
    with torch.no_grad():
        multiplied, copied = (
            [elapsed(call, device) for _ in range(PEAK_TRIES)] for call in (lambda: matrix @ matrix, lambda: target.copy_(source))
        )
    return Peaks(threads, SIDE**3 / min(multiplied), 2 * source.nbytes / min(copied))


def _sizes(geometry: Geometry, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(entries of the input, entries of the output, positions of the output)."""
    positions = input_shape[0]
    if isinstance(geometry, Convolution):
        positions *= prod(geometry.output_size(input_shape[2:]))
    return prod(input_shape), positions * geometry.shape[0], positions
