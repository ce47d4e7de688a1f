"""Which tiles does a kernel work in, and with how many warps? Small tables; nothing is tried out, so nothing needs a GPU to be chosen.

They are reckoned, and not measured yet: sums and loads under way fit into registers, which `tests/gpu/test_compiled.py` sees to.
"""

from __future__ import annotations

from typing import NamedTuple


class Configuration(NamedTuple):
    """Of one launch.

    Args:
        sizes: the tile, by the names that the kernel has for its extents; powers of two.
        warps: of 32 threads, that share a program.
        stages: how many loads of a loop are under way at once.
    """

    sizes: dict[str, int]
    warps: int = 4
    stages: int = 2


Table = tuple[tuple[int, Configuration], ...]  # (up to how many pixels of an image, which)

MANY = 1 << 62

ROWS_PRODUCT: Table = (
    (1, Configuration({"ROWS": 4, "CONNECTIONS": 64, "PIXELS": 1})),
    (16, Configuration({"ROWS": 8, "CONNECTIONS": 8, "PIXELS": 16})),
    (64, Configuration({"ROWS": 8, "CONNECTIONS": 4, "PIXELS": 64})),
    (MANY, Configuration({"ROWS": 8, "CONNECTIONS": 2, "PIXELS": 128})),
)
ROWS_SAMPLED: Table = (
    (16, Configuration({"CONNECTIONS": 64, "PIXELS": 16})),
    (MANY, Configuration({"CONNECTIONS": 32, "PIXELS": 64})),
)
BITMAP_PRODUCT: Table = (
    (16, Configuration({"ROWS": 32, "COLUMNS": 64, "PIXELS": 16})),
    (64, Configuration({"ROWS": 64, "COLUMNS": 32, "PIXELS": 64})),
    (MANY, Configuration({"ROWS": 64, "COLUMNS": 32, "PIXELS": 128}, warps=8)),
)
BITMAP_TRANSPOSED: Table = (
    (16, Configuration({"ROWS": 64, "COLUMNS": 32, "PIXELS": 16})),
    (64, Configuration({"ROWS": 32, "COLUMNS": 64, "PIXELS": 64})),
    (MANY, Configuration({"ROWS": 32, "COLUMNS": 64, "PIXELS": 128}, warps=8)),
)
BITMAP_SAMPLED: Table = (
    (16, Configuration({"ROWS": 64, "COLUMNS": 64, "PIXELS": 16})),
    (MANY, Configuration({"ROWS": 64, "COLUMNS": 64, "PIXELS": 32})),
)
SHARED_PRODUCT: Table = (
    (16, Configuration({"COLUMNS": 64, "PIXELS": 16})),
    (64, Configuration({"COLUMNS": 32, "PIXELS": 64}, warps=8)),
    (MANY, Configuration({"COLUMNS": 16, "PIXELS": 128}, warps=8)),
)
SHARED_TRANSPOSED: Table = (
    (16, Configuration({"COLUMNS": 64, "TILES": 1, "PIXELS": 16})),
    (MANY, Configuration({"COLUMNS": 32, "TILES": 4, "PIXELS": 64}, warps=8)),
)
SHARED_SAMPLED: Table = (
    (16, Configuration({"COLUMNS": 64, "PIXELS": 16}, warps=8)),
    (MANY, Configuration({"COLUMNS": 64, "PIXELS": 32}, warps=8)),
)
SHARED_ROWS = 64, 32, 16  # of a group that `shared` has, those to prefer first
SHARED_PARTS = 64 << 20  # bytes of W^T dy before its sums that are held at a time
BLOCKS: Table = (
    (16, Configuration({"PIXELS": 16})),
    (64, Configuration({"PIXELS": 64}, warps=8)),
    (MANY, Configuration({"PIXELS": 128}, warps=8)),
)
BLOCKS_SAMPLED: Table = (
    (16, Configuration({"PIXELS": 16})),
    (MANY, Configuration({"PIXELS": 32})),
)
GRADIENTS_SEARCHED: Table = ((MANY, Configuration({"ROWS": 64, "COLUMNS": 32, "PIXELS": 16}, stages=1)),)
BLOCK_SIZES = 64, 32, 16  # that `blocks` has, the one to prefer first

# kernel: its table. Every line of each is compiled in tests, for every dtype that its form has.
TABLES: dict[str, Table] = {
    "rows_product": ROWS_PRODUCT,
    "rows_sampled": ROWS_SAMPLED,
    "gradients_searched": GRADIENTS_SEARCHED,
    "bitmap_product": BITMAP_PRODUCT,
    "bitmap_transposed": BITMAP_TRANSPOSED,
    "bitmap_sampled": BITMAP_SAMPLED,
    "shared_product": SHARED_PRODUCT,
    "shared_transposed": SHARED_TRANSPOSED,
    "shared_sampled": SHARED_SAMPLED,
    "blocks_product": BLOCKS,
    "blocks_transposed": BLOCKS,
    "blocks_sampled": BLOCKS_SAMPLED,
}


def configuration(kernel: str, pixels: int) -> Configuration:
    """The one for images of that many pixels."""
    return next(found for most, found in TABLES[kernel] if pixels <= most)
