"""Over which windows does a pool go, and what does it take of each?"""

from __future__ import annotations

from math import prod
from typing import Any

from torch import nn

from .errors import NoC
from .network import Place, Window
from .weights import window_of

LARGEST = (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
POOLS = (*LARGEST, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)


def pool_of(called: Any, source: Place, shape: tuple[int, ...]) -> tuple[Window, bool, bool]:
    """(its windows, whether it takes means, whether these count the zeros around the image).

    Args:
        called: one of `POOLS`.
        source: what it reads.
        shape: of what it gives.

    Raises:
        NoC: if its windows have several sizes.
    """
    largest = isinstance(called, LARGEST)
    if len(source.shape) not in (2, 3):
        raise NoC("it takes samples of [channels, length] or [channels, height, width]")
    if isinstance(called, ADAPTIVE):
        sizes = list(zip(source.shape[1:], shape[1:], strict=True))
        if any(size % out for size, out in sizes):
            raise NoC(f"from {source.shape[1:]} to {shape[1:]} its windows are of several sizes; choose an output that divides the input")
        steps = tuple(size // out for size, out in sizes)
        return window_of(source.shape, shape, steps, steps), not largest, False
    if not largest and called.ceil_mode:
        raise NoC("its last windows reach over the end; use ceil_mode=False")
    if getattr(called, "divisor_override", None) is not None:
        raise NoC("with a divisor_override")
    dilation = called.dilation if largest else 1
    window = window_of(source.shape, shape, called.kernel_size, called.stride, called.padding, dilation)
    return window, not largest, not largest and bool(called.count_include_pad)


def mean_over(shape: tuple[int, ...], over: Any) -> tuple[Window, bool]:
    """(the windows of a mean over dimensions of a batch, whether the two dimensions of a sample must change places before).

    Raises:
        NoC: if these are not the last dimensions, as after a convolution, nor the steps of a sequence.
    """
    n = len(shape)
    places = sorted(d % (n + 1) - 1 for d in ((over,) if isinstance(over, int) else over or (0,)))
    turned = places == [0] and n == 2
    if turned:
        shape, places = shape[::-1], [1]
    if n == 1 or not places or -1 in places or places != list(range(n - len(places), n)):
        raise NoC("there is a mean over the last dimensions, as after a convolution, and one over the steps of [steps, features]")
    lead, count = prod(shape[: n - len(places)]), prod(shape[n - len(places) :])
    return window_of((lead, count), (lead, 1), count, count), turned
