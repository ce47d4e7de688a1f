"""Which lines make the tables of the guide? A name for each of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product

from ..topology.geometry import Matrix
from ..topology.patterns import NM, FanIn, Pattern, Unstructured
from .inference import InferenceCase
from .inference_cases import LinearCase

SMALL, LARGE = Matrix(768, 3072), Matrix(4096, 4096)  # (rows, columns): within and beyond the second-level cache when sparse
WINDOWS_OF_32 = tuple(NM(count, 32) for count in (6, 3, 2, 1))  # 81, 91, 94 and 97 % sparse

# SRigL's linear layer in CPU inference, the second of the last perceptron of ViT-B/16: share of its neurons that training ablated, by
# sparsity. The authors publish times, not counts (https://github.com/calgaryml/condensed-sparsity, smaller_width_final.txt): on one thread,
# for 2048 samples, their dense layer of the neurons left takes 47, 51, 50 and 67 % of the dense time, which grows with the neurons there.
ABLATED = {0.8: 0.53, 0.9: 0.49, 0.95: 0.50, 0.99: 0.33}
SRIGL_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 2048)


def one_sample(batches: Sequence[int] | None) -> list[InferenceCase]:
    """Unstructured layers of two sizes, with bfloat16 values, in windows, with constant fan-in."""
    sparsities, even = (0.5, 0.8, 0.9, 0.95, 0.99), (0.8, 0.9, 0.95, 0.99)
    layers: list[tuple[LinearCase, str]] = [
        *_each(SMALL, sparsities, Unstructured(), "float32"),
        *_each(LARGE, sparsities, Unstructured(), "float32"),
        *_each(SMALL, sparsities, Unstructured(), "bfloat16"),
        *_each(SMALL, even, FanIn(), "float32"),
        *((LinearCase(SMALL, 1 - pattern.n / pattern.m, pattern), "float32") for pattern in WINDOWS_OF_32),
    ]
    return [InferenceCase(layer, batch, values) for batch, (layer, values) in product(batches or (1,), layers)]


def srigl(batches: Sequence[int] | None) -> list[InferenceCase]:
    """Constant fan-in with as many neurons ablated as training did."""
    layers = [LinearCase(SMALL, sparsity, FanIn(), ablated) for sparsity, ablated in ABLATED.items()]
    return [InferenceCase(layer, batch) for layer, batch in product(layers, batches or SRIGL_BATCHES)]


def break_even(batches: Sequence[int] | None) -> list[InferenceCase]:
    """Low sparsities, where dense begins to lose."""
    shapes, sparsities = (Matrix(512, 512), SMALL, Matrix(2048, 2048)), (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    layers = [LinearCase(matrix, sparsity, Unstructured()) for matrix, sparsity in product(shapes, sparsities)]
    lines = product(layers, batches or (1, 4, 16, 64, 256))
    return [InferenceCase(layer, batch, rivals=False) for layer, batch in lines]


def values(batches: Sequence[int] | None) -> list[InferenceCase]:
    """The same layers with each kind of values, for their errors. By rule, or layers for which they are slower would keep float32."""
    layers = [LinearCase(matrix, sparsity, Unstructured()) for matrix, sparsity in product((SMALL, LARGE), (0.8, 0.9, 0.95))]
    kinds = product(layers, batches or (1,), ("float32", "bfloat16", "int8"))
    return [InferenceCase(layer, batch, kind, tune=False) for layer, batch, kind in kinds]


TABLES: Mapping[str, Callable[[Sequence[int] | None], list[InferenceCase]]] = {
    "one-sample": one_sample,
    "srigl": srigl,
    "break-even": break_even,
    "values": values,
}


def _each(matrix: Matrix, sparsities: Sequence[float], pattern: Pattern, values: str) -> list[tuple[LinearCase, str]]:
    return [(LinearCase(matrix, sparsity, pattern), values) for sparsity in sparsities]
