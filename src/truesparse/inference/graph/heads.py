"""What becomes of channels that are taken apart into heads, moved about, and put together again? Attention, as any Python writes it.

Once a channel axis is split, the dimension of the heads is the channel axis, and all channels of a head are tied. Queries, keys and values
meet head by head in a product, which ties theirs; keys and values that several queries share are repeated, which ties whole groups.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from .channels import Axis, Channels, Operation, Resized
from .trace import module_of, shape_of

_TAKES_SIZES = {"view": 1, "reshape": 1, "expand": 1, "unflatten": 2, torch.reshape: 1, torch.unflatten: 2}
_SEVERAL = {"chunk", "split", "unbind", torch.chunk, torch.split, torch.unbind}
_MOVES = {
    *("transpose", "permute", "movedim", "swapaxes", "unsqueeze", "flatten", "repeat_interleave", "select"),
    *(torch.transpose, torch.permute, torch.movedim, torch.swapaxes, torch.unsqueeze, torch.flatten, torch.repeat_interleave),
    *(operator.getitem, *_TAKES_SIZES, *_SEVERAL),
}
PRODUCTS = {"matmul", "bmm", torch.matmul, torch.bmm, operator.matmul}
SOFTMAX = {"softmax", torch.softmax, F.softmax}
_JOINS = {torch.cat, torch.concat, torch.concatenate}


class Rearranged(Operation):
    """Numbers only move: each place of the channel axis is made of some places of the axis before.

    Found by moving a tensor that holds the number of its channel everywhere, so that no two sizes are confused.

    Attributes:
        members: [places, channels of each].
    """

    def __init__(self, node: fx.Node, source: fx.Node, extent: int, members: Tensor, sizes: Mapping[int, Resized]) -> None:
        super().__init__(node, [source])
        self.extent, self.members, self.sizes = extent, members, dict(sizes)

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Operation | None:
        if node.op not in ("call_method", "call_function") or node.target not in _MOVES:
            return None
        maker = node.args[0] if node.args else None
        if not isinstance(maker, fx.Node):
            return None
        several = maker.target in _SEVERAL and maker not in channels.axes and node.target is operator.getitem
        source = maker.args[0] if several and maker.args else maker
        axis = channels.axes.get(source) if isinstance(source, fx.Node) else None
        shape = shape_of(source) if isinstance(source, fx.Node) else None
        if axis is None or shape is None or not isinstance(source, fx.Node):
            return None
        extent = shape[axis.dimension]
        numbers = (
            torch.arange(extent, device="cpu").view([-1 if place == axis.dimension else 1 for place in range(len(shape))]).expand(shape)
        )
        moved = _moved(maker, source, numbers) if several else numbers
        moved = None if moved is None else _moved(node, maker, moved)
        if isinstance(moved, (tuple, list)):
            return _tied_parts(node, source, axis, channels, [_axis_of(part) for part in moved])
        found = _axis_of(moved)
        if found is None or not isinstance(moved, Tensor) or tuple(moved.shape) != shape_of(node):
            return None
        dimension, members = found
        if node.target is operator.getitem and not several and not (members.numel() == extent and _slices(node.args[1])):
            return None  # some of the channels, whose numbers stand in the Python
        atoms = axis.atoms[members]
        heads = members.shape[1] > 1
        if heads:
            channels.tie(atoms[:, 1:].flatten(), atoms[:, :1].expand_as(atoms[:, 1:]).flatten())
        sizes: dict[int, Resized] = {}
        written = _written(node, len(shape))
        if written and isinstance(moved, Tensor):
            each = int(atoms[:, 0].unique_consecutive(return_counts=True)[1][0])  # places in a row of one atom
            place = dimension - written[1] if 0 <= dimension - written[1] < len(written[0]) else None
            if place is not None and written[0][place] != -1:
                sizes[place] = Resized(atoms[::each, 0], members.shape[0], each)
        channels.axes[node] = Axis(dimension, atoms[:, 0], heads=heads or axis.heads)
        return cls(node, source, extent, members, sizes)

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        places = torch.zeros(self.extent, dtype=torch.bool, device="cpu")
        places[self.members[wanted].flatten()] = True
        return [places]

    def follows(self) -> list[Resized]:
        return list(self.sizes.values())

    def rewire(self, node: fx.Node, kept: Tensor) -> None:
        if not self.sizes:
            return
        first = _TAKES_SIZES[node.target]  # type: ignore[index]
        packed = isinstance(node.args[first], (tuple, list))
        sizes = list(node.args[first]) if packed else list(node.args[first:])  # type: ignore[arg-type]
        for place, one in self.sizes.items():
            sizes[place] = one.left(kept)
        node.args = (*node.args[:first], sizes) if packed else (*node.args[:first], *sizes)


class Parts(Operation):
    """Several tensors made of one; what reads them reads that.

    Attributes:
        size: of a part along the channel axis, where it stands in the arguments.
    """

    def __init__(self, node: fx.Node, source: fx.Node, size: Resized | None) -> None:
        super().__init__(node, [source])
        self.size = size

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        return [False]

    def follows(self) -> list[Resized]:
        return [] if self.size is None else [self.size]

    def rewire(self, node: fx.Node, kept: Tensor) -> None:
        if self.size is not None:
            node.args = (node.args[0], self.size.left(kept), *node.args[2:])


class Aligned(Operation):
    """Each channel of the output is made of the same channel of the inputs, whatever happens in the other dimensions.

    Attributes:
        repeats: channels of the output for each of an input; None where that has no channels, and everything is read.
    """

    def __init__(self, node: fx.Node, inputs: Sequence[fx.Node], repeats: Sequence[int | None]) -> None:
        super().__init__(node, inputs)
        self.repeats = repeats

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self | None:
        made = shape_of(node)
        found = _aligned(node, module, channels, made) if made is not None else None
        if made is None or found is None:
            return None
        dimension, reading = found
        axes = {source: channels.axis(source, place) for source, place in reading.items() if place is not None}
        if not axes or any(axis is None or not axis.atoms.numel() or made[dimension] % axis.atoms.numel() for axis in axes.values()):
            return None
        atoms = [axis.atoms.repeat_interleave(made[dimension] // axis.atoms.numel()) for axis in axes.values() if axis is not None]
        for one in atoms[1:]:
            channels.tie(atoms[0], one)
        for source in reading.keys() - axes.keys():
            channels.pin_other(source, node)
        heads = any(axis.heads for axis in axes.values() if axis is not None)
        channels.axes[node] = Axis(dimension, atoms[0], heads)
        repeats = {source: made[dimension] // axis.atoms.numel() for source, axis in axes.items() if axis is not None}
        return cls(node, list(reading), [repeats.get(source) for source in reading])

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        return [True if repeats is None else wanted.view(-1, repeats).any(1) for repeats in self.repeats]


Reading = tuple[int, dict[fx.Node, int | None]]  # the channel dimension of the output, and of each input, if it has one


def _aligned(node: fx.Node, module: fx.GraphModule, channels: Channels, made: tuple[int, ...]) -> Reading | None:
    sources = node.all_input_nodes
    axis = channels.axes.get(sources[0]) if sources else None
    called = module_of(module, node)
    if isinstance(called, (nn.LayerNorm, nn.RMSNorm, nn.Softmax)):
        last = len(called.normalized_shape) if not isinstance(called, nn.Softmax) else 1
        apart = not isinstance(called, nn.Softmax) or called.dim in (-1, len(made) - 1)
        return (axis.dimension, {sources[0]: axis.dimension}) if axis and apart and axis.dimension < len(made) - last else None
    if node.op == "call_module" or not node.args:
        return None
    if node.target is F.scaled_dot_product_attention:
        return _attention(node, made)
    if node.target in PRODUCTS:
        return _product(node, channels, made)
    if node.target in SOFTMAX:
        over = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        apart = axis is not None and isinstance(over, int) and over % len(made) != axis.dimension
        return (axis.dimension, {sources[0]: axis.dimension}) if axis is not None and apart else None
    if node.target in _JOINS and isinstance(node.args[0], (tuple, list)):
        over = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        known = [channels.axes[source] for source in sources if source in channels.axes]
        apart = known and isinstance(over, int) and over % len(made) != known[0].dimension
        return (known[0].dimension, dict.fromkeys(sources, known[0].dimension)) if apart else None
    if node.target in ("masked_fill", torch.masked_fill) and axis is not None:
        return axis.dimension, {sources[0]: axis.dimension} | {one: _meets(one, axis.dimension, made) for one in sources[1:]}
    return None


def _attention(node: fx.Node, made: tuple[int, ...]) -> Reading | None:
    """Of (queries, keys, values, mask...), each [samples, heads, places, features]."""
    names = ("query", "key", "value", "attn_mask")
    given = {name: one for name, one in {**dict(zip(names, node.args, strict=False)), **node.kwargs}.items() if isinstance(one, fx.Node)}
    if len(made) < 3 or any(len(shape_of(given[name]) or ()) != len(made) for name in names[:3] if name in given):
        return None
    dimension = len(made) - 3
    reading: dict[fx.Node, int | None] = {given[name]: dimension for name in names[:3]}
    for name, one in given.items():
        if one not in reading:
            reading[one] = _meets(one, dimension, made) if name == "attn_mask" else None
    return dimension, reading


def _product(node: fx.Node, channels: Channels, made: tuple[int, ...]) -> Reading | None:
    """Of two stacks of matrices, where the channels are among the stacks."""
    sources = [one for one in node.args[:2] if isinstance(one, fx.Node)]
    known = next((channels.axes[one].dimension for one in sources if one in channels.axes), None)
    alike = len(sources) == 2 and all(len(shape_of(one) or ()) == len(made) for one in sources)
    if known is None or not alike or known >= len(made) - 2:
        return None
    return known, {one: _meets(one, known, made) for one in sources}


def _meets(source: fx.Node, dimension: int, made: tuple[int, ...]) -> int | None:
    """Where the channels of an output are in an input that may be broadcast; None where it is the same for all of them."""
    shape = shape_of(source) or ()
    place = dimension - (len(made) - len(shape))
    return place if place >= 0 and shape[place] == made[dimension] else None


def _moved(node: fx.Node, source: fx.Node, numbers: Any) -> Any:
    """What a node makes of `numbers` in the place of its input; None if its other arguments are not known."""
    unknown = False

    def value(one: fx.Node) -> Any:
        nonlocal unknown
        found = numbers if one is source else size_of(one)
        unknown = unknown or found is None
        return found

    args, kwargs = map_arg((node.args, node.kwargs), value)
    if unknown:
        return None
    if isinstance(node.target, str):
        # The tensor itself may lie in memory otherwise than these numbers do.
        return getattr(numbers, "reshape" if node.target == "view" else node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def size_of(node: fx.Node) -> int | None:
    """The size of the example that a node asks for; None if it does something else."""
    asked = node.args[0] if node.args else None
    if node.target == "size" and len(node.args) == 2:
        source, place = asked, node.args[1]
    elif node.target is operator.getitem and isinstance(asked, fx.Node) and (asked.target == "size" or asked.args[1:] == ("shape",)):
        source, place = asked.args[0], node.args[1]
    elif callable(node.target) and node.target in (operator.mul, operator.floordiv, operator.add, operator.sub):
        parts = [size_of(one) if isinstance(one, fx.Node) else one for one in node.args]
        return node.target(*parts) if all(isinstance(one, int) for one in parts) else None
    else:
        return None
    shape = shape_of(source) if isinstance(source, fx.Node) else None
    return shape[place] if shape is not None and isinstance(place, int) else None


def _slices(index: Any) -> bool:
    index = index if isinstance(index, tuple) else (index,)
    return all(one is None or one is Ellipsis or isinstance(one, (int, slice)) for one in index)


def _axis_of(numbers: Any) -> tuple[int, Tensor] | None:
    """(dimension, [places, channels of each]) of a tensor that holds the numbers of channels; None if no dimension tells them apart."""
    if not isinstance(numbers, Tensor) or not numbers.numel():
        return None
    numbers = numbers.long()
    varying = [place for place in range(numbers.ndim) if bool((numbers != numbers.narrow(place, 0, 1)).any())]
    if not varying:
        return None
    chosen = varying[0]
    if len(varying) == 1:
        return chosen, numbers.movedim(chosen, 0).reshape(numbers.shape[chosen], -1)[:, :1]
    if len(varying) > 2 and numbers.shape[varying[0]] in (2, 3):
        chosen = varying[1]  # queries, keys and values stand before the heads
    flat = numbers.movedim(chosen, 0).reshape(numbers.shape[chosen], -1)
    members = torch.stack([row.unique() for row in flat]) if len({row.unique().numel() for row in flat}) == 1 else None
    return (chosen, members) if members is not None and members.unique().numel() == members.numel() else None


def _tied_parts(node: fx.Node, source: fx.Node, axis: Axis, channels: Channels, parts: list[tuple[int, Tensor] | None]) -> Parts | None:
    """Parts of equal size, which stay so: channels at the same place go together."""
    found = [part for part in parts if part is not None]
    reads = all(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)
    alike = {(dimension, members.shape) for dimension, members in found}
    if len(found) != len(parts) or len(alike) != 1 or not reads:
        return None
    first, size = axis.atoms[found[0][1]], None
    if node.target in ("split", torch.split) and len(first) != len(axis.atoms):
        if len(node.args) < 2 or node.args[1] != len(first) or first.shape[1] != 1:
            return None  # sizes that are no one number, or not of channels
        size = Resized(first[:, 0], len(first), 1)
    for _, members in found[1:]:
        channels.tie(first.flatten(), axis.atoms[members].flatten())
    return Parts(node, source, size)


def _written(node: fx.Node, dimensions: int) -> tuple[list[Any], int] | None:
    """The sizes in the arguments of a call, and the dimension of the first."""
    first = _TAKES_SIZES.get(node.target)  # type: ignore[arg-type]
    if first is None or len(node.args) <= first:
        return None
    given = node.args[first]
    sizes = list(given) if isinstance(given, (tuple, list)) else list(node.args[first:])
    offset = 0
    if first == 2:
        where = node.args[1]
        offset = where % dimensions if isinstance(where, int) else 0
    return sizes, offset
