"""Which steps does a model take? Read from its graph, with BatchNorm folded and channels that never matter gone."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import inf, prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..common.hooks import user_hooks
from ..inference.graph.exported import Guards, Structure
from ..inference.graph.fold import fold_norms, is_fixed, scale_and_shift, without_identities
from ..inference.graph.layers import PACKED
from ..inference.graph.padding import fold_padding
from ..inference.graph.prune import prune_following
from ..inference.graph.trace import copied, module_of, shape_of, trace
from ..inference.packed import Frozen
from ..nn.conv import ConvolutionInterface
from ..nn.linear import LinearInterface
from ..nn.opened.cells import OpenedCell
from ..nn.opened.recurrent import OpenedRecurrent
from .errors import NoC
from .network import Convolution, Copy, Function, Linear, Network, Pair, Place, Pool, Softmax, Step, Transpose, sources_of
from .places import indexed, rotation
from .pools import POOLS, mean_over, pool_of
from .recurrent import Given, cell_of, given_by, layers_of, reads_sequence
from .stated import Told, without_rounding
from .weights import convolution_of, diagonal, linear_of, scale_of, window_of

BATCH = 2  # samples that the graph is read with: what has another first extent is no batch of samples
SUPPORTED = (
    "linear layers, convolutions of images and sequences, their BatchNorm, max, mean and adaptive pools, GRU, LSTM, RNN and their cells, "
    "ReLU, ReLU6, Hardtanh, LeakyReLU, Sigmoid, Tanh, SiLU, Hardswish, Hardsigmoid, Softmax, +, *, cat, flatten, reshape, transpose, slices"
)

_FUNCTIONS: dict[type[nn.Module], Callable[[Any], tuple[str, tuple[float, ...]]]] = {
    nn.ReLU: lambda m: ("clamp", (0.0, inf)),
    nn.ReLU6: lambda m: ("clamp", (0.0, 6.0)),
    nn.Hardtanh: lambda m: ("clamp", (float(m.min_val), float(m.max_val))),
    nn.LeakyReLU: lambda m: ("leaky", (float(m.negative_slope),)),
    nn.Sigmoid: lambda m: ("sigmoid", ()),
    nn.Tanh: lambda m: ("tanh", ()),
    nn.SiLU: lambda m: ("silu", ()),
    nn.Hardswish: lambda m: ("hardswish", ()),
    nn.Hardsigmoid: lambda m: ("hardsigmoid", ()),
}
_SPELLED: dict[Any, Callable[..., nn.Module]] = {
    F.hardtanh: nn.Hardtanh,
    F.hardsigmoid: nn.Hardsigmoid,
    F.max_pool1d: nn.MaxPool1d,
    F.avg_pool1d: nn.AvgPool1d,
    F.adaptive_avg_pool1d: nn.AdaptiveAvgPool1d,
    F.adaptive_max_pool1d: nn.AdaptiveMaxPool1d,
}
_SOFTMAX = {F.softmax, torch.softmax, "softmax"}
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_MULTIPLY = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
_SQUEEZE = {"squeeze", torch.squeeze}
_SAME_ORDER = {"view", "reshape", "flatten", "unsqueeze", "contiguous", "clone", "detach", "float", *_SQUEEZE} | {
    *(torch.reshape, torch.flatten, torch.unsqueeze, torch.clone),
}
_TRANSPOSE = {"transpose", torch.transpose}
_PERMUTE = {"permute", torch.permute, *_TRANSPOSE}
_MEAN = {"mean", torch.mean}
_ZEROS = {torch.zeros, torch.zeros_like, "new_zeros"}
_JOIN = {torch.cat, torch.concat, torch.concatenate}


def read(model: nn.Module, example: Tensor) -> Network:
    """The steps of `model` in eval mode for one sample.

    Args:
        model: left as it is.
        example: [batch, ...] float32; shapes of the C program are those of one of its samples.

    Raises:
        TypeError: if the model is packed, cannot be traced, or does what has no C here; the message names the layer.
        ValueError: if a parameter is no number.
    """
    _check(model, example)
    plain, said = without_rounding(model)
    samples = torch.cat([example[:1], example[:1]]) if len(example) == 1 else example[:BATCH]
    # Nobody looks into these anyway; without them said, torch.export would be asked to, in vain.
    whole = (OpenedRecurrent, OpenedCell) if any(isinstance(module, (OpenedRecurrent, OpenedCell)) for module in model.modules()) else ()
    graph = fold_padding(without_identities(trace(plain, samples, leaves=whole)))
    folded, norms = fold_norms(graph)
    smaller, rows = prune_following(folded, samples)
    scales = {layer: scale_and_shift(graph.get_submodule(norm))[0] for layer, norm in norms.items()}  # type: ignore[arg-type]
    return _Reader(smaller, Told(said, rows, scales)).network()


def _check(model: nn.Module, example: Tensor) -> None:
    if not isinstance(example, Tensor):
        raise TypeError(f"a C function takes one tensor: the example must be one, [batch, ...], got {type(example).__name__}")
    if example.dtype != torch.float32 or example.ndim < 2 or not example.numel():
        raise TypeError(f"expected an example of float32 with shape [batch, ...], got {example.dtype} of shape {tuple(example.shape)}")
    if any(isinstance(module, Frozen) for module in model.modules()):
        raise TypeError("a packed network holds its weights as only this library reads them: export the network that it was packed from")
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise TypeError(f"export_c takes networks of float32, and {name!r} is {parameter.dtype}: convert it with .float() first")
        if not bool(torch.isfinite(parameter).all()):
            raise ValueError(f"{name!r} holds NaN or infinity, and such a network computes nothing: take an earlier checkpoint")
    hooked = user_hooks(copied(model))
    if hooked:
        raise TypeError(f"hooks of yours are on {', '.join(name or 'the model itself' for name in hooked)}, which no C holds: remove them")


def _needed(steps: Sequence[Step], output: Place) -> tuple[Step, ...]:
    """Those steps that lead to the output."""
    wanted, kept = {output.buffer}, []
    for step in reversed(steps):
        if step.target.buffer in wanted:
            kept.append(step)
            wanted.update(place.buffer for place in sources_of(step))
    return tuple(reversed(kept))


class Zeros:
    """A tensor of zeros: a state before the first step."""


class _Reader:
    def __init__(self, module: fx.GraphModule, told: Told) -> None:
        self.module, self.told = module, told
        self.steps: list[Step] = []
        self.buffers = 0
        self.places: dict[fx.Node, Place | Given | Zeros | tuple[Place, ...] | None] = {}
        self.makers: dict[int, fx.Node] = {}  # of each buffer

    def network(self) -> Network:
        inputs = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise TypeError(f"a C function takes one tensor, and the model takes {len(inputs)}")
        output: Place | None = None
        for node in self.module.graph.nodes:
            try:
                if node.op == "placeholder":
                    self.places[node] = Place(0, self._shape(node))
                elif node.op == "output":
                    output = self._output(node)
                elif node.op != "get_attr" and not _is_about_shapes(node):
                    made = self.places[node] = self._read(node)
                    if isinstance(made, Place):
                        self.makers.setdefault(made.buffer, node)
            except NoC as error:
                raise self._refusal(node, str(error)) from error
        assert output is not None
        return Network(_needed(self.steps, output), Place(0, self._shape(inputs[0])), output)

    def _output(self, node: fx.Node) -> Place:
        place = self._only(node.args[0])
        if place.buffer == 0 or place.offset or place.size != self._size_of(place.buffer):
            target = self._new(place.shape)
            self.steps.append(Copy("output", place, target))
            return target
        return place

    def _only(self, given: Any) -> Place:
        while isinstance(given, (tuple, list)) and len(given) == 1:
            given = given[0]
        place = self.places.get(given) if isinstance(given, fx.Node) else None
        if not isinstance(place, Place):
            raise TypeError("a C function gives one tensor: the model must return one, not several, and no dict of them")
        return place

    def _size_of(self, buffer: int) -> int:
        return max(step.target.offset + step.target.size for step in self.steps if step.target.buffer == buffer)

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        """Of one sample."""
        shape = shape_of(node)
        if shape is None or not shape or shape[0] != BATCH:
            said = "no tensor" if shape is None else f"shape {shape} for {BATCH} samples"
            raise NoC(f"the first dimension must be the samples and stay so, and it gives {said}")
        return shape[1:]

    def _new(self, shape: tuple[int, ...]) -> Place:
        self.buffers += 1
        return Place(self.buffers, shape)

    def _made(self, step: Step) -> Place:
        self.steps.append(step)
        return step.target

    def _called(self, node: fx.Node) -> nn.Module | None:
        return self.module.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _refusal(self, node: fx.Node, why: str) -> TypeError:
        called = self._called(node)
        target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        what = f"layer {str(node.target)!r} ({type(called).__name__})" if called is not None else f"operation {target} ({node.name})"
        return TypeError(f"{what} has no C here{': ' + why if why else ''}. There is C for {SUPPORTED}")

    def _source(self, node: fx.Node, number: int = 0) -> Place:
        given = node.args[number] if len(node.args) > number else None
        place = self.places.get(given) if isinstance(given, fx.Node) else None
        if not isinstance(place, Place):
            raise NoC("it reads what is no tensor of samples")
        return place

    def _read(self, node: fx.Node) -> Place | Given | Zeros | tuple[Place, ...] | None:
        called, name = self._called(node), str(node.target) if node.op == "call_module" else node.name
        if isinstance(called, Guards):
            return None
        if isinstance(called, Structure):
            return self._only(node.args[0])
        if isinstance(called, (nn.RNNCellBase, OpenedCell)):
            return self._cell(node, name, called)
        if node.target in _ZEROS:
            return Zeros()
        if called is not None and module_of(self.module, node) is None:
            raise NoC("it takes one tensor here")
        if node.target in _SPELLED:
            settings = {key: value for key, value in node.kwargs.items() if key not in ("inplace", "training")}
            called = _SPELLED[node.target](*node.args[1:], **settings)
        if called is not None:
            return self._module(node, name, called)
        if node.target is operator.getitem:
            return self._item(node)
        if node.target in _JOIN:
            return self._joined(node, name)
        if node.target in _ADD | _MULTIPLY:
            return self._pair(node, name, "add" if node.target in _ADD else "multiply")
        return self._rearranged(node, name)

    def _module(self, node: fx.Node, name: str, called: nn.Module) -> Place | Given:
        source = self._source(node)
        if isinstance(called, (nn.RNNBase, OpenedRecurrent)):
            every = reads_sequence(node)
            layers = layers_of(name, called, source, every, self.buffers, self.told)
            self.buffers += len(layers)
            self.steps += layers
            return given_by(layers, every)
        shape = self._shape(node)
        if isinstance(called, (nn.Linear, LinearInterface)) and type(called) in PACKED:
            matrix = self.told.of(name, linear_of(called))
            return self._made(Linear(name, source, self._new(shape), matrix, prod(source.shape[:-1])))
        if isinstance(called, (nn.Conv1d, nn.Conv2d, ConvolutionInterface)) and type(called) in PACKED and len(source.shape) in (2, 3):
            matrix, window = convolution_of(called, source, shape)
            return self._made(Convolution(name, source, self._new(shape), self.told.of(name, matrix), window))
        if isinstance(called, (nn.BatchNorm1d, nn.BatchNorm2d)) and is_fixed(called):
            return self._norm(node, name, called, source)
        if isinstance(called, nn.Flatten):
            return replace(source, shape=shape)
        if isinstance(called, nn.Softmax):
            return self._softmax(name, source, called.dim)
        if type(called) in _FUNCTIONS:
            return self._function(node, name, source, *_FUNCTIONS[type(called)](called))
        if isinstance(called, POOLS):
            return self._made(Pool(name, source, self._new(shape), *pool_of(called, source, shape)))
        raise NoC("")

    def _cell(self, node: fx.Node, name: str, called: nn.RNNCellBase | OpenedCell) -> Place | tuple[Place, ...]:
        given: Any = dict(zip(("input", "hx"), node.args, strict=False)) | node.kwargs
        source, hx = self.places.get(given["input"]), given.get("hx")
        parts = tuple(self._state(one) for one in hx) if isinstance(hx, (tuple, list)) else () if hx is None else self._state(hx)
        parts = parts if isinstance(parts, tuple) else (parts,)
        before = tuple(one for one in parts if isinstance(one, Place))
        if not isinstance(source, Place) or len(source.shape) != 1 or len(before) not in (0, len(parts)):
            raise NoC("it takes [batch, inputs], and a state that the model hands on or zeros: of an LSTM both parts, or neither")
        step = cell_of(name, called, source, before, self._new(()).buffer, self.told)
        self.steps.append(step)
        n = step.hidden
        return (Place(step.target.buffer, (n,)), Place(step.target.buffer, (n,), n)) if len(step.target.shape) == 2 else step.target

    def _state(self, node: Any) -> Place | Zeros | tuple[Place, ...]:
        found = self.places.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(found, (Place, Zeros, tuple)):
            raise NoC("its state is no tensor of samples")
        return found

    def _layer_before(self, node: fx.Node, source: Place) -> Linear | Convolution | None:
        """The layer whose output, all of it, only this node reads."""
        given = node.args[0]
        while isinstance(given, fx.Node) and len(given.users) == 1 and given is not self.makers.get(source.buffer):
            given = given.args[0] if given.args else None
        last = next((step for step in reversed(self.steps) if step.target.buffer == source.buffer), None)
        alone = isinstance(given, fx.Node) and len(given.users) == 1
        if not alone or not isinstance(last, (Linear, Convolution)) or (source.offset, source.size) != (0, last.target.size):
            return None
        return last if (last.matrix.low, last.matrix.high) == (-inf, inf) else None

    def _function(self, node: fx.Node, name: str, source: Place, kind: str, settings: tuple[float, ...]) -> Place:
        layer = self._layer_before(node, source) if kind == "clamp" else None
        if layer is None:
            return self._made(Function(name, source, self._new(source.shape), kind, settings))
        self._replace(layer, replace(layer, matrix=replace(layer.matrix, low=settings[0], high=settings[1])))
        return source

    def _norm(self, node: fx.Node, name: str, norm: nn.Module, source: Place) -> Place:
        scale, shift = scale_of(norm)
        layer = self._layer_before(node, source)
        if layer is not None and layer.matrix.rows == len(scale) and (isinstance(layer, Convolution) or layer.samples == 1):
            self._replace(layer, replace(layer, matrix=layer.matrix.normed(scale, shift)))
            return source
        plane = prod(source.shape[1:])
        window = window_of((len(scale), plane), (len(scale), plane), 1, 1, groups=len(scale))
        return self._made(Convolution(name, source, self._new(source.shape), diagonal(scale, shift), window))

    def _replace(self, old: Step, new: Step) -> None:
        self.steps[self.steps.index(old)] = new

    def _softmax(self, name: str, source: Place, dim: Any) -> Place:
        if dim is None or dim % (len(source.shape) + 1) != len(source.shape):
            raise NoC("it must be over the last dimension, dim=-1")
        return self._made(Softmax(name, source, self._new(source.shape)))

    def _pair(self, node: fx.Node, name: str, kind: str) -> Place:
        if len(node.args) != 2 or node.kwargs:
            raise NoC("it takes two tensors, or a tensor and a number")
        numbers = [one for one in node.args if isinstance(one, (int, float))]
        if numbers:
            source = self._source(node, 0 if isinstance(node.args[0], fx.Node) else 1)
            number, one = torch.tensor([float(numbers[0])], device="cpu").numpy(), torch.ones(1, device="cpu").numpy()
            matrix = diagonal(one, number) if kind == "add" else diagonal(number, 0 * one)
            window = window_of((1, source.size), (1, source.size), 1, 1)
            return self._made(Convolution(name, source, self._new(source.shape), matrix, window))
        source, other = self._source(node), self._source(node, 1)
        if source.shape != other.shape:
            raise NoC(f"both must have one shape, got {source.shape} and {other.shape}")
        return self._made(Pair(name, source, other, self._new(source.shape), kind))

    def _rearranged(self, node: fx.Node, name: str) -> Place:
        given = self.places.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if isinstance(given, Given) and node.target in _SQUEEZE and len(given.last) == 1 and node.args[1:] == (0,):
            return given.last[0]
        source = self._source(node)
        if node.target in _SAME_ORDER:
            return replace(source, shape=self._shape(node))
        settings = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
        if node.target in _SOFTMAX:
            return self._softmax(name, source, settings.get("dim"))
        if node.target in _PERMUTE:
            return self._permuted(node, name, source)
        if node.target in _MEAN:
            window, turned = mean_over(source.shape, settings.get("dim"))
            if turned:
                source = self._made(Transpose(f"{name}.turned", source, self._new(source.shape[::-1])))
            return self._made(Pool(name, source, self._new(self._shape(node)), window, True))
        raise NoC("")

    def _permuted(self, node: fx.Node, name: str, source: Place) -> Place:
        given: list[Any] = list(node.args[1:])
        given = list(given[0]) if given and isinstance(given[0], (tuple, list)) else given
        dims = [int(d) % (len(source.shape) + 1) for d in given]
        order = list(range(len(source.shape) + 1))
        if node.target in _TRANSPOSE:
            order[dims[0]], order[dims[1]] = dims[1], dims[0]
        else:
            order = dims
        at = rotation([place - 1 for place in order[1:]]) if order[0] == 0 else None
        if at is None:
            raise NoC("of the dimensions of a sample, the last ones may change places with the first ones, nothing else")
        shape = self._shape(node)
        if at == 0:
            return replace(source, shape=shape)
        rows, columns = prod(source.shape[:at]), prod(source.shape[at:])
        step = Transpose(name, replace(source, shape=(rows, columns)), self._new((columns, rows)))
        return replace(self._made(step), shape=shape)

    def _item(self, node: fx.Node) -> Place | Given:
        given, index = node.args
        place = self.places.get(given) if isinstance(given, fx.Node) else None
        if isinstance(place, tuple) and isinstance(index, int):
            return place[index]
        if isinstance(place, Given):
            found = place.item(index)
            if found is None:
                raise NoC("of a recurrent layer there are the states of all steps, and the last state of each layer: h[-1]")
            return found
        part = indexed(place, index) if isinstance(place, Place) else None
        if part is None or part.shape != self._shape(node):
            raise NoC("an index takes all samples, then numbers, then one slice in steps of 1")
        return part

    def _joined(self, node: fx.Node, name: str) -> Place:
        settings: dict[str, Any] = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
        parts = [self.places.get(one) for one in settings["tensors"]]
        target = self._new(self._shape(node))
        at = int(settings.get("dim", 0)) % (len(target.shape) + 1) - 1
        if not all(isinstance(part, Place) for part in parts) or at < 0 or prod(target.shape[:at]) != 1:
            raise NoC("tensors are joined along the first dimension of a sample, dim=1")
        offset = 0
        for number, part in enumerate(parts):
            assert isinstance(part, Place)
            self.steps.append(Copy(f"{name}.{number}", part, replace(part, buffer=target.buffer, offset=offset)))
            offset += part.size
        return target


def _is_about_shapes(node: fx.Node) -> bool:
    """Whether it gives a size or a kind of number, which are known."""
    kind = node.meta.get("type")
    return isinstance(kind, type) and issubclass(kind, (int, torch.Size, torch.dtype, torch.device))
