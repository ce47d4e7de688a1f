"""What is `layer.weight` where no dense weight is held? What it would be is answered at once, its values are made when asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor
from torch._C import DisableTorchFunctionSubclass
from torch.utils._pytree import tree_leaves, tree_map_only


def _read(name: str) -> Any:
    """The function that reads an attribute of a tensor, as `__torch_function__` is given it."""
    return getattr(Tensor, name).__get__


KINDS_OF_DATA = (
    "dtype",
    "device",
    "layout",
    "requires_grad",
    "is_cuda",
    "is_cpu",
    "is_mps",
    "is_xpu",
    "is_meta",
    "is_sparse",
    "is_quantized",
)
READ_AT_ONCE = {
    *map(_read, (*KINDS_OF_DATA, "shape", "ndim", "itemsize", "nbytes")),
    *(Tensor.size, Tensor.dim, Tensor.ndimension, Tensor.numel, Tensor.nelement, Tensor.element_size, Tensor.get_device),
    *(Tensor.is_floating_point, Tensor.is_complex),
}
IS_LEAF, GRAD = _read("is_leaf"), _read("grad")
IN_PLACE = {f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "matmul")}
IN_PLACE |= {"__setitem__", "__set__", "__ilshift__", "__irshift__"}
# They would act on what is gone after the call.
LOST = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad", "data_ptr", "untyped_storage", "storage"}


class DenseWeight(Tensor):
    """The dense weight of a sparse layer, to be read. Differentiable; writing to it is refused.

    Args:
        like: a tensor whose dtype, device and `requires_grad` are those of the weight.
        shape: of the weight.
        make: makes the weight itself.
        gradient: what `.grad` is.
    """

    _like: Tensor
    _make: Callable[[], Tensor]
    _gradient: Callable[[], Tensor | None]

    @staticmethod
    def __new__(
        cls, like: Tensor, shape: tuple[int, ...], make: Callable[[], Tensor], gradient: Callable[[], Tensor | None] = lambda: None
    ) -> DenseWeight:
        settings = {"dtype": like.dtype, "device": like.device, "requires_grad": like.requires_grad}
        weight = Tensor._make_wrapper_subclass(cls, shape, **settings)  # type: ignore[attr-defined]
        weight.__dict__.update(_like=like, _make=make, _gradient=gradient)
        return weight

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def is_that_of(self, values: Tensor) -> bool:
        """Whether it is made of these values."""
        return self._like is values

    def __setattr__(self, name: str, value: object) -> NoReturn:
        _refuse(f".{name} = ...")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func in READ_AT_ONCE:
            with DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        first = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(first, cls) and func == IS_LEAF:
            return False  # an optimizer that is given it says so
        if isinstance(first, cls) and func == GRAD:
            gradient = first._gradient()
            return None if gradient is None else _read_only(gradient)
        name: str = getattr(func, "__name__", "")
        writes = name in IN_PLACE or name in LOST or (name.endswith("_") and not name.endswith("__"))
        if (writes and _holds_weight(first)) or _holds_weight(kwargs.get("out")):
            _refuse(name)
        made: list[Tensor] = []

        def dense(weight: DenseWeight) -> Tensor:
            made.append(weight._make())
            return made[-1]

        result = func(*tree_map_only(cls, dense, args), **tree_map_only(cls, dense, kwargs))  # type: ignore[arg-type]
        memory = {tensor.untyped_storage().data_ptr() for tensor in made if tensor.numel()}
        # A part of the weight, or another view of it: what is written there would be lost.
        return tree_map_only(Tensor, lambda one: _read_only(one) if _address(one) in memory else one, result)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> NoReturn:
        _refuse(str(func))


def _holds_weight(thing: object) -> bool:
    return any(isinstance(leaf, DenseWeight) for leaf in tree_leaves(thing))


def _address(tensor: Tensor) -> int:
    plain = tensor.numel() and not isinstance(tensor, DenseWeight) and not tensor.is_sparse
    return tensor.untyped_storage().data_ptr() if plain else 0


def _read_only(tensor: Tensor) -> DenseWeight:
    return DenseWeight(tensor, tuple(tensor.shape), lambda: tensor)


def _refuse(what: str) -> NoReturn:
    raise RuntimeError(
        f"the weight of a sparse layer is made when it is read, so {what} on it would be lost: write to layer.values, one number a "
        "connection, or call layer.initialise(torch.nn.init.normal_); for a weight to write to, ts.densify(model)"
    )
