"""The CPU kernels. Addresses (`data_ptr()`) are trusted: `truesparse.ops.cpu` checks types and shapes."""

from collections.abc import Sequence

def isa() -> str:
    """The instruction set in force. ValueError if the environment variable TRUESPARSE_ISA names one this machine has not."""

def use_isa(name: str) -> None:
    """Force an instruction set by name; "" goes back to the default. ValueError lists the known and the supported ones."""

def supported_isas() -> list[str]:
    """What this machine has, best last. Never fails."""

def threading() -> str:
    """ "openmp: <path>" or "serial: no OpenMP runtime loaded"."""

def multiply_adds(rounds: int, threads: int) -> int:
    """Do float32 multiply-adds from registers on each of `threads` threads, with the instruction set in force; how many those were."""

class Layout:
    def __init__(
        self, rows: int, columns: int, indptr: int, indices: int, permutation: int, starts: int, blocks: int, width: int, alike: int
    ) -> None: ...

class Convolution:
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> None: ...

class PlannedConvolution:
    def __init__(
        self,
        convolution: Convolution,
        indptr: int,
        indices: int,
        values: int,
        bias: int,
        low: float,
        high: float,
        pool: bool,
        batch: int,
        height: int,
        width: int,
        threads: int,
    ) -> None: ...
    def run(self, x: int, y: int) -> None: ...
    @property
    def nbytes(self) -> int: ...

class TopK:
    """The k largest entries of slabs of rows where there is no connection: larger magnitude first, then smaller position."""
    def __init__(self, k: int) -> None: ...
    def push_float32(self, slab: int, row_start: int, rows: int, columns: int, indptr: int, indices: int, threads: int) -> None: ...
    def push_float64(self, slab: int, row_start: int, rows: int, columns: int, indptr: int, indices: int, threads: int) -> None: ...
    def result(self, keys: int) -> int:
        """Writes the positions, in any order, and returns how many."""

def block_starts(rows: int, indptr: int, indices: int, width: int, blocks: int, starts: int, threads: int) -> None: ...
def rows_alike(rows: int, indptr: int, indices: int, rows_per_group: int) -> int: ...
def transpose(
    rows: int, columns: int, indptr: int, indices: int, t_indptr: int, t_indices: int, permutation: int, threads: int
) -> None: ...
def transpose_convolution(convolution: Convolution, indptr: int, indices: int, t_indptr: int, t_indices: int, permutation: int) -> None: ...

class PathRule:
    CH3_L3p: PathRule
    CH2_L3n: PathRule

