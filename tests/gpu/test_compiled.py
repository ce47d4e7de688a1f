"""Every Triton kernel in every configuration is compiled for GPUs that are not there, and keeps its numbers in registers."""

import os

import pytest

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("in a process without TRITON_INTERPRET", allow_module_level=True)

import torch
from compilation import ALONE, cases, compiled
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime.jit import native_specialize_impl

from truesparse import Topology
from truesparse.ops.triton import kernels, search
from truesparse.ops.triton.configurations import BLOCK_SIZES, SHARED_ROWS, TABLES

# Bytes of a thread's numbers that may lie in memory instead of registers: a few, which the assembler lets go rather than take a step more
# of registers, from 64 to 72 or from 128 to 136. None where nothing is said.
SPILLED = {"shared_product": 32, "shared_transposed": 32, "shared_sampled": 32, "rows_product": 8}
SPILLED_NARROW = 8  # more where values have 16 bits: for Ampere the largest tile of a bitmap needs two registers more than there are
SHARED = 99 << 10  # bytes of shared memory that every GPU from Ampere on gives a program
FORM = {
    "rows": ("float32", "bfloat16", "float64", "float16"),
    "gradients": ("float32", "bfloat16", "float64", "float16"),
    "bitmap": ("bfloat16", "float16"),
    "shared": ("bfloat16", "float16", "float32"),
    "blocks": ("bfloat16", "float16", "float32"),
}
LINES = [(name, line) for name, table in TABLES.items() for line in range(len(table))]


def dtypes(name):
    return FORM[name.split("_")[0]]


def check(name, line, dtype, capability, aligned, narrow=False):
    most = SPILLED.get(name, 0) + narrow * SPILLED_NARROW
    for case in cases(name):
        for fixed in ways(name, dtype):
            found = compiled(name, line, dtype, capability, case, aligned, narrow, **fixed)
            assert found.spilled <= most, (case, fixed, found)
            assert found.shared <= SHARED, (case, fixed, found)


def ways(name, dtype):
    """Its other compile-time arguments."""
    if name.startswith(("rows", "gradients")):
        return [{}]
    precisions = ("ieee", "tf32") if dtype == "float32" else ("ieee",)
    sizes = {"blocks": [{"SIZE": size} for size in BLOCK_SIZES], "shared": [{"ROWS": size} for size in SHARED_ROWS]}.get(
        name.split("_")[0], [{}]
    )
    return [{**size, "PRECISION": precision} for size in sizes for precision in precisions]


@pytest.mark.parametrize(("name", "line"), LINES)
def test_hopper_as_usual_layers_are(name, line):
    check(name, line, dtypes(name)[0], 90, aligned=True)


@pytest.mark.parametrize("name", TABLES)
def test_one_of_everything(name):
    """Triton compiles in what is 1, and a kernel sees numbers of another kind: so it is with one sample."""
    for fixed in ways(name, dtypes(name)[0]):
        assert compiled(name, 0, dtypes(name)[0], 90, ALONE, False, **fixed).spilled <= SPILLED.get(name, 0)


@pytest.mark.parametrize(("name", "line"), LINES)
def test_ampere_as_usual_layers_are(name, line):
    check(name, line, dtypes(name)[0], 80, aligned=True)


@pytest.mark.parametrize(("name", "line", "dtype"), [(name, line, dtype) for name, line in LINES for dtype in dtypes(name)[1:]])
def test_hopper_in_other_dtypes(name, line, dtype):
    check(name, line, dtype, 90, aligned=True)


@pytest.mark.parametrize(("name", "line", "dtype"), [(name, line, dtype) for name, line in LINES for dtype in dtypes(name)])
def test_hopper_with_odd_shapes(name, line, dtype):
    check(name, line, dtype, 90, aligned=False)


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, line in LINES if name.endswith("_product")])
@pytest.mark.parametrize(("dtype", "capability"), [("bfloat16", 90), ("float16", 90), ("bfloat16", 80)])
def test_values_of_packed_layers(name, line, dtype, capability):
    """Of the dtype of samples. Transposed convolutions have the transposed connections of `rows_product`."""
    check(name, line, dtype, capability, aligned=True, narrow=True)


@pytest.mark.parametrize("capability", [86, 89, 100, 120])
@pytest.mark.parametrize("name", TABLES)
def test_other_gpus(name, capability):
    """Consumer cards and Blackwell: the first way in which each is called."""
    for line in range(len(TABLES[name])):
        for dtype in dtypes(name) if name == "gradients_searched" else dtypes(name)[:1]:
            found = compiled(name, line, dtype, capability, next(iter(cases(name))), True, **ways(name, dtype)[0])
            assert found.shared <= SHARED, (line, dtype, found)
            assert found.spilled <= SPILLED.get(name, 0), (line, dtype, found)


def test_all_passes_of_a_search_are_one_program(monkeypatch):
    """What Triton would compile in of the arguments is the same in each: others could be rounded otherwise."""
    backend, seen = CUDABackend(GPUTarget("cuda", 90, 32)), []

    def launch(kernel, pixels, programs, *arguments, **options):
        pairs = list(zip(getattr(kernels, kernel).params, arguments, strict=False))
        seen.append([native_specialize_impl(backend, value, False, not one.do_not_specialize, True) for one, value in pairs])

    monkeypatch.setattr(search, "launch", launch)
    rows, columns = 33, 50
    topology = Topology.from_mask(torch.eye(rows, columns) > 0)
    x, dy = (search.Side(torch.zeros(7, extent), stride=1, image=0, step=extent) for extent in (columns, rows))
    search.largest(x, dy, search.Images(1, 7), topology, 10)
    assert len(seen) == 4
    assert all(one == seen[0] for one in seen)


def test_every_kernel_has_a_table():
    assert {name for name, kernel in vars(kernels).items() if hasattr(kernel, "arg_names") and not name.startswith("_")} == set(TABLES)


def test_spilling_is_seen(monkeypatch):
    """A tile that no registers can hold."""
    name, (most, found) = "rows_product", TABLES["rows_product"][3]
    large = found._replace(sizes={"ROWS": 64, "CONNECTIONS": 8, "PIXELS": 128})
    monkeypatch.setitem(TABLES, name, (*TABLES[name][:3], (most, large)))
    assert compiled(name, 3, "float64", 90, "matrix", False).spilled > SPILLED[name]
