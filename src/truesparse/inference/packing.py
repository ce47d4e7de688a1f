"""How does a trained network become a fast one? Simplified as a graph, each layer laid out as is fastest here, and told what was done."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from .. import __version__
from ..common.hooks import user_hooks
from ..common.processor import processor
from ..common.shown import Table
from ..topology.geometry import Convolution
from .choice import Measured, Memory, by_rule, key_of, measure
from .eager import refusal, refuse_tracing
from .graph.example import Example, Form, call, form_of, inputs_of
from .graph.join import joined_name
from .graph.layers import FusedLayer, Weights, weights_of
from .graph.simplify import LayerChange, simplify
from .graph.trace import Untraceable
from .inplace import as_it_is, layers_in_place
from .layouts import VALUES, Conditions, Dense, Finish, candidates
from .packed import Frozen, PackedLayer


@dataclass(frozen=True)
class PackedRow:
    """What became of one layer.

    Args:
        layer: its name, or the names of layers that became one.
        change: what the graph lost there: neurons, inputs, connections before and after.
        sparsity: of what is left, 0 to 1.
        layout: in words.
        bytes: of the layout.
        seconds, dense_seconds: of one call at the example's batch, the layout and a dense one of the same layer; None if not measured.
    """

    layer: str
    change: LayerChange
    sparsity: float
    layout: str
    bytes: int
    seconds: float | None
    dense_seconds: float | None

    @property
    def dense_bytes(self) -> int:
        """Of the dense float32 weight and bias as they were, before anything was removed."""
        return self.change.dense_bytes

    @property
    def times_as_fast(self) -> float | None:
        """Ratio to dense; None if not measured."""
        return None if self.seconds is None or self.dense_seconds is None else self.dense_seconds / self.seconds


@dataclass(frozen=True)
class Explanation:
    """What `pack` did, a row for each layer. As text it is a table.

    Args:
        batch: first dimension of the example.
        threads: for which layouts were chosen.
        rows: in the order of the graph.
        untraced: why the network is no graph, so that each layer was taken by itself; or "".
        whole: names of modules or layers that stay as they are: nobody looked inside, or they were not called with the example.
        hooked: {name of a module on which a hook of yours is: "forward hook" or "forward pre-hook"}. The hook goes on to be called. Such
            a layer is not packed, of such a module each layer is by itself.
    """

    batch: int
    threads: int
    rows: tuple[PackedRow, ...]
    untraced: str = ""
    whole: tuple[str, ...] = ()
    hooked: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        """A row for each layer; times are of one call, in microseconds."""
        heads = ("layer", "sparsity", "removed", "layout", "bytes", "us", "dense us", "times as fast")
        said = f"batch {self.batch}, {self.threads} thread{'s' * (self.threads > 1)}"
        if self.whole:
            said += f"; left as they were: {', '.join(self.whole)}"
        if self.hooked:
            named = ", ".join(f"{name or 'the model itself'} ({kinds})" for name, kinds in self.hooked.items())
            said += f"; not looked into, since hooks of yours are on them: {named}"
        if self.untraced:
            said += f"; each layer by itself, nothing folded, removed or joined: {self.untraced}"
        return Table(heads, tuple(map(_cells, self.rows)), numeric=frozenset({1, 4, 5, 6, 7}), caption=said)

    def __str__(self) -> str:
        table = self.table()
        lines = [table.heads, *table.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(table.heads))]
        aligned = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
        return "\n".join([*aligned, table.caption])

    def _repr_html_(self) -> str:
        return self.table().html()


class PackedNetwork(Frozen):
    """What `pack` returns: computes what the network computed in eval mode, and nothing else.

    Attributes:
        graph: the network, layer by layer; a `torch.fx.GraphModule` unless it could not be traced.
    """

    def __init__(self, graph: nn.Module, explanation: Explanation, form: Form | None = None) -> None:
        super().__init__()
        self.graph, self._explanation, self._form = graph, explanation, form or Form()
        self.requires_grad_(False)
        self.eval()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """
        `torch.compile` of what calls this ends its graph before it and goes on after it.

        Raises:
            TypeError: if other arguments are given than those of the example.
            RuntimeError: if the call is traced, exported or transformed, which kernels cannot follow.
        """
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            torch._dynamo.graph_break(refusal("torch.compile(fullgraph=True)"))  # which says so where a break is an error
            outside: Callable[..., Any] = torch.compiler.disable(self.forward)  # type: ignore[assignment]
            return outside(*inputs, **named)
        names = self._form.names
        if self._form.has_dicts and isinstance(self.graph, fx.GraphModule):
            inputs = self._form.row(inputs)
        refuse_tracing(inputs)
        if named:
            refuse_tracing(tuple(named.values()))
        if not isinstance(self.graph, fx.GraphModule):
            return self.graph(*inputs, **named)
        if names and (inputs or named.keys() != set(names)):
            given = [*(f"argument {number}" for number in range(len(inputs))), *named]
            raise TypeError(f"packed for the arguments {', '.join(names)} by name, got {', '.join(given)}; pack it with these")
        return self.graph.forward(*inputs, **named)  # a GraphModule's call takes 4 us more, for better tracebacks

    def explain(self) -> Explanation:
        """What became of each layer; `print` it for a table."""
        return self._explanation

    def _repr_html_(self) -> str:
        return self._explanation._repr_html_()


def pack(
    model: nn.Module,
    example_inputs: Example,
    *,
    values: str = "float32",
    tune: bool = True,
    threads: int | None = None,
    memory: Memory | None = None,
) -> PackedNetwork:
    """The fastest form that this machine can run of a trained network, sparse or pruned, in eval mode.

    BatchNorm is folded, activations are fused, neurons and channels that can never matter are removed, linear layers that read the same
    input become one; then each layer gets the layout that is fastest for the batch of the example, dense where dense wins. A model that
    cannot be traced, because its operations depend on the values of its input, has its layers packed one by one and is otherwise left
    as it is. `explain()` says what was done.

    Hooks of this library (`Rewirer`, `ActivationPenalty`) are left out. Yours on forward passes go on to be called, which holds back
    the modules that they are on; `explain().hooked` names them. Backward hooks are left out: there is no backward pass.

    Args:
        model: left as it is. Of a wrapped one (`torch.compile`, DDP, `AveragedModel`) the network inside is packed.
        example_inputs: an input, a tuple of the positional inputs, or a dict of inputs by the names of the arguments, of the batch that
            is to be fast. Other batches work. For a model that takes one dict the tuple holds it: `({"ids": ids, "mask": mask},)`.
        values: how connections may be held: "float32", "bfloat16", or "int8" with a scale for each row. Where narrow values are not
            faster, a layer keeps float32.
        tune: measure each layer's layouts here; what was measured is remembered in the user's cache folder. False chooses by rule, the
            same on every machine.
        threads: for which layouts are chosen; None: as many as torch has now.
        memory: where measurements are remembered; None is the usual place.

    Returns:
        A module with nothing to train. Calls are safe from several threads.

    Raises:
        TypeError: if the model cannot be copied, or is not of float32, or the example is of another type.
        ValueError: if `values` or `threads` is out of its range.
    """
    if values not in VALUES:
        raise ValueError(f"values is one of {', '.join(VALUES)}, got {values!r}")
    threads = torch.get_num_threads() if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    _refuse_other_dtypes(model)
    inputs, untraced = inputs_of(example_inputs), ""
    try:
        simplified = simplify(model, example_inputs)
    except Untraceable as error:
        simplified, untraced = as_it_is(model), str(error)
    simplified = layers_in_place(simplified, example_inputs)
    graph = simplified.module.eval()
    layers = {change.name: _Layer.of(graph.get_submodule(change.name)) for change in simplified.layers}
    shapes = _input_shapes(graph, layers, example_inputs)
    rows = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        chooser = _Chooser(threads, values, (memory or Memory()) if tune else None, (processor(), torch.__version__, __version__))
        for change in simplified.layers:
            row, packed = chooser.packed(layers[change.name], change, shapes[change.name])
            graph.set_submodule(change.name, packed)
            rows.append(row)
    finally:
        torch.set_num_threads(before)
    if isinstance(graph, fx.GraphModule):
        graph.delete_all_unused_submodules()
    batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 1
    explanation = Explanation(batch, threads, tuple(rows), untraced, simplified.whole, user_hooks(graph))
    return PackedNetwork(graph, explanation, form_of(example_inputs))


@dataclass(frozen=True, eq=False)
class _Layer:
    """A layer of the simplified graph, its weights read once, and what follows it: all that its layout does, then modules of their own."""

    module: nn.Module
    weights: Weights
    relu: bool
    finish: Finish
    others: tuple[nn.Module, ...]

    @classmethod
    def of(cls, module: nn.Module) -> _Layer:
        fused = module if isinstance(module, FusedLayer) else FusedLayer(module, None)
        weights, activation, pool = weights_of(fused.layer), fused.activation, fused.pool
        limited = isinstance(activation, nn.ReLU6) and isinstance(weights.geometry, Convolution)
        relu = isinstance(activation, nn.ReLU) or limited
        if activation is None or relu:
            return cls(fused.layer, weights, relu, Finish(6.0 if limited else math.inf, pool is not None), ())
        return cls(fused.layer, weights, False, Finish(), (activation,) if pool is None else (activation, pool))


@dataclass(frozen=True)
class _Chooser:
    threads: int
    values: str
    memory: Memory | None  # None chooses by rule
    machine: tuple[str, ...]

    def packed(self, layer: _Layer, change: LayerChange, shape: tuple[int, ...]) -> tuple[PackedRow, nn.Module]:
        weights, relu = layer.weights, layer.relu
        conditions = Conditions(shape, self.threads, self.values, layer.finish)
        measured = None if self.memory is None else self._measured(weights, relu, conditions, self.memory)
        if measured is None:
            candidate = by_rule(weights, conditions)
        else:
            candidate = next(one for one in candidates(weights, conditions) if str(one) == measured.fastest)
        layout = candidate.make(weights, relu, self.values)
        row = PackedRow(
            layer=joined_name(change.joined or (change.name,)),
            change=change,
            sparsity=weights.topology.sparsity,
            layout=str(layout),
            bytes=layout.nbytes,
            seconds=None if measured is None else measured.seconds[str(candidate)],
            dense_seconds=None if measured is None else measured.seconds[Dense.name],
        )
        packed = PackedLayer(layout, weights.geometry, layer.module)
        return row, nn.Sequential(packed, *layer.others) if layer.others else packed

    def _measured(self, weights: Weights, relu: bool, conditions: Conditions, memory: Memory) -> Measured:
        key = key_of(weights, relu, conditions, self.machine)
        known = memory.recall(key)
        if known is None or set(known.seconds) != {str(one) for one in candidates(weights, conditions)}:
            known = measure(weights, relu, conditions)
            memory.keep(key, known)
        return known


def _refuse_other_dtypes(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise TypeError(
                f"pack takes networks of float32 on the CPU, and {name!r} is {parameter.dtype} on {parameter.device.type}: "
                "convert the network with .float().cpu() first"
            )


def _input_shapes(graph: nn.Module, layers: Mapping[str, _Layer], example: Example) -> Mapping[str, tuple[int, ...]]:
    """The shape in which each layer's kernel gets its input, samples first."""
    shapes: dict[str, tuple[int, ...]] = {}

    def noted(name: str, geometry: Any) -> Any:
        features = geometry.sample_ndim

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            lead, sample = args[0].shape[:-features], args[0].shape[-features:]
            shapes.setdefault(name, (prod(lead), *sample))

        return hook

    handles = [graph.get_submodule(name).register_forward_pre_hook(noted(name, layer.weights.geometry)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            graph(*inputs_of(example)) if isinstance(graph, fx.GraphModule) else call(graph, example)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _cells(row: PackedRow) -> tuple[str, ...]:
    change = row.change
    counts = {"neurons": change.neurons, "inputs": change.inputs, "connections": change.connections}
    removed = ", ".join(f"{before - after} {what}" for what, (before, after) in counts.items() if before > after)
    times = ("-" if seconds is None else f"{seconds * 1e6:.1f}" for seconds in (row.seconds, row.dense_seconds))
    ratio = "-" if row.times_as_fast is None else f"{row.times_as_fast:.1f}"
    return row.layer, f"{row.sparsity:.1%}", removed or "-", row.layout, f"{row.bytes:,}", *times, ratio
