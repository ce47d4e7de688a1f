"""Which parts of a packed network run without Python between their layers? Runs of known calls: each becomes a program of the kernels."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import TensorMetadata

from .. import _core
from ..common.hooks import Watched, users_on
from .graph.padding import cropped
from .graph.trace import replaced, shape_of
from .packed import PackedLayer

LEAST_LAYERS = 2  # of a run: less is not worth a program
LINE = 16  # floats: where memory of a place begins
NOTHING = -1  # is added
MOST_PLANS = 4  # of a run, for as many shapes

# What only looks at the memory of its input in another way, or asks for sizes.
_OF_SIZES: set[Any] = {operator.add, operator.sub, operator.mul, operator.floordiv, getattr, "size"}
_VIEWS: set[Any] = {
    *_OF_SIZES,
    *(operator.getitem, cropped, torch.flatten, torch.reshape, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze),
    *("flatten", "reshape", "view", "transpose", "permute", "squeeze", "unsqueeze", "contiguous"),
}


def with_runs(module: fx.GraphModule) -> fx.GraphModule | None:
    """The same function on the same modules, each run of known calls one call; None if there is no such run.

    Args:
        module: of packed layers; its nodes know the shapes that they have for the example.
    """
    runs = [
        run for run in map(_trimmed, _runs(module)) if sum(_is_layer(module, node) for node in run) >= LEAST_LAYERS and _gives_tensors(run)
    ]
    if not runs:
        return None
    new = replaced(module)
    place = dict(zip(module.graph.nodes, new.graph.nodes, strict=True))
    for number, run in enumerate(runs):
        _become_one(new, [place[node] for node in run], f"run_{number}")
    new.graph.lint()
    new.recompile()
    return new


def layers_in_runs(module: fx.GraphModule | None) -> int:
    """How many layers are in the runs of a graph."""
    runs = [one for one in module.modules() if isinstance(one, Run)] if module is not None else []
    return len({layer for run in runs for layer in run.modules() if isinstance(layer, PackedLayer)})


def _runs(module: fx.GraphModule) -> Iterable[list[fx.Node]]:
    run: list[fx.Node] = []
    for node in module.graph.nodes:
        if _is_known(module, node):
            run.append(node)
        elif node.op not in ("placeholder", "get_attr"):
            yield from _whole(run)
            run = []
    yield from _whole(run)


def _whole(run: list[fx.Node]) -> Iterable[list[fx.Node]]:
    """A run, or its parts around a node that gives others something else than a tensor."""
    inside = set(run)
    for number, node in enumerate(run):
        if shape_of(node) is None and any(user not in inside for user in node.users):
            return [*_whole(run[:number]), *_whole(run[number + 1 :])]
    return [run]


def _is_known(module: fx.GraphModule, node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    if node.op == "call_module":
        called = _called(module, node)
        return not node.kwargs and (_is_layer(module, node) or _is_mean(called) or type(called) is nn.Flatten)
    if node.op not in ("call_function", "call_method"):
        return False
    if shape_of(node) is None:  # of sizes
        return node.target in _VIEWS
    if not isinstance(source, fx.Node) or shape_of(source) is None:
        return False
    if node.target is operator.getitem:
        return _is_slice(node.args[1])
    return node.target in _VIEWS - _OF_SIZES or (node.target is F.pad and _zeros_around(node) is not None)


def _is_slice(index: Any) -> bool:
    """Whether an index gives a view: no tensor and no list is in it."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(one is None or one is Ellipsis or isinstance(one, (int, slice)) for one in parts)


def _called(module: fx.GraphModule, node: fx.Node) -> nn.Module:
    return module.get_submodule(str(node.target))


def _is_layer(module: fx.GraphModule, node: fx.Node) -> bool:
    layer = _called(module, node) if node.op == "call_module" else None
    shape = shape_of(node.all_input_nodes[0]) if isinstance(layer, PackedLayer) else None
    return isinstance(layer, PackedLayer) and shape is not None and not users_on(layer) and layer.call(shape) is not None


def _is_mean(called: nn.Module) -> bool:
    return type(called) is nn.AdaptiveAvgPool2d and called.output_size in (1, (1, 1))


def _zeros_around(node: fx.Node) -> list[Any] | None:
    """How many of them on each side, from the last dimension to the first."""
    given = dict(zip(("pad", "mode", "value"), node.args[1:], strict=False)) | node.kwargs
    amounts = given.get("pad")
    zeros = given.get("mode", "constant") == "constant" and not given.get("value")
    if not zeros or not isinstance(amounts, (tuple, list)) or not all(isinstance(one, int) and one >= 0 for one in amounts):
        return None
    return list(amounts)


