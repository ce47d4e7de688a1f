"""In which form does a kernel read the connections? What each form holds of a topology, and how its kernels are called.

Arguments are checked already. Values are in the order of the topology, whatever the form: it holds only where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...common.devices import tf32_allowed
from ...topology import Topology
from ...topology.merge import counted
from ...topology.shared import shared_rows
from .configurations import BLOCK_SIZES, SHARED_PARTS, SHARED_ROWS
from .loading import launch

WORD, GROUP = 64, 4  # of a bitmap: bits, and words that share the place where their values begin; as in `kernels.py`
BITMAP_DENSITY = 0.03  # from which on half-precision tiles of W pay, by arithmetic: below, most of a tile is zeros


class Images(NamedTuple):
    """What a product is over, alike for all features.

    Args:
        number: of images; the samples of a matrix are the pixels of one.
        pixels: of each.
        width: of a line of pixels; None if an image is one line.
    """

    number: int
    pixels: int
    width: int | None = None

    def tiles(self, sizes: dict[str, int]) -> int:
        return self.number * _tiles(self.pixels, sizes["PIXELS"])


class Side(NamedTuple):
    """One tensor of a product, and where in it the pixels of a feature lie, in elements.

    Args:
        tensor: of any strides.
        stride: from the start of a feature to that of the next.
        image, line, step: from an image, a line, a pixel to the next. Of images that are one line, the line is not read.
        starts: [features] int64, the start of each feature, instead of `stride`.
        group: from the features of one group of rows to those of the next; None if rows share all.
    """

    tensor: Tensor
    stride: int
    image: int
    line: int = 0
    step: int = 0
    starts: Tensor | None = None
    group: int | None = None

    @property
    def places(self) -> tuple[int, int, int]:
        return self.image, self.line, self.step

    @property
    def of_tiles(self) -> tuple[Tensor, int, int, int]:
        """As the kernels of tiles take it, whose images are one line."""
        return self.tensor, self.stride, self.image, self.step


class Tables:
    """Tables of places, each made once: most of a small convolution would be making them. None is let go, for CUDA graphs read them where
    they lie; so the first `MOST` alone are kept, and none that is made within a capture, which is there once the graph is replayed.
    """

    MOST = 64

    def __init__(self) -> None:
        self._held: dict[Hashable, Tensor] = {}

    @property
    def nbytes(self) -> int:
        return _nbytes(*self._held.values())

    def get(self, key: Hashable, make: Callable[[], Tensor]) -> Tensor:
        found = self._held.get(key)
        if found is None:
            found = make()
            if len(self._held) < self.MOST and not (found.is_cuda and torch.cuda.is_current_stream_capturing()):
                self._held[key] = found
        return found


class Form(Protocol):
    """y = W x + bias, dx = W^T dy, and dW at the connections."""

    name: str
    gathered: tuple[str, ...]  # which of "x" and "dy" it reads feature by feature

    @property
    def nbytes(self) -> int: ...

    def product(self, values: Tensor, x: Side, bias: Tensor | None, y: Side, images: Images) -> None: ...

    def transposed(self, values: Tensor, dy: Side, dx: Side, images: Images) -> None: ...

    def sampled(self, dvalues: Tensor, x: Side, dy: Side, images: Images) -> None: ...


class Connections(NamedTuple):
    """A matrix, row by row.

    Args:
        indptr, indices: as in a topology.
        permutation: [nnz] int32, where in the values each connection is; None if they are in this order.
        rows_of_group: how many rows share their features.
    """

    indptr: Tensor
    indices: Tensor
    permutation: Tensor | None
    rows_of_group: int

    @classmethod
    def sorted(cls, targets: int, target: Tensor, source: Tensor) -> Connections:
        """Those of a matrix whose row is `target` and whose column is `source` [nnz] of each connection."""
        order = target.argsort(stable=True)
        indptr = torch.zeros(targets + 1, dtype=torch.int64, device=target.device)
        torch.cumsum(counted(target, targets), 0, out=indptr[1:])
        return cls(indptr.to(torch.int32), source[order].to(torch.int32), order.to(torch.int32), max(targets, 1))

    @property
    def nbytes(self) -> int:
        return _nbytes(self.indptr, self.indices, self.permutation)

    def product(self, values: Tensor | None, x: Side, bias: Tensor | None, y: Side, images: Images) -> None:
        """`values`: None if all are 1."""
        rows = self.indptr.numel() - 1
        launch(
            "rows_product",
            images.pixels,
            lambda sizes: _tiles(rows, sizes["ROWS"]) * images.tiles(sizes),
            self.indptr,
            self.indices,
            self.permutation,
            values,
            bias,
            *(x.tensor, x.starts, x.stride, x.group, self.rows_of_group, *x.places),
            *(y.tensor, y.starts, y.stride, *y.places),
            *(rows, images.pixels, images.width),
            device=y.tensor.device,
        )


class Rows:
    """Connections one by one: for every topology and dtype, and for what is too sparse for tiles.

    Args:
        rows_of_group: rows that share their features; None is all.
    """

    name = "rows"
    gathered: tuple[str, ...] = ("x", "dy")

    def __init__(self, topology: Topology, rows_of_group: int | None = None) -> None:
        self.topology = topology
        self._of_rows = Connections(topology.indptr, topology.indices, None, rows_of_group or max(topology.shape[0], 1))
        self._row_of_each: Tensor | None = None
        self._of_columns: Connections | Bitmap | None = None

    @property
    def nbytes(self) -> int:
        return _nbytes(self._row_of_each) + (self._of_columns.nbytes if self._of_columns else 0)

    def product(self, values: Tensor, x: Side, bias: Tensor | None, y: Side, images: Images) -> None:
        self._of_rows.product(values, x, bias, y, images)

    def transposed(self, values: Tensor, dy: Side, dx: Side, images: Images) -> None:
        if self._of_columns is None:
            self._of_columns = self._by_column()
        self._of_columns.product(values, dy, None, dx, images)

    def _by_column(self) -> Connections | Bitmap:
        return Connections.sorted(self.topology.shape[1], self.topology.indices.to(torch.int64), self.topology.rows)

    def sampled(self, dvalues: Tensor, x: Side, dy: Side, images: Images) -> None:
        if self._row_of_each is None:
            self._row_of_each = self.topology.rows
        launch(
            "rows_sampled",
            images.pixels,
            lambda sizes: _tiles(self.topology.nnz, sizes["CONNECTIONS"]),
            self._row_of_each,
            self.topology.indices,
            dvalues,
            *(x.tensor, x.starts, x.stride, x.group, self._of_rows.rows_of_group, *x.places),
            *(dy.tensor, dy.stride, *dy.places),
            *(self.topology.nnz, *images),
            device=dvalues.device,
        )


class Bitmap:
    """A bit for each place of W, and for each 256 of a row 32 bits that say where their values begin: 1.125 bits a place.

    For 3 to 50 % of the places connected.

    Args:
        permutation: [nnz] int32, where in the values each connection is; None if they are in the order of the topology.
    """

    name = "bitmap"
    gathered: tuple[str, ...] = ()

    def __init__(self, topology: Topology, permutation: Tensor | None = None) -> None:
        self._permutation = permutation
        self.rows, self.columns = topology.shape
        self.words = _tiles(self.columns, WORD)
        groups, rows = _tiles(self.words, GROUP), topology.rows.to(torch.int64)
        word, bit = (
            topology.indices // WORD,
            torch.ones(topology.nnz, dtype=torch.int64, device=topology.device) << (topology.indices % WORD),
        )
        held = torch.zeros(self.rows * self.words, dtype=torch.int64, device=topology.device)
        self._bits = held.index_add(0, rows * self.words + word, bit)  # the last bit is the sign
        counts = counted(rows * groups + word // GROUP, self.rows * groups)
        self._first = (counts.cumsum(0) - counts).to(torch.int32)

    @property
    def nbytes(self) -> int:
        return _nbytes(self._bits, self._first, self._permutation)

    def product(self, values: Tensor, x: Side, bias: Tensor | None, y: Side, images: Images) -> None:
        launch(
            "bitmap_product",
            images.pixels,
            lambda sizes: _tiles(self.rows, sizes["ROWS"]) * images.tiles(sizes),
            *(self._bits, self._first, self._permutation, values, bias),
            *(x.tensor, x.starts, x.stride, *x.places, y.tensor, y.starts, y.stride, *y.places),
            *(self.rows, self.columns, self.words, images.pixels, images.width),
            device=values.device,
            PRECISION=precision(),
        )

    def transposed(self, values: Tensor, dy: Side, dx: Side, images: Images) -> None:
        launch(
            "bitmap_transposed",
            images.pixels,
            lambda sizes: _tiles(self.columns, sizes["COLUMNS"]) * images.tiles(sizes),
            *(self._bits, self._first, values, *dy.of_tiles, *dx.of_tiles),
            *(self.rows, self.columns, self.words, images.pixels),
            device=values.device,
            PRECISION=precision(),
        )

    def sampled(self, dvalues: Tensor, x: Side, dy: Side, images: Images) -> None:
        launch(
            "bitmap_sampled",
            images.pixels,
            lambda sizes: _tiles(self.rows, sizes["ROWS"]) * _tiles(self.columns, sizes["COLUMNS"]),
            *(self._bits, self._first, dvalues, x.tensor, x.starts, x.stride, *x.places, *dy.of_tiles),
            *(self.rows, self.columns, self.words, *images),
            device=dvalues.device,
            PRECISION=precision(),
        )


class Shared:
    """Groups of neighbouring rows that have the same columns: 4 bytes a group, and 4 more for each of its columns for the gradient of x.

    That gradient needs what each group gives each of its columns, before the sums over the groups: a number of `parts_dtype` for each
    column of each group and each pixel. `samples_at_once` says of how many samples.

    Args:
        rows_of_group: rows that share their features, those of a group of a convolution; None is all.

    Raises:
        ValueError: if rows do not share their columns.
    """

    name = "shared"
    gathered: tuple[str, ...] = ("x",)

    def __init__(self, topology: Topology, rows_of_group: int | None = None) -> None:
        rows = topology.shape[0]
        size = shared_size(topology, rows_of_group or rows)
        if size is None:
            raise ValueError(f"expected groups of {', '.join(map(str, SHARED_ROWS))} rows that share their columns, got {topology}")
        self.topology, self.size, self.groups = topology, size, rows // size
        self.rows_of_group = rows_of_group or rows
        self.columns = topology.nnz // size  # of all groups together
        self.usual = _tiles(self.columns, self.groups)
        self._pointers = topology.indptr[::size] // size
        self._of_columns: Connections | None = None

    @property
    def nbytes(self) -> int:
        return _nbytes(self._pointers) + (self._of_columns.nbytes if self._of_columns else 0)

    def columns_of_groups(self) -> tuple[Tensor, Tensor]:
        """(first row, column) of each column of each group, [columns] int64."""
        counts = self._pointers.diff().long()
        group = torch.repeat_interleave(torch.arange(self.groups, device=counts.device), counts, output_size=self.columns)
        at = self._pointers[:-1].long()[group] * (self.size - 1) + torch.arange(self.columns, device=counts.device)
        return group * self.size, self.topology.indices[at].long()

    def samples_at_once(self, pixels: int, dtype: torch.dtype) -> int:
        """How many samples of so many pixels fit into `SHARED_PARTS` bytes, one at least."""
        return max(SHARED_PARTS // max(self.columns * pixels * parts_dtype(dtype).itemsize, 1), 1)

    def product(self, values: Tensor, x: Side, bias: Tensor | None, y: Side, images: Images) -> None:
        launch(
            "shared_product",
            images.pixels,
            lambda sizes: self.groups * images.tiles(sizes),
            *(self._pointers, self.topology.indices, values, bias),
            *(x.tensor, x.starts, x.stride, x.group, self.rows_of_group, *x.places),
            *(y.tensor, y.stride, *y.places),
            *(self.groups, images.pixels, images.width),
            device=values.device,
            ROWS=self.size,
            PRECISION=precision(),
        )

    def transposed(self, values: Tensor, dy: Side, dx: Side, images: Images) -> None:
        if self._of_columns is None:
            self._of_columns = self._by_column()
        whole = images.number * images.pixels
        held = torch.empty(self.columns, whole, dtype=parts_dtype(dy.tensor.dtype), device=dy.tensor.device)
        parts = Side(held, whole, images.pixels, step=1)
        self.parts(values, dy, parts, images)
        self._of_columns.product(None, parts, None, dx, images)

    def _by_column(self) -> Connections:
        """From the columns of the groups, one by one, to their sums."""
        column = self.columns_of_groups()[1]
        numbers = torch.arange(self.columns, device=column.device)
        return Connections.sorted(self.topology.shape[1], column, numbers)._replace(permutation=None)

    def parts(self, values: Tensor, dy: Side, parts: Side, images: Images) -> None:
        """What each group gives each of its columns: `parts` has a feature for each."""
        launch(
            "shared_transposed",
            images.pixels,
            lambda sizes: self.groups * _tiles(self.usual, sizes["COLUMNS"] * sizes["TILES"]) * images.tiles(sizes),
            *(self._pointers, values, dy.tensor, dy.stride, *dy.places, parts.tensor, parts.stride, *parts.places),
            *(self.groups, self.usual, images.pixels, images.width),
            device=values.device,
            ROWS=self.size,
            PRECISION=precision(),
        )

    def sampled(self, dvalues: Tensor, x: Side, dy: Side, images: Images) -> None:
        launch(
            "shared_sampled",
            images.pixels,
            lambda sizes: self.groups * _tiles(self.usual, sizes["COLUMNS"]),
            *(self._pointers, self.topology.indices, dvalues),
            *(x.tensor, x.starts, x.stride, x.group, self.rows_of_group, *x.places),
            *(dy.tensor, dy.stride, *dy.places),
            *(self.usual, *images),
            device=dvalues.device,
            ROWS=self.size,
            PRECISION=precision(),
        )


class Blocks:
    """Whole blocks of one of `BLOCK_SIZES`: 4 bytes a block, and 8 more for the gradient of x.

    Raises:
        ValueError: if the connections are no whole blocks.
    """

    name = "blocks"
    gathered: tuple[str, ...] = ()

    def __init__(self, topology: Topology) -> None:
        size = block_size(topology)
        if size is None:
            raise ValueError(f"expected whole blocks of {', '.join(map(str, BLOCK_SIZES))} x as many, got {topology}")
        self.size, self.shape = size, (topology.shape[0] // size, topology.shape[1] // size)
        pieces = topology.indptr[::size]
        self._pointers = (pieces // size**2).to(torch.int32)
        blocks = topology.nnz // size**2
        rows = torch.arange(self.shape[0], device=pieces.device)
        row = rows.repeat_interleave(self._pointers.diff().long(), output_size=blocks)
        within = torch.arange(blocks, device=pieces.device) - self._pointers[row]
        self._columns = (topology.indices[pieces[row] + within * size] // size).to(torch.int32)
        self._row_of_each = row.to(torch.int32)
        self._of_columns: Connections | None = None

    @property
    def nbytes(self) -> int:
        return _nbytes(self._pointers, self._columns, self._row_of_each) + (self._of_columns.nbytes if self._of_columns else 0)

    def product(self, values: Tensor, x: Side, bias: Tensor | None, y: Side, images: Images) -> None:
        launch(
            "blocks_product",
            images.pixels,
            lambda sizes: self.shape[0] * images.tiles(sizes),
            *(self._pointers, self._columns, values, bias, *x.of_tiles, *y.of_tiles),
            *(self.shape[0], images.pixels),
            device=values.device,
            SIZE=self.size,
            PRECISION=precision(),
        )

    def transposed(self, values: Tensor, dy: Side, dx: Side, images: Images) -> None:
        if self._of_columns is None:
            self._of_columns = Connections.sorted(self.shape[1], self._columns.to(torch.int64), self._row_of_each)
        by_column = self._of_columns
        launch(
            "blocks_transposed",
            images.pixels,
            lambda sizes: self.shape[1] * images.tiles(sizes),
            *(self._pointers, by_column.indptr, by_column.indices, by_column.permutation, values, *dy.of_tiles, *dx.of_tiles),
            *(self.shape[1], images.pixels),
            device=values.device,
            SIZE=self.size,
            PRECISION=precision(),
        )

    def sampled(self, dvalues: Tensor, x: Side, dy: Side, images: Images) -> None:
        launch(
            "blocks_sampled",
            images.pixels,
            lambda sizes: self._columns.numel(),
            *(self._pointers, self._row_of_each, self._columns, dvalues, *x.of_tiles, *dy.of_tiles),
            *(images.number, images.pixels),
            device=dvalues.device,
            SIZE=self.size,
            PRECISION=precision(),
        )


def block_size(topology: Topology) -> int | None:
    """The largest of `BLOCK_SIZES` of which the connections are whole blocks; None if there is none, or no connection."""
    return topology.derived(_block_size)


def _block_size(topology: Topology) -> int | None:
    rows, columns = topology.shape
    for size in BLOCK_SIZES:
        if rows % size or columns % size or not topology.nnz or topology.nnz % size**2:
            continue
        block = topology.rows.to(torch.int64) // size * (columns // size) + topology.indices // size
        if bool((counted(block, rows // size * (columns // size)) % size**2 == 0).all()):
            return size
    return None


def shared_size(topology: Topology, rows_of_group: int) -> int | None:
    """The largest of `SHARED_ROWS` of which so many neighbouring rows share their columns and features; None if there is none."""
    least = min(SHARED_ROWS)
    if rows_of_group % least or topology.nnz % least:
        return None  # without a look at the device, which is waited for
    shared = shared_rows(topology)
    return next((size for size in SHARED_ROWS if shared % size == 0 and rows_of_group % size == 0), None)


def suits_shared(topology: Topology, rows_of_group: int) -> bool:
    return shared_size(topology, rows_of_group) is not None


def suits_blocks(topology: Topology) -> bool:
    return block_size(topology) is not None


def suits_bitmap(topology: Topology) -> bool:
    return topology.nnz >= BITMAP_DENSITY * topology.size and topology.nnz > 0


def parts_dtype(samples: torch.dtype) -> torch.dtype:
    """In which dtype parts of a sum wait for the others: float32, or that of the samples where torch's own products do so.

    They do unless `torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction` (or `bf16`) is False.
    """
    matmul = torch.backends.cuda.matmul
    reduced = {torch.float16: matmul.allow_fp16_reduced_precision_reduction, torch.bfloat16: matmul.allow_bf16_reduced_precision_reduction}
    return samples if reduced.get(samples) else torch.float32


def precision() -> str:
    """How float32 tiles are multiplied: exactly, unless `tf32_allowed`."""
    return "tf32" if tf32_allowed() else "ieee"


def _tiles(extent: int, size: int) -> int:
    return -(-extent // size)


def _nbytes(*arrays: Tensor | None) -> int:
    return sum(array.nbytes for array in arrays if array is not None)
