"""Which kernel runs which layer? The one list of kernels, and the only place that chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from ..topology import Topology
from ..topology.geometry import Convolution, Geometry, Matrix
from .cpu import ConvolutionKernels, MatrixKernels
from .dense import ConvolutionDense, MatrixDense
from .plans import DTYPES
from .rearranged import rearrangement
from .reference import ConvolutionReference, MatrixReference
from .verbs import Verbs

ENVIRONMENT_VARIABLE = "TRUESPARSE_KERNELS"


@dataclass(frozen=True)
class Kernel:
    """One entry of the list: `build` makes the verbs of `operation` for x, y and their gradients of these kinds."""

    family: str
    operation: type[Matrix] | type[Convolution]
    build: Callable[[Topology, Any], Verbs]
    devices: tuple[str, ...] = ()  # empty: any
    dtypes: tuple[torch.dtype, ...] = ()  # empty: any floating one
    full_only: bool = False  # for topologies where no connection is absent
    sample_ndim: int | None = None  # None: any

    def fits(self, topology: Topology, geometry: Geometry, dtype: torch.dtype) -> bool:
        return (
            isinstance(geometry, self.operation)
            and (not self.devices or topology.device.type in self.devices)
            and (dtype in self.dtypes if self.dtypes else dtype.is_floating_point)
            and self.sample_ndim in (None, geometry.sample_ndim)
            and (not self.full_only or 0 < topology.size == topology.nnz)
        )

    @property
    def named_operation(self) -> str:
        return f"{'full ' * self.full_only}{self.operation.__name__.lower()}"


# The first of the family in force that fits is used; for a geometry that no kernel is made for, that of another on rearranged arrays.
# "reference" runs only when asked for by name, never as a silent way out.
KERNELS = (
    Kernel("native", Matrix, MatrixDense, full_only=True),
    Kernel("native", Convolution, ConvolutionDense, full_only=True),
    Kernel("native", Matrix, MatrixKernels, ("cpu",), DTYPES),
    Kernel("native", Convolution, ConvolutionKernels, ("cpu",), DTYPES, sample_ndim=3),
    Kernel("reference", Matrix, MatrixReference),
    Kernel("reference", Convolution, ConvolutionReference, sample_ndim=3),
)
FAMILIES = tuple(dict.fromkeys(kernel.family for kernel in KERNELS))

_family: ContextVar[str | None] = ContextVar("family", default=None)


@contextmanager
def use(family: str) -> Iterator[None]:
    """Within this context, layers run on kernels of `family`: "native" or "reference".

    The environment variable TRUESPARSE_KERNELS does the same for a whole process. It is read once, when first needed.

    Raises:
        ValueError: if there is no such family.
    """
    token = _family.set(_checked(family))
    try:
        yield
    finally:
        _family.reset(token)


def family() -> str:
    """The family of kernels in force."""
    return _family.get() or family_of_process()


@cache
def family_of_process() -> str:
    """What the environment variable says, read once: every call of a layer asks, and a look at the environment takes four microseconds."""
    return _checked(os.environ.get(ENVIRONMENT_VARIABLE) or FAMILIES[0])


def verbs_for(topology: Topology, geometry: Geometry, dtype: torch.dtype) -> Verbs:
    """The verbs that compute with `topology` as `geometry`, made once for each topology; `dtype` is that of x.

    Raises:
        NotImplementedError: if no kernel of the family in force handles this device and dtype.
    """
    return topology.derived(_chosen, geometry, dtype, _family.get() or family_of_process())


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
