"""`truesparse doctor --check`: does every kernel compute here what it should? On small inputs, against dense PyTorch in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _core
from ..bench.request import multiplied_in
from ..inference.graph.layers import Weights
from ..inference.layouts import VALUES, Conditions, candidates
from ..ops import Verbs, values_dtype
from ..ops.table import KERNELS, Kernel
from ..ops.triton.loading import usable_devices
from ..topology import Move, Topology
from ..topology.geometry import Convolution, Geometry, Matrix

EXAMPLES: dict[type, tuple[Geometry, tuple[int, ...]]] = {  # and the shape of one sample
    Matrix: (Matrix(37, 50), (50,)),
    Convolution: (Convolution(6, 10, (3, 3), (2, 1), (1, 1)), (6, 11, 9)),
}
TILED: dict[type, tuple[Geometry, tuple[int, ...]]] = {  # for kernels of whole blocks
    Matrix: (Matrix(48, 64), (64,)),
    Convolution: (Convolution(32, 48, (1, 1)), (32, 3, 5)),
}
GROUPED: dict[type, tuple[Geometry, tuple[int, ...]]] = {  # for kernels of rows that share columns
    Matrix: TILED[Matrix],
    Convolution: (Convolution(6, 32, (3, 3), (2, 1), (1, 1)), (6, 11, 9)),
}
EXAMPLES_OF = {"blocks": TILED, "shared": GROUPED}  # by the form of connections, where not of any
DENSITY = {"full": 1.0}
BATCHES = 1, 40  # alone, and more than a vector of samples
TERMS = 512  # numbers that a result sums, at most
NARROW = {"float32": 0.0, "bfloat16": 2.0**-8, "int8": 1 / 127}  # by how much of the largest connection of a row one may be off


@dataclass(frozen=True)
class Check:
    """One kernel, tried.

    Args:
        kernel: its name, with the instruction set.
        dtype: of samples, or of connections where a layout holds them.
        compared: how many results.
        wrong: what they were that differ by more than rounding explains; empty if the kernel is right.
    """

    kernel: str
    dtype: str
    compared: int
    wrong: tuple[str, ...]


def checks() -> Iterator[Check]:
    """Every verb of every kernel, every layout for inference, and what topologies are made with, on every instruction set there is."""
    yield from _topologies()
    yield from _of_the_cpu()
    yield from checks_of_triton()
    for kernel in KERNELS:
        if kernel.family not in ("native", "triton") or not kernel.devices:
            yield from _verbs(kernel)


def checks_of_triton(batches: Sequence[int] | None = None) -> Iterator[Check]:
    """Every verb of every kernel of Triton, where they run, on so many samples; None: alone, and more than a vector of them."""
    for kernel in KERNELS:
        if kernel.family == "triton" and kernel.devices:
            for device in usable_devices():
                with _whole_sums(), multiplied_in(tf32=False):  # of convolutions of torch, TF32 is the default
                    yield from _verbs(kernel, device, batches)


def _of_the_cpu() -> Iterator[Check]:
    for instruction_set in _core.supported_isas():
        with _forced(instruction_set):
            for kernel in KERNELS:
                if kernel.family == "native" and "cpu" in kernel.devices:
                    yield from _verbs(kernel)
            yield from _layouts(instruction_set)


@contextmanager
def _forced(instruction_set: str) -> Iterator[None]:
    try:
        before = _core.isa()
    except ValueError:  # TRUESPARSE_ISA asks for one that is not here
        before = ""
    _core.use_isa(instruction_set)
    try:
        yield
    finally:
        _core.use_isa(before)


@contextmanager
def _whole_sums() -> Iterator[None]:
    """No sum waits in 16 bits for the rest of it: what is off by that would hide what is wrong."""
    matmul = torch.backends.cuda.matmul
    names = "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction"
    before = [getattr(matmul, name) for name in names]
    try:
        for name in names:
            setattr(matmul, name, False)
        yield
    finally:
        for name, value in zip(names, before, strict=True):
            setattr(matmul, name, value)


def _verbs(kernel: Kernel, device: str = "cpu", batches: Sequence[int] | None = None) -> Iterator[Check]:
    geometry, sample = EXAMPLES_OF.get(kernel.form, EXAMPLES)[kernel.operation]
    if kernel.form in ("blocks", "shared"):
        topology = _chessboard(geometry.shape, 16, 16 if kernel.form == "blocks" else 1).to(device)
    else:
        topology = _some_topology(geometry.shape, DENSITY.get(kernel.form, 0.2)).to(device)
    # Triton's interpreter, which runs its kernels on the CPU, rounds bfloat16 wrongly: what it gives says nothing of a kernel.
    untrusted = {torch.bfloat16} if kernel.family == "triton" and device == "cpu" else set()
    for dtype in (dtype for dtype in kernel.dtypes or (torch.float32,) if dtype not in untrusted):
        verbs = kernel.build(topology, geometry)
        found = [result for batch in batches or BATCHES for result in _results(verbs, topology, geometry, (batch, *sample), dtype)]
        wrong = tuple(dict.fromkeys(verb for verb, actual, expected in found if not _close(actual, expected)))
        yield Check(verbs.name, str(dtype).removeprefix("torch."), len(found), wrong)


def _results(
    verbs: Verbs, topology: Topology, geometry: Geometry, shape: tuple[int, ...], dtype: torch.dtype
) -> Iterator[tuple[str, Tensor | None, Tensor]]:
    """(verb, what it gave, what it should give in float64) of each verb."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=draw).to(topology.device, dtype)
    values = torch.randn(topology.nnz, generator=draw).to(topology.device, dtype).to(values_dtype(dtype))  # tiles of them are of dtype
    bias = torch.randn(geometry.shape[0], generator=draw).to(topology.device, values_dtype(dtype))
    weight, exact_x, exact_bias = topology.scatter(values).double(), x.double(), bias.double()
    leaves = [one.requires_grad_() for one in (weight, exact_x, exact_bias)]
    y = geometry.dense(exact_x, weight.view(geometry.weight_shape), exact_bias)
    dy = torch.randn(y.shape, generator=draw).to(topology.device, dtype)
    dweight, dx, dbias = torch.autograd.grad(y, leaves, dy.double())
    dvalues = dweight.flatten()[topology.keys]

    yield "spmm", verbs.spmm(values, x, bias), y.detach()
    yield "spmm_t", verbs.spmm_t(values, dy, x.shape), dx
    yield "sddmm", verbs.sddmm(dy, x), dvalues
    yield "gradient_rows", verbs.gradient_rows(dy, x, 3, 8), dweight[3:8]
    gradients = verbs.backward(values, x, dy, (True, True, True))
    yield from (("backward", actual, expected) for actual, expected in zip(gradients, (dvalues, dx, dbias), strict=True))
    absent = dweight.abs().flatten().masked_fill(topology.mask().flatten(), -1.0)
    highest = absent.topk(min(20, topology.size - topology.nnz)).values
    found = absent[verbs.top_gradients([(dy, x)], topology, 20)].sort(descending=True).values
    yield "top_gradients", found, highest


