"""The verbs as kernels in Triton, for GPUs; on CPU tensors in Triton's interpreter, for tests.

Triton is imported when a kernel is first asked for.
"""

from .verbs import (
    DTYPES,
    TILE_DTYPES,
    bitmap_convolution,
    bitmap_matrix,
    blocks_convolution,
    blocks_matrix,
    rows_convolution,
    rows_matrix,
    shared_convolution,
    shared_matrix,
)

__all__ = [
    "DTYPES",
    "TILE_DTYPES",
    "bitmap_convolution",
    "bitmap_matrix",
    "blocks_convolution",
    "blocks_matrix",
    "rows_convolution",
    "rows_matrix",
    "shared_convolution",
    "shared_matrix",
]