def _trimmed(run: list[fx.Node]) -> list[fx.Node]:
    """Without what is at the ends and does no work, but for sizes that nobody else asks for."""
    works = [number for number, node in enumerate(run) if node.op == "call_module" and shape_of(node) is not None]
    if not works:
        return []
    kept = run[works[0] : works[-1] + 1]
    for node in reversed(run[: works[0]]):
        if shape_of(node) is None and node.users and all(user in kept for user in node.users):
            kept.insert(0, node)
    return kept


def _gives_tensors(run: list[fx.Node]) -> bool:
    """Whether all that it reads and gives are tensors of float32."""
    inside = set(run)
    read = [source for node in run for source in node.all_input_nodes if source not in inside]
    given = [node for node in run if any(user not in inside for user in node.users)]
    metas = [node.meta.get("tensor_meta") for node in (*read, *given)]
    return all(isinstance(meta, TensorMetadata) and meta.dtype == torch.float32 for meta in metas)


def _become_one(module: fx.GraphModule, run: list[fx.Node], name: str) -> None:
    inside = set(run)
    inputs = list(dict.fromkeys(source for node in run for source in node.all_input_nodes if source not in inside))
    outputs = [node for node in run if any(user not in inside for user in node.users)]
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for number, source in enumerate(inputs):
        copies[source] = graph.placeholder(f"input_{number}")
    for node in run:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    module.add_submodule(name, Run(fx.GraphModule(module, graph, name)))
    after = run[-1]
    with module.graph.inserting_after(after):
        call = module.graph.call_module(name, tuple(inputs))
    with module.graph.inserting_after(call):
        parts = [module.graph.call_function(operator.getitem, (call, number)) for number in range(len(outputs))]
    for node, part in zip(outputs, parts, strict=True):
        node.replace_all_uses_with(part, lambda user: user not in inside)
    for node in reversed(run):
        module.graph.erase_node(node)


@dataclass(frozen=True)
class Value:
    """A tensor of a run: numbers in a place, as a tensor of torch has them in memory."""

    place: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    start: int = 0

    @property
    def is_contiguous(self) -> bool:
        return self.start == 0 and self.strides == _strides(self.shape)


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return torch.empty(shape, device="meta").stride()


@dataclass(frozen=True)
class Plan:
    """How a run is done for inputs of some shapes.

    Attributes:
        program: None where only torch can do it.
        outputs: shapes.
    """

    program: Any
    outputs: tuple[tuple[int, ...], ...]


class Run(nn.Module):
    """Layers, sums, means and views, one after the other: a program of the kernels for inputs of the shapes of the last few calls.

    The first call of a shape goes through torch's modules, which refuse what cannot be, and so do all while hooks are on them.
    """

    def __init__(self, by_torch: fx.GraphModule) -> None:
        super().__init__()
        self.by_torch = by_torch
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._watched: Watched | None = None
        self.eval()

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        case = (torch.get_num_threads(), *[one.shape for one in inputs])
        plan = self._plans.get(case)
        if (plan is not None and plan.program is None) or not all(map(_is_plain, inputs)) or self._is_watched():
            result: tuple[Tensor, ...] = self.by_torch(*inputs)
            return result
        inputs = tuple([one.contiguous() for one in inputs])
        if plan is None:
            planner = _Planner(self.by_torch)
            result = planner.run(*inputs)
            kept = list(self._plans.items())[1 - MOST_PLANS :]
            self._plans = {**dict(kept), case: planner.plan()}
            return result
        outputs = [inputs[0].new_empty(shape) for shape in plan.outputs]
        plan.program.run([one.data_ptr() for one in (*inputs, *outputs)])
        return tuple(outputs)

    def _is_watched(self) -> bool:
        if self._watched is None:
            self._watched = Watched(self.by_torch)
        return bool(self._watched)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_watched": None}


def _is_plain(x: Tensor) -> bool:
    """Whether kernels may read it; the rest is for torch's modules to refuse."""
    follows = x.requires_grad and torch.is_grad_enabled()
    return type(x) is Tensor and x.dtype is torch.float32 and x.is_cpu and x.layout is torch.strided and not follows


