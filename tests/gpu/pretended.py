"""A device that is not there: its tensors say that they are on "gpu:0", hold numbers of the CPU, and are as strict as those of CUDA.

Nobody here may have a GPU, and on CPU tensors nothing tells whether a function makes some of its own on the wrong device, or has the host
wait for the device. Within `PretendedDevice()` both come out:

    with PretendedDevice() as device:
        model = sparsify(net, 0.9).to("gpu")    # its kernels are those of Triton, in the interpreter (TRITON_INTERPRET=1)
        model(torch.randn(8, 20))               # RuntimeError: tensors on the CPU and on the device together
        float(model(torch.randn(8, 20, device="gpu")).sum())
        print(device.waits)                     # [Wait(operation='_local_scalar_dense', line='test_...')]

It is torch's backend for a device written in Python (PrivateUse1): a wrapper of tensors, and a mode that sees every operation of aten.
What it cannot show: races, the order of operations on streams, memory, speed. A parameter moved to it stays the same object and has the
class `OnDevice`; with CUDA the values of a sparse layer keep their class `Values`.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

import truesparse
from truesparse.common import tracing
from truesparse.nn import eager
from truesparse.ops import table
from truesparse.ops.triton import loading
from truesparse.rewiring import optimizers

NAME = "gpu"
SOURCE = str(Path(truesparse.__file__).parent) + "/"
aten = torch.ops.aten

# What CUDA's kernels wait for: a number that the host reads, or a size that only the device knows.
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
    "equal", "is_nonzero", "bincount", "allclose", "_foreach_max", "histc", "linalg_solve", "linalg_inv",
}  # fmt: skip
# What may have tensors of both.
ACROSS = {
    "_to_copy",
    "copy_",
    "copy",
    "_foreach_copy_",
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index",
    "_pack_padded_sequence",
}
# What does not take a number on the CPU for one on the device, as element by element it would.
NO_NUMBERS = {"cat", "stack", "searchsorted", "bucketize", "gather", "index_select", "index_add", "index_add_", "mm", "addmm", "bmm"}
# Modules of truesparse that only ask whether two addresses are the same. All others would give them to kernels of the CPU.
COMPARING = {"truesparse.topology.identity", "truesparse.metrics.memory", "truesparse.nn.weight"}
ASKING_FOR_CLASSES: tuple[Any, ...] = (eager, optimizers)
CHANGES_SHAPE = "an operation in place that changes the shape of a tensor, {}: not written for the pretended device"


class Wait(NamedTuple):
    """The host waited for the device.

    Args:
        operation: of aten, or where a copy went: "to the CPU", "to the device", for which the host waits too.
        line: the innermost of truesparse, "topology/select.py:34 highest"; that of the caller where there is none.
    """

    operation: str
    line: str


class OnDevice(torch.Tensor):
    """A tensor on the device: `inner` has the numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> OnDevice:
        assert not isinstance(inner, OnDevice)
        with torch.inference_mode(False):  # a view within it would be one of a tensor outside
            wrapped = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.size(),
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device(NAME, 0),
                requires_grad=requires_grad,
            )
        wrapped.inner = inner
        return wrapped

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    def data_ptr(self) -> int:
        caller = sys._getframe(1).f_globals["__name__"]
        if caller.startswith("truesparse") and caller not in COMPARING:
            raise RuntimeError(f"{caller} asked for the address of a tensor on {self.device}: no kernel of the CPU can read there")
        return 0 if caller == "torch._tensor" else self.inner.data_ptr()  # 0 has deepcopy clone what it copies

    @property
    def data(self) -> Tensor:
        return OnDevice(self.inner)

    @data.setter
    def data(self, other: OnDevice) -> None:
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]
        self.inner = other.inner

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.inner.untyped_storage()

    def register_hook(self, hook: Any) -> Any:
        return super().register_hook(_said_before_the_end(hook))

    def register_post_accumulate_grad_hook(self, hook: Any) -> Any:
        return super().register_post_accumulate_grad_hook(_said_before_the_end(hook))

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy it to the host first")
        return self.detach().cpu().numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        inner = self.inner.detach().clone(memory_format=torch.contiguous_format)
        held = (torch._utils._rebuild_device_tensor_from_cpu_tensor, (inner, self.dtype, str(self.device), self.requires_grad))
        if not isinstance(self, torch.nn.Parameter):
            return held
        return torch._utils._rebuild_parameter, (self.data, self.requires_grad, {})

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner})"


