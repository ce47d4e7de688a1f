"""Which zeros around the input of a convolution need not be written? Those that the convolution itself can pretend to read."""

from __future__ import annotations

import copy
from collections.abc import Iterator

from torch import Tensor, fx, nn

from .fold import calls_of, cleaned
from .layers import FusedLayer
from .trace import module_of, replaced

Border = tuple[int, int, int, int]  # left, right, top, bottom


def fold_padding(module: fx.GraphModule) -> fx.GraphModule:
    """Zeros before a dense convolution, as many on one side as on the other, become its own padding."""
    new = replaced(module)
    for name, padded, (left, right, top, bottom) in _padded_convolutions(new, (nn.Conv2d,)):
        if left == right and top == bottom:
            new.set_submodule(name, _with_more_padding(new.get_submodule(name), (top, left)))
            _without_padding(new, padded)
    return cleaned(new)


def crop_instead_of_padding(module: fx.GraphModule) -> fx.GraphModule:
    """Where one side has more zeros, the convolution pads both with enough, a multiple of its stride more: what it then computes in
    excess is cut off. With a stride this is a fraction of what writing the padded input costs."""
    new = replaced(module)
    for name, padded, (left, right, top, bottom) in _padded_convolutions(new, (nn.Conv2d, FusedLayer)):
        called = new.get_submodule(name)
        layer = called.layer if isinstance(called, FusedLayer) else called
        if not isinstance(layer, nn.Conv2d) or layer.stride == (1, 1):
            continue
        first = tuple(
            -(-max(high - low, 0) // stride) for low, high, stride in zip((top, left), (bottom, right), layer.stride, strict=True)
        )
        more = top + first[0] * layer.stride[0], left + first[1] * layer.stride[1]
        reach = tuple(dilation * (extent - 1) + 1 for dilation, extent in zip(layer.dilation, layer.kernel_size, strict=True))
        own = tuple(2 * int(one) for one in layer.padding)
        border = top + bottom + own[0] - reach[0], left + right + own[1] - reach[1]
        conv, source = next(iter(padded.users)), padded.args[0]
        with new.graph.inserting_after(conv):
            cut = new.graph.call_function(cropped, (conv, source, first, border, tuple(layer.stride)))
        conv.replace_all_uses_with(cut, lambda user, cut=cut: user is not cut)
        wider = _with_more_padding(layer, more)
        new.set_submodule(name, FusedLayer(wider, called.activation) if isinstance(called, FusedLayer) else wider)
        _without_padding(new, padded)
    return cleaned(new)


def cropped(y: Tensor, x: Tensor, first: tuple[int, int], border: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """The outputs that a convolution has with other padding.

    Args:
        y: [..., height, width], with more outputs.
        x: [..., height, width], its input.
        first: the rows and columns of `y` that come before.
        border: by how much the padded input is larger than `x` and the kernel.
        stride: of the convolution.
    """
    (top, left), (height, width) = first, x.shape[-2:]
    rows, columns = (height + border[0]) // stride[0] + 1, (width + border[1]) // stride[1] + 1
    return y[..., top : top + rows, left : left + columns]


def _padded_convolutions(module: fx.GraphModule, kinds: tuple[type[nn.Module], ...]) -> Iterator[tuple[str, fx.Node, Border]]:
    """(name of a convolution that is called once, the zeros before it that nothing else reads, how many)."""
    for name, nodes in calls_of(module, kinds).items():
        called, padded = module.get_submodule(name), nodes[0].all_input_nodes[0]
        layer, zeros = called.layer if isinstance(called, FusedLayer) else called, module_of(module, padded)
        simple = isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        once = len(nodes) == len(padded.users) == len(nodes[0].args) == 1
        if simple and type(zeros) is nn.ZeroPad2d and once and min(zeros.padding) >= 0:
            yield name, padded, zeros.padding


def _with_more_padding(layer: nn.Module, more: tuple[int, int]) -> nn.Conv2d:
    layer = copy.copy(layer)
    assert isinstance(layer, nn.Conv2d)
    layer.padding = int(layer.padding[0]) + more[0], int(layer.padding[1]) + more[1]
    return layer


def _without_padding(module: fx.GraphModule, padded: fx.Node) -> None:
    padded.replace_all_uses_with(padded.args[0])  # type: ignore[arg-type]
    module.graph.erase_node(padded)