def _layouts(instruction_set: str) -> Iterator[Check]:
    """Each layout that may be tried for a layer, with its name."""
    for geometry, sample in EXAMPLES.values():
        topology = _some_topology(geometry.shape, 0.2)
        draw = torch.Generator().manual_seed(0)
        values, bias = torch.randn(topology.nnz, generator=draw), torch.randn(geometry.shape[0], generator=draw)
        weights = Weights(geometry, topology, values, bias)
        weight = topology.scatter(values).double()
        largest = weight.abs().amax(1, keepdim=True) * topology.mask()
        for batch in BATCHES:
            x = torch.randn((batch, *sample), generator=draw)
            expected = geometry.dense(x.double(), weight.view(geometry.weight_shape), bias.double()).relu()
            rounded = geometry.dense(x.double().abs(), largest.view(geometry.weight_shape), None)
            for dtype in VALUES:
                for candidate in candidates(weights, Conditions(x.shape, torch.get_num_threads(), dtype)):
                    y = candidate.make(weights, True, dtype)(x)
                    right = _close(y, expected, rounded * NARROW[dtype])
                    yield Check(
                        f"{candidate}[{instruction_set}]", dtype, 1, () if right else (f"{type(geometry).__name__.lower()}, batch {batch}",)
                    )


def _topologies() -> Iterator[Check]:
    """Whether connections that are dropped and grown are those, and arrays follow them."""
    old = _some_topology((37, 50), 0.3)
    before, absent = old.mask().flatten(), (~old.mask()).flatten().nonzero().flatten()
    dropped, grown = old.keys[::4], absent[::9]
    after = before.clone()
    after[dropped], after[grown] = False, True
    new = old.keep(~torch.isin(old.keys, dropped)).grow(grown)
    moved = Move.between(old, new).values(old.keys.double() + 1)
    expected = torch.where(before & after, torch.arange(old.size) + 1.0, 0.0)[after]
    right = {"drop and grow": torch.equal(new.mask().flatten(), after), "values that follow": torch.equal(moved, expected.double())}
    yield Check("topologies", "any", len(right), tuple(name for name, holds in right.items() if not holds))


def _some_topology(shape: tuple[int, int], density: float) -> Topology:
    """Random; where some are absent, so are all of the first row and of the last column."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < density
    if density < 1:
        mask[0], mask[:, -1] = False, False
    return Topology.from_mask(mask)


def _chessboard(shape: tuple[int, int], height: int, width: int) -> Topology:
    """Every other one of blocks of `height` x `width`."""
    rows, columns = (torch.arange(extent) // size for extent, size in zip(shape, (height, width), strict=True))
    return Topology.from_mask((rows[:, None] + columns) % 2 == 0)


def _close(actual: Tensor | None, expected: Tensor, also: Tensor | float = 0.0) -> bool:
    """Whether it is `expected` but for the rounding of sums, of a result narrower than its sum, and `also`."""
    if actual is None or actual.shape != expected.shape:
        return False
    unit = torch.finfo(values_dtype(actual.dtype)).eps
    narrowed = torch.finfo(actual.dtype).eps if actual.dtype != values_dtype(actual.dtype) else 0.0
    allowed = expected.abs() * (8 * unit + narrowed) + 4 * unit * TERMS + also
    return bool(((actual.double() - expected).abs() <= allowed).all())
