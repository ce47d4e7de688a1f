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

class Matrix:
    def __init__(self, rows: int, columns: int, indptr: int, indices: int) -> None: ...

class Runs:
    """The connections in the order in which batches need them. `permutation` 0: values are in the order of the indices."""
    def __init__(
        self,
        rows: int,
        columns: int,
        indptr: int,
        indices: int,
        permutation: int,
        width: int,
        parts: int,
        rows_per_group: int,
        threads: int,
    ) -> None: ...
    @property
    def alike(self) -> int:
        """4, 2 or 1: how many rows beside one another have the same columns, and are computed together."""
    @property
    def nbytes(self) -> int: ...

class SharedRows:
    """`alike` rows from each multiple of it on have the same indices; `alike` is a multiple of 8 and divides the rows. Holds no arrays."""
    def __init__(self, rows: int, columns: int, indptr: int, indices: int, alike: int) -> None: ...

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
    def call(self) -> Call: ...
    @property
    def nbytes(self) -> int: ...

def finish(gelu: bool, low: float, high: float, added: int, y: int, count: int, threads: int) -> None:
    """y [count] + added, or y where that is 0: through a GELU, then within the limits, in place."""

class Call:
    """A step of a program: y of x, and of what is added. It reads the memory of what it was made of, which has to live as long."""

def finish_call(gelu: bool, low: float, high: float, count: int, threads: int) -> Call: ...
def copy_call(
    from_start: int,
    to_start: int,
    size: int,
    zeros: bool,
    extents: Sequence[int],
    from_strides: Sequence[int],
    to_strides: Sequence[int],
) -> Call:
    """A box of numbers, from strides to strides; with `zeros`, all else of `size` becomes 0."""

def mean_call(rows: int, count: int) -> Call: ...
def small_product_call(weight: int, bias: int, relu: bool, rows: int, columns: int, batch: int) -> Call: ...

class Program:
    """Calls over places: `outside` of them are given with each run, then come those at `offsets` of a memory of `size` floats."""
    def __init__(self, outside: int, offsets: Sequence[int], size: int) -> None: ...
    def add(self, call: Call, x: int, added: int, y: int) -> None:
        """`added` is negative where nothing is. IndexError if there is no such place."""

    def run(self, addresses: Sequence[int]) -> None:
        """Safe from several threads. ValueError unless there is an address for each place outside."""