class PretendedDevice(TorchDispatchMode):
    """Within it the device is there, and layers on it run on Triton's kernels.

    Attributes:
        waits: of the host for the device so far, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []
        self._left = contextlib.ExitStack()

    def __enter__(self) -> PretendedDevice:
        self._left.enter_context(_known_to_truesparse())
        self._left.enter_context(_listening(self))
        super().__enter__()
        return self

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        self._left.close()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    @contextlib.contextmanager
    def seeing(self) -> Iterator[None]:
        """The mode, on again within what it has caught."""
        super().__enter__()
        try:
            yield
        finally:
            super().__exit__(None, None, None)

    @contextlib.contextmanager
    def waited(self) -> Iterator[list[Wait]]:
        """The waits within a block."""
        before, found = len(self.waits), []
        yield found
        found.extend(self.waits[before:])


def table_of(waits: Sequence[Wait]) -> str:
    """How often each line waited, the most frequent first."""
    return "\n".join(f"{count:4}  {wait.operation:22}  {wait.line}" for wait, count in Counter(waits).most_common())


# What is below is how it is done.


def _said_before_the_end(hook: Any) -> Any:
    """`hook`, whose errors are printed: torch ends the process on them, where a device of Python is."""

    def called(tensor: Tensor) -> Any:
        try:
            return hook(tensor)
        except BaseException:
            traceback.print_exc()
            raise

    return called


_listener: PretendedDevice | None = None


@contextlib.contextmanager
def _listening(device: PretendedDevice) -> Iterator[None]:
    global _listener
    if _listener is not None:
        raise RuntimeError("there is one pretended device at a time")
    _listener = device
    try:
        yield
    finally:
        _listener = None


class _Module(_DummyBackendModule):
    """torch.gpu"""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]

    def manual_seed_all(self, seed: int) -> None:
        pass  # all random numbers are the CPU's

    def synchronize(self, device: Any = None) -> None:
        _waited("synchronize")


_library = torch.library.Library("aten", "IMPL")


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Where no mode sees it: of lists that are indices torch makes tensors so."""
    return _run(aten.copy_.default, (target, source, non_blocking), {})


@contextlib.contextmanager
def _known_to_truesparse() -> Iterator[None]:
    """The device among those of the kernels of Triton, whose interpreter gets the tensors that are held."""
    kernels, kernels_for = table.KERNELS, loading.kernels_for
    table.KERNELS = tuple(replace(one, devices=(*one.devices, NAME)) if "cuda" in one.devices else one for one in kernels)
    table.FAMILY_OF_DEVICE[NAME] = "triton"
    loading.kernels_for = lambda device: _Unwrapped(kernels_for(device)) if device.type == NAME else kernels_for(device)
    # That somebody sees all calls is what they look out for; as tensors of CUDA these here are of no class of their own.
    modes, tracing._len_torch_dispatch_stack = tracing._len_torch_dispatch_stack, lambda: max(modes() - 1, 0)
    for module in ASKING_FOR_CLASSES:
        module.type = lambda of: Tensor if type(of) is OnDevice else type(of)
    load, torch.load = torch.load, partial(_loaded, torch.load)
    apply, torch.nn.Module._apply = torch.nn.Module._apply, partialmethod(_applied, torch.nn.Module._apply)
    try:
        yield
    finally:
        torch.nn.Module._apply = apply
        torch.load = load
        tracing._len_torch_dispatch_stack = modes
        for module in ASKING_FOR_CLASSES:
            del module.type
        loading.kernels_for = kernels_for
        del table.FAMILY_OF_DEVICE[NAME]
        table.KERNELS = kernels


def _applied(module: torch.nn.Module, apply: Any, function: Any, recurse: bool = True) -> Any:
    """A parameter that moves stays the same object, as it does with CUDA."""
    one = next(iter(module._parameters.values()), None)
    crosses = one is not None and isinstance(function(one.detach().flatten()[:0]), OnDevice) != isinstance(one, OnDevice)
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(crosses)
    try:
        return apply(module, function, recurse)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swapped)


def _loaded(load: Any, *args: Any, map_location: Any = None, **kwargs: Any) -> Any:
    """`torch.load`: no storage can be on the device, so what is mapped there goes from the CPU, tensor by tensor."""
    there = isinstance(map_location, str | torch.device) and torch.device(map_location).type == NAME
    found = load(*args, map_location="cpu" if there else map_location, **kwargs)
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(NAME), found) if there else found


class _Unwrapped:
    """The module of kernels, given what its tensors hold."""

    def __init__(self, kernels: Any) -> None:
        self._kernels = kernels

    def __getattr__(self, name: str) -> Any:
        return _Launchable(getattr(self._kernels, name))


