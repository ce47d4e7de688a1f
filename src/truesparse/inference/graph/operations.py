"""What does each kind of operation do with channels? One class a kind; `read_operations` finds which kind each node of a graph is.

Only what is exact for every input is understood: of every size, not just of that of the example.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from math import prod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn.modules import activation

from ...nn import ThresholdReLU
from .biases import Table, biases
from .channels import Axis, Channels, Constants, Operation, Resized, described
from .fold import NORMS, calls_of, is_fixed, scale_and_shift
from .heads import Aligned, Rearranged
from .layers import LAYERS, weights_of
from .trace import module_of, shape_of

_MIX_CHANNELS = ("MultiheadAttention", "PReLU", "RReLU", "GLU", "Softmax", "Softmax2d", "Softmin", "LogSoftmax")
POINTWISE_MODULES = {
    ThresholdReLU,
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
    *(getattr(activation, name) for name in activation.__all__ if name not in _MIX_CHANNELS),
}
POINTWISE = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.pow),
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv),
    *(torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.pow, torch.square, torch.abs, torch.exp, torch.clamp, torch.clone),
    *(torch.sqrt, torch.rsqrt, "sqrt", "rsqrt"),
    *(F.elu, F.selu, F.celu, F.softplus, F.mish, F.hardtanh, F.hardsigmoid, F.logsigmoid, torch.maximum, torch.minimum),
    *("add", "sub", "mul", "div", "neg", "pow", "square", "abs", "exp", "clamp", "contiguous", "clone", "detach", "float", "double"),
    *("add_", "sub_", "mul_", "div_", "clamp_", "relu_", "sigmoid_", "tanh_"),
    *("to", "type_as", "where", torch.where),
}
PYTHON = "the Python of the model holds their number"
_DECIDES = ("where", torch.where)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
JOINS = (torch.cat, torch.concat, torch.concatenate)
_KEEPS_ORDER = {"flatten", "squeeze", "unsqueeze", torch.flatten, torch.squeeze, torch.unsqueeze}
_TAKES_SIZES = {"view", "reshape", torch.reshape}


class Layer(Operation):
    """A layer with weights; what it knows and wants depends on its connections, which `prune` holds.

    Attributes:
        name: of the module.
        linked: whether the input has its channels where the layer looks for them.
        columns: atoms of the input's features or channels.
    """

    def __init__(self, node: fx.Node, name: str, linked: bool, columns: Tensor) -> None:
        super().__init__(node, node.all_input_nodes)
        self.name, self.linked, self.columns = name, linked, columns

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self:
        weights = weights_of(module.get_submodule(str(node.target)))
        source, dimensions = node.all_input_nodes[0], weights.geometry.sample_ndim
        given, made = shape_of(source), shape_of(node)
        assert given is not None
        assert made is not None
        axis = channels.axis(source, len(given) - dimensions)
        if axis is None:
            channels.pin(channels.axes[source].atoms)
            columns = channels.fresh(weights.inputs)
            channels.pin(columns)
        else:
            columns = axis.atoms
        rows = channels.fresh(weights.geometry.shape[0])
        channels.axes[node] = Axis(len(made) - dimensions, rows)
        if weights.groups > 1:  # whole groups are removed: all that is left have one size
            for atoms in (columns, rows):
                of_group = atoms.view(weights.groups, -1)
                channels.tie(of_group.flatten(), columns.view(weights.groups, -1)[:, :1].expand_as(of_group).flatten())
        return cls(node, str(node.target), axis is not None, columns)


class Norm(Operation):
    """A BatchNorm with running statistics: a factor and an offset for each channel.

    Attributes:
        off: channels that it makes constant, [channels] bool: those with a factor of zero, unless that may be trained.
    """

    def __init__(self, node: fx.Node, name: str, atoms: Tensor, scale: Tensor, shift: Tensor, off: Tensor, linked: bool) -> None:
        super().__init__(node, node.all_input_nodes)
        self.name, self.atoms, self.scale, self.shift, self.off, self.linked = name, atoms, scale, shift, off, linked

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels, trains: bool = False) -> Self | None:
        norm, source = module.get_submodule(str(node.target)), node.all_input_nodes[0]
        if not is_fixed(norm):
            return None
        axis = channels.axis(source, 1)
        if axis is None:
            channels.pin(channels.axes[source].atoms)
            axis = Axis(1, channels.fresh(norm.num_features))  # type: ignore[arg-type]
            channels.pin(axis.atoms)
        channels.axes[node] = axis
        scale, shift = (array.cpu() for array in scale_and_shift(norm))
        off = torch.zeros_like(scale, dtype=torch.bool) if trains else scale == 0
        return cls(node, str(node.target), axis.atoms, scale, shift, off, axis is channels.axes[source])

    def constants(self, given: list[Constants], extent: int) -> Constants:
        nothing = torch.zeros(extent, dtype=torch.bool, device="cpu")
        known, value = (given[0].known, given[0].value) if self.linked else (nothing, self.shift)
        return Constants(known | self.off, torch.where(self.off, self.shift, value * self.scale + self.shift))

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        return [wanted & ~self.off if self.linked else True]


class Pointwise(Operation):
    """Each number of the output is made of the numbers at the same place of the inputs.

    Attributes:
        carriers: inputs that have the channels; others are the same for all of them.
    """

    def __init__(self, node: fx.Node, module: nn.Module | None, carriers: list[fx.Node]) -> None:
        super().__init__(node, node.all_input_nodes)
        self.module, self.carriers = module, carriers

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self | None:
        called = module_of(module, node)
        if type(called) not in POINTWISE_MODULES and not (node.op != "call_module" and node.target in POINTWISE):
            return None
        inputs, made = node.all_input_nodes, shape_of(node)
        if made is None or any(shape_of(source) is None for source in inputs):
            return None
        alike = [source for source in inputs if source in channels.axes and len(shape_of(source) or ()) == len(made)]
        known = [axis for source in alike if (axis := channels.axes[source]).atoms.numel() == made[axis.dimension]]
        if not known:
            return None
        dimension, carriers = known[0].dimension, list[fx.Node]()
        for source in inputs:
            shape = shape_of(source) or ()
            place = dimension - (len(made) - len(shape))
            if place < 0 or (shape[place] == 1 and made[dimension] != 1):  # the same for all channels
                channels.pin_other(source, node)
                continue
            axis = channels.axis(source, place)
            if axis is None or axis.atoms.numel() != made[dimension]:
                return None
            channels.tie(known[0].atoms, axis.atoms)
            carriers.append(source)
        channels.axes[node] = known[0]
        return cls(node, called, carriers)

    def constants(self, given: list[Constants], extent: int) -> Constants:
        if len(self.carriers) != len(self.inputs) or self.node.target in _DECIDES:
            return Constants.none(extent)
        values = {source: constants.value.clone() for source, constants in zip(self.inputs, given, strict=True)}
        args, kwargs = map_arg((self.node.args, self.node.kwargs), values.__getitem__)
        if self.module is not None:
            value = self.module(*args)
        elif isinstance(self.node.target, str):
            value = getattr(args[0], self.node.target)(*args[1:], **kwargs)
        else:
            value = self.node.target(*args, **kwargs)  # type: ignore[operator]
        return Constants(torch.stack([constants.known for constants in given]).all(0), value.double().cpu())

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        return [wanted if source in self.carriers else True for source in self.inputs]


class Plane(Operation):
    """Each channel of the output is made of the same channel: pooling, means and slices over positions.

    Attributes:
        keeps: whether a channel of one number stays so; otherwise only zeros do.
    """

    def __init__(self, node: fx.Node, keeps: bool) -> None:
        super().__init__(node, node.all_input_nodes)
        self.keeps = keeps

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self | None:
        sources = node.all_input_nodes
        axis = channels.axes.get(sources[0]) if len(sources) == 1 else None
        given, made = shape_of(sources[0]) if sources else None, shape_of(node)
        if axis is None or given is None or made is None:
            return None
        dimension, keeps = axis.dimension, True
        called = module_of(module, node)
        if type(called) in POOLS:
            if dimension != len(given) - 3 or (isinstance(called, nn.MaxPool2d) and _any(called.padding) and _any(called.dilation, 1)):
                return None
            if isinstance(called, nn.AvgPool2d):
                keeps = called.divisor_override is None and not (called.count_include_pad and _any(called.padding))
        elif node.target in ("mean", torch.mean):
            removed = _mean_over(node, len(given))
            if removed is None or dimension in removed:
                return None
            if len(made) != len(given):
                dimension -= sum(one < dimension for one in removed)
        elif not (node.target is operator.getitem and _slices_positions(node.args[1], dimension)):
            return None
        channels.axes[node] = Axis(dimension, axis.atoms, axis.heads)
        return cls(node, keeps)

    def constants(self, given: list[Constants], extent: int) -> Constants:
        known, value = given[0].known, given[0].value
        return Constants(known if self.keeps else known & (value == 0), value)

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        return [wanted]


class Reshape(Operation):
    """Positions join the channel axis or leave it alone: each channel becomes a block of `repeats` places."""

    def __init__(self, node: fx.Node, repeats: int, sizes: list[Any] | None, place: int, axis: Axis) -> None:
        super().__init__(node, node.all_input_nodes[:1])
        self.repeats, self.sizes, self.place, self.atoms, self.heads = repeats, sizes, place, axis.atoms, axis.heads

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self | None:
        source = node.args[0] if node.args else None
        axis = channels.axes.get(source) if isinstance(source, fx.Node) else None
        given, made = shape_of(source) if isinstance(source, fx.Node) else None, shape_of(node)
        if axis is None or given is None or made is None:
            return None
        keeps_order = type(module_of(module, node)) is nn.Flatten or (node.op != "call_module" and node.target in _KEEPS_ORDER)
        takes_sizes = node.op != "call_module" and node.target in _TAKES_SIZES and not node.kwargs
        if keeps_order and (len(node.all_input_nodes) != 1 or _may_squeeze(node, axis.dimension, len(given))):
            return None
        place = _place_after_reshape(given, axis.dimension, made) if keeps_order or takes_sizes else None
        if place is None:
            return None
        sizes = None
        if takes_sizes:
            first = node.args[1]
            sizes = list(first) if isinstance(first, (tuple, list)) else list(node.args[1:])
            if len(sizes) != len(made) or not (isinstance(sizes[place], int) or axis.heads):
                return None
        repeats = made[place] // given[axis.dimension]
        channels.axes[node] = Axis(place, axis.atoms.repeat_interleave(repeats), axis.heads and repeats == 1)
        return cls(node, repeats, sizes, place, axis)

    def constants(self, given: list[Constants], extent: int) -> Constants:
        return Constants(given[0].known.repeat_interleave(self.repeats), given[0].value.repeat_interleave(self.repeats))

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        return [wanted.view(-1, self.repeats).any(1)]

    @property
    def says_size(self) -> bool:
        """Whether the number of channels stands in the arguments."""
        return self.sizes is not None and self.sizes[self.place] != -1

    def written(self) -> Tensor:
        return self.atoms if self.says_size and not self.heads else super().written()

    def follows(self) -> list[Resized]:
        return [Resized(self.atoms, len(self.atoms) * self.repeats, self.repeats)] if self.says_size and self.heads else []

    def rewire(self, node: fx.Node, kept: Tensor) -> None:
        if self.says_size:
            first = node.args[1]
            sizes = list(first) if isinstance(first, (tuple, list)) else list(node.args[1:])
            sizes[self.place] = int(kept[self.atoms].sum()) * self.repeats
            node.args = (node.args[0], *sizes) if isinstance(node.target, str) else (node.args[0], tuple(sizes))


class Join(Operation):
    """Tensors side by side along the channel axis."""

    def __init__(self, node: fx.Node, inputs: list[fx.Node], extents: list[int]) -> None:
        super().__init__(node, inputs)
        self.extents = extents

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self | None:
        if node.op != "call_function" or node.target not in JOINS:
            return None
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
        made = shape_of(node)
        if made is None or not isinstance(dimension, int) or not isinstance(tensors, (tuple, list)):
            return None
        dimension %= len(made)
        inputs = [source for source in tensors if isinstance(source, fx.Node)]
        if len(inputs) != len(tensors) or not any(source in channels.axes for source in inputs):
            return None
        axes = [axis for source in inputs if (axis := channels.axis(source, dimension))]
        if len(axes) != len(inputs):
            return None
        channels.axes[node] = Axis(dimension, torch.cat([axis.atoms for axis in axes]))
        return cls(node, inputs, [axis.atoms.numel() for axis in axes])

    def constants(self, given: list[Constants], extent: int) -> Constants:
        return Constants(torch.cat([one.known for one in given]), torch.cat([one.value for one in given]))

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        return list(wanted.split(self.extents))


class Pad(Operation):
    """One number around each channel, and whole channels of it before and after them."""

    def __init__(self, node: fx.Node, amounts: list[int], at: int, fill: float, border: bool, added: tuple[Tensor, Tensor]) -> None:
        super().__init__(node, node.all_input_nodes)
        self.amounts, self.at, self.fill, self.border, self.added = amounts, at, fill, border, added

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self | None:
        if node.target is not F.pad or len(node.all_input_nodes) != 1 or node.args[:1] != tuple(node.all_input_nodes):
            return None
        given = dict(zip(("pad", "mode", "value"), node.args[1:], strict=False)) | node.kwargs
        source, amounts = node.all_input_nodes[0], given["pad"]
        axis, shape = channels.axes.get(source), shape_of(source)
        if axis is None or shape is None or given.get("mode", "constant") != "constant" or not isinstance(amounts, (tuple, list)):
            return None
        amounts = [*amounts, *[0] * (2 * len(shape) - len(amounts))]  # from the last dimension to the first, (before, after) each
        at = 2 * (len(shape) - 1 - axis.dimension)
        if amounts[at] < 0 or amounts[at + 1] < 0:
            return None
        added = channels.fresh(amounts[at]), channels.fresh(amounts[at + 1])
        channels.axes[node] = Axis(axis.dimension, torch.cat([added[0], axis.atoms, added[1]]))
        border = any(amount > 0 for number, amount in enumerate(amounts) if number not in (at, at + 1))
        fill = float(given.get("value") or 0)  # type: ignore[arg-type]
        return cls(node, amounts, at, fill, border, added)

    def constants(self, given: list[Constants], extent: int) -> Constants:
        before, after = self.added[0].numel(), self.added[1].numel()
        known = given[0].known & (given[0].value == self.fill) if self.border else given[0].known
        return Constants(F.pad(known, (before, after), value=True), F.pad(given[0].value, (before, after), value=self.fill))

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        return [wanted[self.added[0].numel() : wanted.numel() - self.added[1].numel()]]

    def written(self) -> Tensor:
        return torch.cat(self.added)

    def rewire(self, node: fx.Node, kept: Tensor) -> None:
        amounts = list(self.amounts)
        amounts[self.at : self.at + 2] = (int(kept[atoms].sum()) for atoms in self.added)
        node.args, node.kwargs = (node.args[0], tuple(amounts)), {"value": self.fill}


class Question(Operation):
    """Asks for a size, not of channels, or a dtype: reads no number."""

    @classmethod
    def read(cls, node: fx.Node, module: fx.GraphModule, channels: Channels) -> Self | None:
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        axis, shape = (channels.axes.get(source), shape_of(source)) if source is not None else (None, None)
        if axis is None or shape is None:
            return None
        about = node.args[1] if len(node.args) > 1 else None
        if (node.target is getattr and about in ("dtype", "device", "ndim")) or node.target == "dim":
            places: list[Any] = []
        elif node.target == "size" and about is not None:
            places = [about]
        elif node.target == "size" or (node.target is getattr and about == "shape"):
            places = [user.args[1] if user.target is operator.getitem else None for user in node.users]
        else:
            return None
        about_positions = all(isinstance(place, int) and place % len(shape) != axis.dimension for place in places)
        return cls(node, node.all_input_nodes) if about_positions else None

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        return [False]


KINDS = (Pointwise, Plane, Reshape, Join, Pad, Question, Rearranged, Aligned)


def read_operations(
    module: fx.GraphModule, channels: Channels, trains: bool = False, closed: Collection[str] = (), follow: bool = False
) -> dict[fx.Node, Operation]:
    """The operation of every node, their channel axes entered in `channels`.

    Args:
        module: a traced graph that knows its shapes.
        channels: empty.
        trains: whether weights may change later, and the arguments of calls may not.
        closed: names of layers and norms that stay as they are.
        follow: whether sizes of heads in the arguments of calls may change though the weights train on.
    """
    layers, norms = (
        {node: nodes for name, nodes in calls_of(module, kinds).items() if name not in closed for node in nodes}
        for kinds in (LAYERS, NORMS)
    )
    of_heads = biases(module)
    tables: dict[str, Table] = {}
    operations: dict[fx.Node, Operation] = {}
    for node in module.graph.nodes:
        operation: Operation | None = None
        if node in layers:
            operation = layer = Layer.read(node, module, channels)
            first = operations.get(layers[node][0], layer)
            assert isinstance(first, Layer)
            channels.tie(first.columns, layer.columns)  # of a layer that is called several times
            channels.tie(channels.axes[first.node].atoms, channels.axes[node].atoms)
        elif node in norms:
            operation = Norm.read(node, module, channels, trains)
            first = operations.get(norms[node][0], operation)
            if isinstance(operation, Norm) and isinstance(first, Norm):
                channels.tie(first.atoms, operation.atoms)
        elif node in of_heads and str(node.target) not in closed:
            operation = of_heads[node].read(node, module, channels)
            if isinstance(operation, Table):
                channels.tie(tables.setdefault(operation.name, operation).atoms, operation.atoms)
        else:
            operation = next((found for kind in KINDS if (found := kind.read(node, module, channels))), None)
        if operation is None:
            operation = Operation(node, node.all_input_nodes)
            for source in node.all_input_nodes:
                channels.pin_other(source, node)
        if trains:
            channels.pin(operation.written(), f"their number stands in the call of {described(node)}")
            if not follow:
                channels.pin(
                    torch.cat([one.atoms for one in operation.follows()] or [operation.written()]),
                    PYTHON,
                )
        operations[node] = operation
    return operations


def _any(value: Any, usual: int = 0) -> bool:
    return any(one != usual for one in (value if isinstance(value, tuple) else (value,)))


def _mean_over(node: fx.Node, dimensions: int) -> set[int] | None:
    over = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    over = [over] if isinstance(over, int) else over
    if not isinstance(over, (tuple, list)) or not over or not all(isinstance(one, int) for one in over):
        return None
    return {one % dimensions for one in over}  # type: ignore[operator]


def _slices_positions(index: Any, dimension: int) -> bool:
    """Whether an index takes slices, all channels, and leaves the dimensions in their order."""
    index = index if isinstance(index, tuple) else (index,)
    return all(isinstance(one, slice) for one in index) and (len(index) <= dimension or index[dimension] == slice(None))


def _may_squeeze(node: fx.Node, channel: int, dimensions: int) -> bool:
    """Whether a squeeze would remove the channel axis, were there only one channel."""
    if node.target not in ("squeeze", torch.squeeze):
        return False
    over = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return not isinstance(over, int) or over % dimensions == channel


def _place_after_reshape(given: tuple[int, ...], channel: int, made: tuple[int, ...]) -> int | None:
    """Where the channel axis is after a reshape that splits no channel and mixes none with what stands before it."""
    extent, lead, trail = given[channel], prod(given[:channel]), prod(given[channel + 1 :])
    if extent < 2:
        return None  # which of the dimensions of 1 it is, the shapes do not tell
    for place in range(1 if channel else 0, len(made)):
        joined, rest = divmod(made[place], extent)
        if not rest and prod(made[:place]) == lead and joined * prod(made[place + 1 :]) == trail:
            return place
    return None
