"""What does a layer become when nothing is trained any more? A module that holds one layout and calls it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common import shown
from ..nn.conv import PADDING_MODES, ConvolutionInterface, padding_of
from ..topology.geometry import Geometry
from .eager import refusal
from .layouts import Epilogue, Layout

SETTINGS = (
    *("in_features", "out_features", "in_channels", "out_channels"),
    *("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
)
CONVERT = {torch.float32: ".float()", torch.float16: ".half()", torch.bfloat16: ".bfloat16()"}
WITHOUT_GRADIENTS = "a packed network gives no gradients: call it under torch.inference_mode(), or use the network it came from"


class Frozen(nn.Module):
    """A module that only computes: no parameters, no gradients, no training mode, in one dtype on one device."""

    _dtype, _device = torch.float32, torch.device("cpu")

    def train(self, mode: bool = True) -> Self:
        """
        Raises:
            RuntimeError: if `mode` is true.
        """
        if mode:
            raise RuntimeError("a packed network cannot be trained: train the network it was packed from, and pack that again")
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # Where it is already, as .to("cpu") and .float() are nearly always, nothing changes; anything else would leave the layouts behind.
        moved = fn(torch.zeros(1, dtype=self._dtype, device=self._device))
        if moved.dtype != self._dtype or moved.device != self._device:
            raise RuntimeError(
                f"a packed network computes in {_named(self._dtype)} {_place(self._device)}, not in {moved.dtype} on {moved.device}: "
                "move or convert the network that it was packed from and pack that; values=... of truesparse.pack makes values narrower"
            )
        return super()._apply(fn, recurse)

    def __prepare_scriptable__(self) -> None:
        """What torch.jit.script asks first.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError(refusal("torch.jit.script"))


class Described(Tensor):
    """A tensor of which only shape, dtype and device are there: models ask layers for these."""

    @classmethod
    def of(cls, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Described:
        return Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(
            f"{func} asks for the values of a weight or bias of a packed layer, which holds them in another way: only their shape, dtype "
            "and device can be read. Let the model call the layer, or use the network that was packed"
        )

    def __repr__(self, **_: Any) -> str:
        return f"Described({', '.join(map(str, self.shape))})"


def padding_before(layer: nn.Module) -> tuple[int, ...]:
    """What is put around a layer's input before its layout gets it, as `F.pad` takes it."""
    pads = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, ConvolutionInterface))
    return padding_of(layer)[1] if pads else ()


class PackedLayer(Frozen):
    """One linear layer or convolution, with the sum and the activation after it if there are any.

    Attributes:
        layout: how its weights are held.
        geometry: the dense operation it stands for.
        epilogue: what follows the layout, or None.
        weight, bias: `Described`, or None, for models whose Python reads the dtype or shape of a layer. What else the layer was made
            with (`in_features`, `stride`, ...) can be read, too.
    """

    epilogue: Epilogue | None = None
    _checked: torch.Size | None = None  # the shape of the last input that fits

    def __init__(self, layout: Layout, geometry: Geometry, like: nn.Module, epilogue: Epilogue | None = None) -> None:
        super().__init__()
        self.layout, self.geometry, self.epilogue = layout, geometry, epilogue
        self._dtype, self._device = layout.dtype, layout.device
        self._padding, self._padding_mode = padding_before(like), PADDING_MODES[getattr(like, "padding_mode", "zeros")]
        self._has_bias = like.bias is not None
        for name in SETTINGS:
            if hasattr(like, name):
                setattr(self, name, getattr(like, name))
        self._pads = any(self._padding)
        self.eval()

    def forward(self, input: Tensor, added: Tensor | None = None) -> Tensor:
        """
        Args:
            input: as of the layer that it stands for.
            added: to what the layer gives, before its activation; only where there is an `epilogue`.

        Raises:
            ValueError: if the shape of `input` does not fit.
            TypeError: if `input` is not of the dtype of the layer, float32 on the CPU, or not on its device.
            RuntimeError: if a gradient of `input` is wanted.
        """
        x, features = input, self.geometry.sample_ndim
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(WITHOUT_GRADIENTS)
        if x.dtype != self._dtype:
            named, convert = _named(self._dtype), CONVERT[self._dtype]
            raise TypeError(f"a packed network computes in {named}, got an input of {x.dtype}; convert it with {convert}")
        if x.device != self._device or x.layout is not torch.strided:
            move = ".cpu()" if self._device.type == "cpu" else f".to({str(self._device)!r})"
            raise TypeError(
                f"a packed network takes dense tensors {_place(self._device)}, got a {x.layout} one on {x.device}; convert it with "
                f".to_dense(){move}"
            )
        if self._pads:
            x = F.pad(x, self._padding, mode=self._padding_mode)
        if x.shape != self._checked:
            self.geometry.check_input(x)
            self._checked = x.shape
        lead = x.ndim - features
        if lead == 1:
            y = self.layout(x.contiguous())
        elif lead:
            y = self.layout(x.flatten(0, lead - 1).contiguous())
            y = y.reshape(*x.shape[:lead], *y.shape[1:])  # a torch.Size takes 2 us more
        else:
            y = self.layout(x.unsqueeze(0).contiguous()).squeeze(0)
        return y if self.epilogue is None else self._finished(self.epilogue, y, added)

    def _finished(self, epilogue: Epilogue, y: Tensor, added: Tensor | None) -> Tensor:
        if added is not None and added.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(WITHOUT_GRADIENTS)
        plain = added is None or (type(added) is Tensor and added.dtype == y.dtype and added.is_contiguous() and added.shape == y.shape)
        if not plain:  # other sizes than the example had may broadcast, and other dtypes widen
            return epilogue.by_torch(y, added)
        return epilogue(y if y.is_contiguous() else y.contiguous(), added)

    def call(self, shape: Sequence[int]) -> Any:
        """What gives the layout's part for inputs of a shape, as a step of a `_core.Program`; None where only torch can do it."""
        lead = len(shape) - self.geometry.sample_ndim
        return None if self._pads else self.layout.call((prod(shape[:lead]), *shape[lead:]))

    @property
    def weight(self) -> Tensor:
        return Described.of(self.geometry.weight_shape, self._dtype, self._device)

    @property
    def bias(self) -> Tensor | None:
        return Described.of((self.geometry.outputs,), self._dtype, self._device) if self._has_bias else None

    def extra_repr(self) -> str:
        followers = "relu" if self.layout.relu else "" if self.epilogue is None else str(self.epilogue)
        return f"{self.geometry.arguments}, {self.layout}{', ' if followers else ''}{followers}"

    def _repr_html_(self) -> str:
        """For a notebook: what the layer computes, and how its weights are held."""
        after = [("then", "ReLU")] if self.layout.relu else [] if self.epilogue is None else [("then", str(self.epilogue))]
        pairs = [("layout", str(self.layout)), *after, ("held in", shown.nbytes_said(self.layout.nbytes))]
        return shown.facts(f"{type(self).__name__}({self.geometry.arguments})", pairs)


class Followed(Frozen):
    """A packed layer, and modules of torch after it that nothing here can do with it."""

    def __init__(self, layer: PackedLayer, *others: nn.Module) -> None:
        super().__init__()
        self.layer, self.others = layer, nn.Sequential(*others)
        self._dtype, self._device = layer._dtype, layer._device
        self.eval()

    def forward(self, input: Tensor, added: Tensor | None = None) -> Tensor:
        y: Tensor = self.others(self.layer(input, added))
        return y


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _place(device: torch.device) -> str:
    return "on the CPU" if device.type == "cpu" else f"on {device}"