class _Planner(fx.Interpreter):
    """Runs a graph by torch, and notes the steps that would do the same."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.values: dict[fx.Node, Value] = {}
        self.steps: list[_Step] = []
        self.sizes: list[int] = []  # floats of each place
        self.possible = True

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "placeholder":
            self.values[n] = self._new(result)
        elif n.op != "output" and isinstance(result, Tensor) and self.possible:
            self._note(n, result)
        return result

    def _note(self, node: fx.Node, result: Tensor) -> None:
        called = self.fetch_attr(str(node.target)) if node.op == "call_module" else None
        if isinstance(called, PackedLayer):
            self._note_layer(called, node, result)
        elif isinstance(called, nn.AdaptiveAvgPool2d):
            x = self._contiguous(node.args[0])
            self._step(_core.mean_call(result.numel(), prod(x.shape[2:])), x, self._new(result, node))
        elif node.target is F.pad:
            self._note_padding(node, result)
        else:
            source, tensor = node.args[0], self.env[node.args[0]]  # type: ignore[index]
            value = self.values[source]  # type: ignore[index]
            if result.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():  # a reshape that had to copy
                value, tensor = self._contiguous(source), result
            start = value.start + (result.data_ptr() - tensor.data_ptr()) // result.element_size()
            self.values[node] = Value(value.place, tuple(result.shape), result.stride(), start)

    def _note_layer(self, layer: PackedLayer, node: fx.Node, result: Tensor) -> None:
        x = self._contiguous(node.args[0])
        call = layer.call(x.shape)
        added = self._contiguous(node.args[1]) if len(node.args) > 1 else None
        if call is None or (added is not None and added.shape != tuple(result.shape)):
            self.possible = False
            return
        y = self._new(result, node)
        self._step(call, x, y)
        if layer.epilogue is not None:
            self._step(layer.epilogue.call(result.numel()), y, y, added)

    def _note_padding(self, node: fx.Node, result: Tensor) -> None:
        amounts = _zeros_around(node)
        assert amounts is not None
        x, y = self.values[node.args[0]], self._new(result, node)  # type: ignore[index]
        start = sum(before * stride for before, stride in zip(amounts[::2], reversed(y.strides), strict=False))
        self._step(_core.copy_call(x.start, start, result.numel(), True, *_box(x.shape, x.strides, y.strides)), x, y)

    def _contiguous(self, node: Any) -> Value:
        value = self.values[node]
        if value.is_contiguous:
            return value
        copied = Value(len(self.sizes), value.shape, _strides(value.shape))
        self.sizes.append(prod(value.shape))
        box = _box(value.shape, value.strides, copied.strides)
        self._step(_core.copy_call(value.start, 0, prod(value.shape), False, *box), value, copied)
        self.values[node] = copied
        return copied

    def _new(self, result: Tensor, node: fx.Node | None = None) -> Value:
        value = Value(len(self.sizes), tuple(result.shape), _strides(tuple(result.shape)))
        self.sizes.append(result.numel())
        if node is not None:
            self.values[node] = value
        return value

    def _step(self, call: Any, x: Value, y: Value, added: Value | None = None) -> None:
        self.steps.append(_Step(call, x.place, NOTHING if added is None else added.place, y.place))

    def plan(self) -> Plan:
        """After a run."""
        graph: fx.Graph = self.module.graph  # type: ignore[assignment]
        nodes = list(graph.nodes)
        if not self.possible:
            return Plan(None, ())
        inputs = [self.values[node].place for node in nodes if node.op == "placeholder"]
        given = [self.values[node] for node in nodes[-1].args[0]]  # type: ignore[union-attr]
        places = [one.place for one in given]
        if len({*inputs, *places}) < len(inputs) + len(places):  # whoever writes in one of them writes in others
            return Plan(None, ())
        outputs = [self._contiguous(node) for node in nodes[-1].args[0]]  # type: ignore[union-attr]
        outside = [*inputs, *(one.place for one in outputs)]
        offsets, size = _planned(self.steps, self.sizes, outside)
        order = [*outside, *offsets]
        program = _core.Program(len(outside), list(offsets.values()), size)
        for step in self.steps:
            program.add(step.call, *(NOTHING if place == NOTHING else order.index(place) for place in (step.x, step.added, step.y)))
        return Plan(program, tuple(one.shape for one in outputs))


@dataclass(frozen=True)
class _Step:
    call: Any
    x: int
    added: int
    y: int


def _box(shape: tuple[int, ...], read: tuple[int, ...], written: tuple[int, ...]) -> tuple[list[int], list[int], list[int]]:
    """Extents and strides of a copy, outermost first; at least one."""
    return [*shape] or [1], [*read] or [1], [*written] or [1]


def _planned(steps: list[_Step], sizes: list[int], outside: list[int]) -> tuple[dict[int, int], int]:
    """Where in one memory each place lies that is not outside, and how many floats that has; those in use at a time do not overlap."""
    first, last = dict[int, int](), dict[int, int]()
    for number, step in enumerate(steps):
        for place in (step.x, step.added, step.y):
            first.setdefault(place, number)
            last[place] = number
    offsets: dict[int, int] = {}
    for place in sorted(first, key=first.__getitem__):
        if place in outside or place == NOTHING:
            continue
        busy = sorted((offsets[one], offsets[one] + sizes[one]) for one in offsets if last[one] >= first[place])
        start = 0
        for begin, end in busy:
            if start + sizes[place] <= begin:
                break
            start = max(start, -(-end // LINE) * LINE)
        offsets[place] = start
    return offsets, max((offsets[one] + sizes[one] for one in offsets), default=0)
