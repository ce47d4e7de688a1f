"""Which kernel runs which layer? The one list of kernels, and the only place that chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from ..topology import Topology
from ..topology.geometry import Convolution, Geometry, Matrix
from . import triton
from .cpu import ConvolutionKernels, MatrixKernels
from .dense import ConvolutionDense, MatrixDense
from .plans import DTYPES
from .rearranged import Rearrangement, rearrangement
from .reference import ConvolutionReference, MatrixReference
from .triton import forms
from .verbs import Verbs

ENVIRONMENT_VARIABLE = "TRUESPARSE_KERNELS"


def _full(topology: Topology, geometry: Geometry) -> bool:
    return 0 < topology.size == topology.nnz


def _blocks(topology: Topology, geometry: Geometry) -> bool:
    return _is_matrix(geometry) and forms.suits_blocks(topology)


def _shared(topology: Topology, geometry: Geometry) -> bool:
    return forms.suits_shared(topology, geometry.shape[0] // max(geometry.groups, 1))


def _bitmap(topology: Topology, geometry: Geometry) -> bool:
    return geometry.groups <= 1 and forms.suits_bitmap(topology)


def _is_matrix(geometry: Geometry) -> bool:
    return isinstance(geometry, Matrix) or (isinstance(geometry, Convolution) and geometry.pointwise)


@dataclass(frozen=True)
class Kernel:
    """One entry of the list: `build` makes the verbs of `operation` for x, y and their gradients of these kinds."""

    family: str
    operation: type[Matrix] | type[Convolution]
    build: Callable[[Topology, Any], Verbs]
    devices: tuple[str, ...] = ()  # empty: any
    dtypes: tuple[torch.dtype, ...] = ()  # empty: any floating one
    form: str = ""  # what `only` asks of topologies, in a word
    only: Callable[[Topology, Geometry], bool] | None = None  # None: any
    sample_ndim: int | None = None  # None: any

    def fits(self, topology: Topology, geometry: Geometry, dtype: torch.dtype) -> bool:
        return (
            isinstance(geometry, self.operation)
            and (not self.devices or topology.device.type in self.devices)
            and (dtype in self.dtypes if self.dtypes else dtype.is_floating_point)
            and self.sample_ndim in (None, geometry.sample_ndim)
            and (self.only is None or self.only(topology, geometry))
        )

    @property
    def named_operation(self) -> str:
        return f"{self.form} {self.operation.__name__.lower()}".strip()


# The first of the family in force that fits is used; for a geometry that no kernel is made for, that of another on rearranged arrays.
# Families are in order of preference for a device. "reference" runs only when asked for by name, never as a silent way out.
_ANY_GPU = ("cuda", "cpu")  # the latter in Triton's interpreter
KERNELS = (
    Kernel("native", Matrix, MatrixDense, form="full", only=_full),
    Kernel("native", Convolution, ConvolutionDense, form="full", only=_full),
    Kernel("native", Matrix, MatrixKernels, ("cpu",), DTYPES),
    Kernel("native", Convolution, ConvolutionKernels, ("cpu",), DTYPES, sample_ndim=3),
    Kernel("triton", Matrix, MatrixDense, form="full", only=_full),
    Kernel("triton", Convolution, ConvolutionDense, form="full", only=_full),
    Kernel("triton", Matrix, triton.blocks_matrix, _ANY_GPU, (torch.float32, *triton.TILE_DTYPES), "blocks", _blocks),
    Kernel("triton", Matrix, triton.shared_matrix, _ANY_GPU, (torch.float32, *triton.TILE_DTYPES), "shared", _shared),
    Kernel("triton", Matrix, triton.bitmap_matrix, _ANY_GPU, triton.TILE_DTYPES, "bitmap", _bitmap),
    Kernel("triton", Matrix, triton.rows_matrix, _ANY_GPU, triton.DTYPES),
    Kernel("triton", Convolution, triton.blocks_convolution, _ANY_GPU, (torch.float32, *triton.TILE_DTYPES), "blocks", _blocks, 3),
    Kernel("triton", Convolution, triton.shared_convolution, _ANY_GPU, (torch.float32, *triton.TILE_DTYPES), "shared", _shared, 3),
    Kernel("triton", Convolution, triton.bitmap_convolution, _ANY_GPU, triton.TILE_DTYPES, "bitmap", _bitmap, 3),
    Kernel("triton", Convolution, triton.rows_convolution, _ANY_GPU, triton.DTYPES, sample_ndim=3),
    Kernel("reference", Matrix, MatrixReference),
    Kernel("reference", Convolution, ConvolutionReference, sample_ndim=3),
)
FAMILY_OF_DEVICE = {"cuda": "triton"}  # where none is asked for; "native" elsewhere
UNNAMED = "rows"  # how kernels read connections that ask nothing of a topology
FAMILIES = tuple(dict.fromkeys(kernel.family for kernel in KERNELS))

_family: ContextVar[str | None] = ContextVar("family", default=None)


@contextmanager
def use(family: str) -> Iterator[None]:
    """Within this context, layers run on kernels of `family`: "native", "triton" or "reference".

    Without it they run on "native" on the CPU and on "triton" on a GPU. The environment variable TRUESPARSE_KERNELS does the same
    for a whole process; it is read once, when first needed.

    Raises:
        ValueError: if there is no such family.
    """
    token = _family.set(_checked(family))
    try:
        yield
    finally:
        _family.reset(token)


def family(device: str = "cpu") -> str:
    """The family of kernels in force for tensors on that type of device."""
    return _family.get() or family_of_process() or FAMILY_OF_DEVICE.get(device, FAMILIES[0])


def device_types() -> tuple[str, ...]:
    """The types of devices on whose tensors layers run without being told how: "cpu", "cuda"."""
    return ("cpu", *FAMILY_OF_DEVICE)


def family_runs_on(named: str, device: str) -> bool:
    """Whether kernels of that family are there for tensors on that type of device, beside those of layers with all connections."""
    return any(kernel.family == named and (device in kernel.devices or not (kernel.devices or kernel.only)) for kernel in KERNELS)


@cache
def family_of_process() -> str | None:
    """What the environment variable says, read once: every call of a layer asks, and a look at the environment takes four microseconds."""
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    return _checked(named) if named else None


def holds(dtype: torch.dtype, device: str) -> bool:
    """Whether kernels of the family in force on that type of device are made for samples of `dtype`."""
    return _made_for(family(device), dtype)


holds._dynamo_marked_constant = True  # type: ignore[attr-defined]  # all that torch.compiler.assume_constant_result does, but for importing the compiler, a second


@cache
def _made_for(family: str, dtype: torch.dtype) -> bool:
    return any(dtype in kernel.dtypes for kernel in KERNELS if kernel.family == family)


def verbs_for(topology: Topology, geometry: Geometry, dtype: torch.dtype) -> Verbs:
    """The verbs that compute with `topology` as `geometry`, made once for each topology; `dtype` is that of x.

    Raises:
        NotImplementedError: if no kernel of the family in force handles this device and dtype.
    """
    return topology.derived(_chosen, geometry, dtype, family(topology.device.type))


def _chosen(topology: Topology, geometry: Geometry, dtype: torch.dtype, wanted: str) -> Verbs:
    for kernel in KERNELS:
        if kernel.family == wanted and kernel.fits(topology, geometry, dtype):
            return topology.derived(kernel.build, geometry)
    way = rearrangement(geometry)
    if way is not None:
        built: Verbs = way.build(geometry, _chosen(topology, way.inner, dtype, wanted), *way.settings)
        return built
    operation = type(geometry).__name__.lower()
    known = ", ".join(f"{family} on {devices} in {dtypes}" for family, named, devices, dtypes in describe() if named == operation)
    raise NotImplementedError(
        f"no {wanted} kernel for a {operation} on {topology.device.type} in {_dtype_name(dtype)}; there are: {known}. "
        "Convert the layer with .to(...), or choose the slow reference with truesparse.ops.use('reference')"
    )


def forms_of(topology: Topology, geometry: Geometry, dtype: torch.dtype, family: str) -> dict[str, Callable[[Topology], Verbs]]:
    """All that a family has for a layer, in order of preference: what builds its verbs, by the form in which it reads connections.

    Left out is dense PyTorch, for layers with all connections.
    """
    found = [one for one in KERNELS if one.family == family and one.only is not _full and one.fits(topology, geometry, dtype)]
    way = None if found else rearrangement(geometry)
    if way is not None:
        inner = forms_of(topology, way.inner, dtype, family)
        return {form: partial(_rearranged, way, geometry, build) for form, build in inner.items()}
    return {one.form or UNNAMED: partial(_built, one, geometry) for one in found}


def _built(kernel: Kernel, geometry: Geometry, topology: Topology) -> Verbs:
    return kernel.build(topology, geometry)


def _rearranged(way: Rearrangement, geometry: Geometry, build: Callable[[Topology], Verbs], topology: Topology) -> Verbs:
    verbs: Verbs = way.build(geometry, build(topology), *way.settings)
    return verbs


def describe() -> list[tuple[str, str, str, str]]:
    """(family, operation, devices, dtypes) of every kernel, in order of preference."""
    return [
        (
            kernel.family,
            kernel.named_operation,
            "/".join(kernel.devices) or "any device",
            "/".join(map(_dtype_name, kernel.dtypes)) or "any floating dtype",
        )
        for kernel in KERNELS
    ]


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _checked(name: str) -> str:
    if name not in FAMILIES:
        raise ValueError(f"unknown family of kernels {name!r}; known: {', '.join(FAMILIES)}")
    return name