class TopK:
    """The k largest entries of slabs of rows where there is no connection: larger magnitude first, then smaller position."""
    def __init__(self, k: int) -> None: ...
    def push_float32(self, slab: int, row_start: int, rows: int, columns: int, indptr: int, indices: int, threads: int) -> None: ...
    def push_float64(self, slab: int, row_start: int, rows: int, columns: int, indptr: int, indices: int, threads: int) -> None: ...
    def result(self, keys: int) -> int:
        """Writes the positions, in any order, and returns how many."""

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
def matrix_spmv_float32(matrix: Matrix, values: int, bias: int, x: int, y: int, batch: int, threads: int) -> None: ...
def matrix_spmv_float64(matrix: Matrix, values: int, bias: int, x: int, y: int, batch: int, threads: int) -> None: ...
def matrix_spmv_bfloat16(matrix: Matrix, values: int, bias: int, x: int, y: int, batch: int, threads: int) -> None: ...
def matrix_spmm_float32(runs: Runs, values: int, bias: int, x: int, y: int, batch: int, pixels: int, threads: int) -> None: ...
def matrix_spmm_float64(runs: Runs, values: int, bias: int, x: int, y: int, batch: int, pixels: int, threads: int) -> None: ...
def matrix_spmm_bfloat16(runs: Runs, values: int, bias: int, x: int, y: int, batch: int, pixels: int, threads: int) -> None: ...
def matrix_backward_float32(
    runs: Runs | None,
    transposed: Runs | None,
    values: int,
    dy: int,
    x: int,
    dvalues: int,
    dx: int,
    dbias: int,
    rows: int,
    batch: int,
    pixels: int,
    threads: int,
) -> None: ...
def matrix_backward_float64(
    runs: Runs | None,
    transposed: Runs | None,
    values: int,
    dy: int,
    x: int,
    dvalues: int,
    dx: int,
    dbias: int,
    rows: int,
    batch: int,
    pixels: int,
    threads: int,
) -> None: ...
def matrix_backward_bfloat16(
    runs: Runs | None,
    transposed: Runs | None,
    values: int,
    dy: int,
    x: int,
    dvalues: int,
    dx: int,
    dbias: int,
    rows: int,
    batch: int,
    pixels: int,
    threads: int,
) -> None: ...
def shared_rows_spmm_float32(matrix: SharedRows, values: int, bias: int, x: int, y: int, batch: int, pixels: int, threads: int) -> None: ...
def shared_rows_spmm_float64(matrix: SharedRows, values: int, bias: int, x: int, y: int, batch: int, pixels: int, threads: int) -> None: ...
def shared_rows_spmm_bfloat16(
    matrix: SharedRows, values: int, bias: int, x: int, y: int, batch: int, pixels: int, threads: int
) -> None: ...
def shared_rows_backward_float32(
    matrix: SharedRows,
    values: int,
    dy: int,
    x: int,
    dvalues: int,
    dx: int,
    dbias: int,
    batch: int,
    pixels: int,
    threads: int,
) -> None: ...
def shared_rows_backward_float64(
    matrix: SharedRows,
    values: int,
    dy: int,
    x: int,
    dvalues: int,
    dx: int,
    dbias: int,
    batch: int,
    pixels: int,
    threads: int,
) -> None: ...
def shared_rows_backward_bfloat16(
    matrix: SharedRows,
    values: int,
    dy: int,
    x: int,
    dvalues: int,
    dx: int,
    dbias: int,
    batch: int,
    pixels: int,
    threads: int,
) -> None: ...
def convolution_spmm_float32(
    convolution: Convolution, runs: Runs, values: int, bias: int, x: int, y: int, batch: int, height: int, width: int, threads: int
) -> None: ...
def convolution_spmm_float64(
    convolution: Convolution, runs: Runs, values: int, bias: int, x: int, y: int, batch: int, height: int, width: int, threads: int
) -> None: ...
def convolution_spmm_bfloat16(
    convolution: Convolution, runs: Runs, values: int, bias: int, x: int, y: int, batch: int, height: int, width: int, threads: int
) -> None: ...
def convolution_backward_float32(
    convolution: Convolution,
    runs: Runs | None,
    transposed: Runs | None,
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
    runs: Runs | None,
    transposed: Runs | None,
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
    runs: Runs | None,
    transposed: Runs | None,
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
    def call(self, bias: int, relu: bool, batch: int, threads: int) -> Call: ...

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
    def call(self, bias: int, relu: bool, batch: int, threads: int) -> Call: ...

class Windows_float32(_Windows): ...
class Windows_bfloat16(_Windows): ...
class Windows_int8(_Windows): ...

class _Columns:
    def __init__(self, rows: int, columns: int, weight: int, scales: int) -> None: ...
    def spmv(self, bias: int, relu: bool, x: int, y: int, batch: int, threads: int) -> None: ...

class Columns_float32(_Columns): ...
class Columns_bfloat16(_Columns): ...
class Columns_int8(_Columns): ...

class _ColumnLists:
    def __init__(self, rows: int, columns: int, width: int, starts: int, places: int, values: int, scales: int) -> None: ...
    def unpack(self, dense: int, threads: int) -> None: ...
    def spmv(self, bias: int, relu: bool, x: int, y: int, batch: int, threads: int) -> None: ...

class ColumnLists_float32(_ColumnLists): ...
class ColumnLists_bfloat16(_ColumnLists): ...
class ColumnLists_int8(_ColumnLists): ...
