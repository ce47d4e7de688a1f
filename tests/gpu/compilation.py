"""Compiles a kernel for a GPU that is not there: Triton brings the assembler of NVIDIA, which needs no driver."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from truesparse.ops.triton import kernels
from truesparse.ops.triton.configurations import TABLES

TYPES = {"float32": "fp32", "float64": "fp64", "float16": "fp16", "bfloat16": "bf16"}
INDICES = "indptr", "indices", "permutation", "row_of_each", "first", "pointers", "block_columns", "column_pointers", "block_rows"
PLACES = "bits", "least", "most", "last_row", "settled", "found_places"
COUNTS = "counts", "found"
SUMS = "values", "bias", "dvalues"
SAMPLES = "x", "y", "dx", "dy", "parts"
ROWS = {"x_starts": None, "y_starts": None, "x_group": None, "width": None, "permutation": None}
# What a call leaves out, or gives as 1, which is compiled in: the ways in which each kernel is called.
CASES = {
    "rows_product": {
        "matrix": {**ROWS, "x_step": 1, "y_stride": 1},
        "matrix transposed": {
            name: value for name, value in {**ROWS, "x_step": 1, "y_stride": 1, "bias": None}.items() if name != "permutation"
        },
        "pointwise": {**ROWS, "x_step": 1, "y_step": 1},
        "convolution": {"y_starts": None, "permutation": None, "x_group": None, "x_step": 1, "y_step": 1},
        "groups, strides": {"y_starts": None, "permutation": None, "y_step": 1},
        "convolution transposed": {"x_group": None, "bias": None, "x_step": 1},
        "sums of parts": {**ROWS, "values": None, "bias": None, "x_step": 1, "y_stride": 1},
        "sums of parts of a convolution": {"x_group": None, "values": None, "permutation": None, "bias": None, "x_step": 1},
    },
    "rows_sampled": {
        "matrix": {**ROWS, "x_step": 1, "dy_step": 1, "images": 1},
        "convolution": {"x_group": None, "x_step": 1, "dy_step": 1},
        "groups, strides": {"dy_step": 1},
    },
    "bitmap_product": {
        "matrix": {**ROWS, "x_stride": 1, "y_stride": 1},
        "pointwise": {**ROWS, "x_step": 1, "y_step": 1},
        "convolution": {"y_starts": None, "permutation": None, "x_step": 1, "y_step": 1},
        "strides": {"y_starts": None, "permutation": None, "y_step": 1},
        "convolution transposed": {"bias": None, "x_step": 1},
    },
    "bitmap_sampled": {
        "matrix": {**ROWS, "x_stride": 1, "dy_stride": 1, "images": 1},
        "pointwise": {**ROWS, "x_step": 1, "dy_step": 1},
        "convolution": {"x_step": 1, "dy_step": 1},
        "strides": {"dy_step": 1},
    },
    "gradients_searched": {
        "matrix": {"x_starts": None, "width": None, "x_stride": 1, "dy_stride": 1, "images": 1},
        "pointwise": {"x_starts": None, "width": None, "x_step": 1, "dy_step": 1},
        "convolution": {"x_step": 1, "dy_step": 1},
        "strides": {"dy_step": 1},
    },
}
SHARED = {
    "matrix": {**ROWS, "x_step": 1, "y_stride": 1, "dy_stride": 1, "parts_step": 1, "images": 1},
    "pointwise": {**ROWS, "x_step": 1, "y_step": 1, "dy_step": 1, "parts_step": 1},
    "convolution": {"x_group": None, "x_step": 1, "y_step": 1, "dy_step": 1, "parts_step": 1},
    "groups, strides": {"y_step": 1, "dy_step": 1, "parts_step": 1},
}
TILES = {
    "matrix": {"x_stride": 1, "y_stride": 1, "dy_stride": 1, "dx_stride": 1, "images": 1},
    "pointwise": {"x_step": 1, "y_step": 1, "dy_step": 1, "dx_step": 1},
}


ALONE = "one of everything"  # each number is 1, so that it is compiled in: one sample, one row, one column


def cases(name: str) -> dict[str, dict[str, int | None]]:
    """The ways in which a kernel is called."""
    return CASES.get(name, SHARED if name.startswith("shared") else TILES)


class Resources(NamedTuple):
    """Of one compiled kernel: registers a thread, bytes of a thread's that do not fit into registers, bytes of shared memory a program."""

    registers: int
    spilled: int
    shared: int


def compiled(
    name: str, line: int, dtype: str, capability: int, case: str, aligned: bool, narrow: bool = False, **fixed: int | str
) -> Resources:
    """The kernel in the configuration of a line of its table.

    Args:
        case: how it is called.
        aligned: whether all numbers that it is given are multiples of 16, as those of usual layers are.
        narrow: whether values have the dtype of samples, as those of packed layers do.
        fixed: its other compile-time arguments.
    """
    kernel, found = getattr(kernels, name), TABLES[name][line][1]
    numbers = [argument.name for argument in kernel.params if _kind(argument.name, "", "") == "i32" and not argument.do_not_specialize]
    given = cases(name)[case] if case != ALONE else dict.fromkeys(numbers, 1)
    constants = {argument: value for argument, value in {**given, **found.sizes, **fixed}.items() if argument in kernel.arg_names}
    signature, attributes = {}, {}
    for index, argument in enumerate(kernel.arg_names):
        kind = "constexpr" if argument in constants else _kind(argument, TYPES[dtype], "fp64" if dtype == "float64" else "fp32")
        kind = f"*{TYPES[dtype]}" if narrow and argument == "values" else kind
        signature[argument] = kind
        if kind.startswith("*") or (aligned and kind == "i32" and not kernel.params[index].do_not_specialize):
            attributes[(index,)] = [["tt.divisibility", 16]]
    places = {(kernel.arg_names.index(argument),): value for argument, value in constants.items()}
    options = {"num_warps": found.warps, "num_stages": found.stages}
    made = triton.compile(ASTSource(kernel, signature, places, attributes), target=GPUTarget("cuda", capability, 32), options=options)
    return _resources(made.asm["cubin"], made.metadata.shared)


def _kind(argument: str, samples: str, sums: str) -> str:
    if argument in (*INDICES, *COUNTS, "block_places"):
        return "*i32"
    if argument in PLACES or argument.endswith("_starts"):
        return "*i64"
    if argument == "found_keys":
        return "*i64" if sums == "fp64" else "*i32"
    return f"*{samples}" if argument in SAMPLES else f"*{sums}" if argument in SUMS else "i32"


def _resources(binary: bytes, shared: int) -> Resources:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return Resources(int(found[1]), int(found[2]), shared)