def score_paths(
    rule: PathRule,
    rows: int,
    columns: int,
    indptr: int,
    indices: int,
    t_indptr: int,
    t_indices: int,
    row_start: int,
    row_end: int,
    starts: int,
    counts: int,
    found: int,
    scores: int,
    threads: int,
) -> None: ...
def row_of_each(rows: int, indptr: int, row: int) -> None: ...
def key_of_each(rows: int, columns: int, indptr: int, indices: int, keys: int) -> None: ...
def compress(rows: int, columns: int, keys: int, count: int, indptr: int, indices: int) -> None: ...
def collect(rows: int, row: int, column: int, count: int, indptr: int, indices: int) -> int: ...
def kept_starts(rows: int, indptr: int, kept: int, kept_indptr: int) -> int: ...
def keep(rows: int, indptr: int, indices: int, kept: int, kept_indptr: int, kept_indices: int, threads: int) -> None: ...
def grow(
    rows: int, columns: int, indptr: int, indices: int, keys: int, count: int, grown_indptr: int, grown_indices: int, threads: int
) -> bool: ...
def follow(
    rows: int, columns: int, old_indptr: int, old_indices: int, new_indptr: int, new_indices: int, source: int, threads: int
) -> None: ...
def move_int32(bytes: int, array: int, source: int, count: int, fill: int, moved: int, threads: int) -> None: ...
def move_int64(bytes: int, array: int, source: int, count: int, fill: int, moved: int, threads: int) -> None: ...
def lowest_float32(scores: int, size: int, count: int, indices: int, threads: int) -> None: ...
def lowest_float64(scores: int, size: int, count: int, indices: int, threads: int) -> None: ...
def place(sums: int, size: int, wanted: int, count: int, places: int, threads: int) -> None: ...
def accept(
    present: int, present_count: int, taken: int, taken_count: int, drawn: int, drawn_count: int, merged: int, refused: int
) -> int: ...
def matrix_spmm_float32(layout: Layout, values: int, bias: int, x: int, y: int, batch: int, threads: int) -> None: ...
def matrix_spmm_float64(layout: Layout, values: int, bias: int, x: int, y: int, batch: int, threads: int) -> None: ...
def matrix_spmm_bfloat16(layout: Layout, values: int, bias: int, x: int, y: int, batch: int, threads: int) -> None: ...
def matrix_backward_float32(
    layout: Layout, transposed: Layout | None, values: int, dy: int, x: int, dvalues: int, dx: int, dbias: int, batch: int, threads: int
) -> None: ...
def matrix_backward_float64(
    layout: Layout, transposed: Layout | None, values: int, dy: int, x: int, dvalues: int, dx: int, dbias: int, batch: int, threads: int
) -> None: ...
def matrix_backward_bfloat16(
    layout: Layout, transposed: Layout | None, values: int, dy: int, x: int, dvalues: int, dx: int, dbias: int, batch: int, threads: int
) -> None: ...
def convolution_spmm_float32(
    convolution: Convolution, layout: Layout, values: int, bias: int, x: int, y: int, batch: int, height: int, width: int, threads: int
) -> None: ...
def convolution_spmm_float64(
    convolution: Convolution, layout: Layout, values: int, bias: int, x: int, y: int, batch: int, height: int, width: int, threads: int
) -> None: ...
def convolution_spmm_bfloat16(
    convolution: Convolution, layout: Layout, values: int, bias: int, x: int, y: int, batch: int, height: int, width: int, threads: int
) -> None: ...
def convolution_backward_float32(
    convolution: Convolution,
    layout: Layout,
    transposed: Layout | None,
    values: int,
    dy: int,
    x: int,
    dvalues: int,
    dx: int,
    dbias: int,
    batch: int,
    height: int,
    width: int,
    threads: int,
) -> None: ...
def convolution_backward_float64(
    convolution: Convolution,
    layout: Layout,
    transposed: Layout | None,
    values: int,
    dy: int,
    x: int,
    dvalues: int,
    dx: int,
    dbias: int,
    batch: int,
    height: int,
    width: int,
    threads: int,
) -> None: ...
def convolution_backward_bfloat16(
    convolution: Convolution,
    layout: Layout,
    transposed: Layout | None,
    values: int,
    dy: int,
    x: int,
    dvalues: int,
    dx: int,
    dbias: int,
    batch: int,
    height: int,
    width: int,
    threads: int,
) -> None: ...
def count_stops(rows: int, columns: int, indptr: int, indices: int, order: int, bits: int, shown: int, starts: int) -> None: ...
def fill_windows(
    rows: int,
    columns: int,
    indptr: int,
    indices: int,
    values: int,
    order: int,
    bits: int,
    shown: int,
    first: int,
    places: int,
    own: int,
) -> None: ...
def use_large_pages(array: int, bytes: int) -> None: ...

class PairArrays:
    @property
    def sizes(self) -> list[int]: ...
    def copy_to(self, starts: int, steps: int, members: int, places: int, values: int) -> None: ...

def lay_out_pairs(rows: int, columns: int, abreast: int, width: int, parts: int, indptr: int, indices: int, values: int) -> PairArrays: ...

class Pairs:
    def __init__(
        self,
        rows: int,
        columns: int,
        abreast: int,
        width: int,
        parts: int,
        starts: int,
        steps: int,
        members: int,
        places: int,
        values: int,
    ) -> None: ...
    def spmm(self, bias: int, relu: bool, x: int, y: int, batch: int, threads: int) -> None: ...

class _Windows:
    def __init__(
        self,
        rows: int,
        columns: int,
        bits: int,
        shown: int,
        order: int,
        starts: int,
        first: int,
        places: int,
        values: int,
        scales: int,
    ) -> None: ...
    def unpack(self, dense: int, threads: int) -> None: ...
    def spmv(self, bias: int, relu: bool, x: int, y: int, batch: int, threads: int) -> None: ...

class Windows_float32(_Windows): ...
class Windows_bfloat16(_Windows): ...
class Windows_int8(_Windows): ...