class _Launchable:
    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: Any) -> Any:
        def launched(*arguments: Any, **fixed: Any) -> None:
            tensors = [one for one in arguments if isinstance(one, Tensor)]
            if not all(isinstance(one, OnDevice) for one in tensors):
                raise RuntimeError(f"a kernel of the device was given tensors on {[str(one.device) for one in tensors]}")
            with _disable_current_modes():
                self._kernel[grid](*(one.inner if isinstance(one, OnDevice) else one for one in arguments), **fixed)

        return launched


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = function._schema.name.split("::")[1]
    given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    mine = [leaf for leaf in given if isinstance(leaf, OnDevice)]
    asked = kwargs.get("device")
    here = bool(mine) if asked is None else torch.device(asked).type == NAME
    if not mine and not here:
        return function(*args, **kwargs)
    if function.namespace == "truesparse":
        with contextlib.nullcontext() if _listener is None else _listener.seeing():
            return function._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
    _check(name, function, args, kwargs, given, here)
    for operation in _waits_of(name, function, args, kwargs, given, here):
        _waited(operation)
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    kwargs = {key: value for key, value in kwargs.items() if key not in ("pin_memory", "non_blocking")}
    copied = name == "_to_copy" or (name == "clone" and not mine)
    inner_args, inner_kwargs = pytree.tree_map_only(OnDevice, lambda tensor: tensor.inner, (args, kwargs))
    result = function(*inner_args, **inner_kwargs)
    if name in ("copy_", "_foreach_copy_") and not isinstance(given[0], OnDevice):
        return result if name == "_foreach_copy_" else args[0]
    for tensor in mine:
        if tensor.inner.shape != tensor.shape:
            raise NotImplementedError(CHANGES_SHAPE.format(name))
    if name == "_pack_padded_sequence":
        return OnDevice(result[0]), result[1]  # how many there are of each length is said on the CPU
    if not here:
        return result
    held = {} if copied else {id(tensor.inner): tensor for tensor in mine}
    return pytree.tree_map_only(Tensor, lambda tensor: held.get(id(tensor)) if id(tensor) in held else OnDevice(tensor), result)


def _check(name: str, function: Any, args: Any, kwargs: dict[str, Any], given: Sequence[Tensor], here: bool) -> None:
    """As CUDA refuses what is on two devices, and generators of the CPU."""
    generator = kwargs.get("generator")
    if generator is None:
        generator = next((arg for arg in args if isinstance(arg, torch.Generator)), None)
    if generator is not None and here:
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{generator.device.type}' ({name})")
    elsewhere = [tensor for tensor in given if not isinstance(tensor, OnDevice)]
    if not elsewhere or len(elsewhere) == len(given):
        return
    if name in ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"):
        indices = {id(one) for one in args[1] if one is not None}
        if not isinstance(args[0], OnDevice) and any(isinstance(one, OnDevice) for one in args[1]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        elsewhere = [tensor for tensor in elsewhere if id(tensor) not in indices]
    elif name in ACROSS:
        return
    if any(tensor.ndim or name in NO_NUMBERS for tensor in elsewhere):
        shapes = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in given)
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices ({name}: {shapes}); {_line()}")


def _waits_of(name: str, function: Any, args: Any, kwargs: dict[str, Any], given: Sequence[Tensor], here: bool) -> Iterator[str]:
    """What CUDA would wait for."""
    if name in WAITING:
        yield name
    elif name == "repeat_interleave":
        if kwargs.get("output_size") is None and any(isinstance(arg, Tensor) for arg in args[-1:]):
            yield name
    elif name in ("index", "_unsafe_index", "index_put", "index_put_", "_index_put_impl_"):
        indices = [one for one in args[1] if one is not None]
        filled = name.startswith(("index_put", "_index_put")) and args[2].numel() == 1 and not any(args[3:4]) and len(indices) == 1
        if any(one.dtype in (torch.bool, torch.uint8) for one in indices) and not filled:
            yield f"{name} of a mask"
        if any(not isinstance(one, OnDevice) for one in indices):
            yield "to the device"
    elif name == "_to_copy":
        if isinstance(args[0], OnDevice) != here and not (here and kwargs.get("non_blocking")):
            yield "to the device" if here else "to the CPU"
    elif name in ("copy_", "copy"):
        target, source = args[:2]
        waits = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        if isinstance(target, OnDevice) != isinstance(source, OnDevice) and (waits or isinstance(source, OnDevice)):
            yield "to the device" if isinstance(target, OnDevice) else "to the CPU"


def _waited(operation: str) -> None:
    if _listener is not None:
        _listener.waits.append(Wait(operation, _line()))


def _line() -> str:
    """The innermost line of truesparse that has led here; else of whoever called torch."""
    frame, outside = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(SOURCE) and not file.endswith("/flags.py"):  # which reads for others
            return f"{file.removeprefix(SOURCE)}:{frame.f_lineno} {frame.f_code.co_name}"
        if not outside and file != __file__ and "/torch/" not in file:
            outside = f"{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return outside


# torch counts its devices at the first backward pass of a process: this one must be there by then, and stays.
_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
for _made in (aten.empty_strided.default, aten.empty.memory_format):
    _library.impl(_made, lambda *args, _made=_made, **kwargs: _run(_made, args, kwargs), "PrivateUse1")
_library.impl(aten._copy_from.default, _copy_from, "PrivateUse1")
_everywhere = torch.library.Library("_", "IMPL")
_everywhere.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")  # layers round by themselves, dense ones not at all
# So are tensors of CUDA, which have no class of their own.
importlib.import_module("torch.optim.optimizer")._foreach_supported_types.append(OnDevice)
