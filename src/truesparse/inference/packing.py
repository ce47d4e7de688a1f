"""How does a trained network become a fast one? Simplified as a graph, each layer laid out as is fastest here, and told what was done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from ..common.hooks import user_hooks
from ..common.progress import Done, show_parts
from ..topology.geometry import Matrix
from . import captured
from .choice import Memory
from .eager import refusal, refuse_tracing
from .explanation import Explanation
from .graph.example import Example, Form, call, form_of, inputs_of
from .graph.layers import PACKED, geometry_of
from .graph.simplify import change, simplify
from .graph.trace import Untraceable, with_shapes
from .inplace import as_it_is, layers_in_place, own_layers
from .laying_out import Chooser, LayerInput, LayerToPack
from .native import layers_in_runs, with_runs
from .packed import Frozen
from .target import Target, target_of


class PackedNetwork(Frozen):
    """What `pack` returns: computes what the network computed in eval mode, and nothing else.

    Attributes:
        graph: the network, layer by layer; a `torch.fx.GraphModule` unless it could not be traced.
    """

    _captured: captured.CapturedCalls | None = None

    def __init__(
        self, graph: nn.Module, explanation: Explanation, target: Target, form: Form | None = None, runs: fx.GraphModule | None = None
    ) -> None:
        super().__init__()
        self._dtype, self._device = target.dtype, target.device
        self.graph, self._explanation, self._form = graph, explanation, form or Form()
        # The same graph with runs without Python; no submodule, since its layers are those of the graph. Nothing for what is no graph.
        self._runs = (runs or graph,) if isinstance(graph, fx.GraphModule) else ()
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
        form, runs = self._form, self._runs
        names = form.names
        if form.has_dicts and runs:
            inputs = form.row(inputs)
        refuse_tracing(inputs)
        if named:
            refuse_tracing(tuple(named.values()))
        if not runs:
            return self.graph(*inputs, **named)
        if names and (inputs or named.keys() != set(names)):
            given = [*(f"argument {number}" for number in range(len(inputs))), *named]
            raise TypeError(f"packed for the arguments {', '.join(names)} by name, got {', '.join(given)}; pack it with these")
        if self._captured is not None:
            row = tuple(named[name] for name in names) if names else () if named else inputs
            replay = self._captured.find(row)
            if replay is not None:
                return replay(row)
        return runs[0].forward(*inputs, **named)  # a GraphModule's call takes 4 us more, for better tracebacks

    def capture(self, example_inputs: Example) -> Self:
        """On a GPU: from now on, calls with inputs of these shapes and dtypes are launched as one CUDA graph. (No GPU has run this yet.)

            fast = ts.pack(model.cuda(), example).capture(example)

        Without one, every kernel is launched from Python, which takes longer than many of them run. Results are copied out of the
        graph's memory: no call sees those of another, from whatever thread or stream it comes; calls take turns. Inputs of other shapes,
        those that ask for gradients, calls under autocast and all while hooks are on modules go as they went before. What
        `torch.set_float32_matmul_precision` says when it is captured stays in a graph. Each example captured holds memory for all that
        is computed between. Copies and pickles of the network have no graphs: capture again.

        Args:
            example_inputs: as of `pack`, on the GPU. Nothing else may use the GPU meanwhile.

        Returns:
            The network itself.

        Raises:
            TypeError: if the network is not on a GPU, or other arguments are given than those it was packed for.
            RuntimeError: if it is no graph, has hooks on its modules, writes into its inputs, or a replay gives something else.
        """
        if self._device.type not in captured.DEVICES:
            raise TypeError(f"CUDA graphs are for networks on a GPU, and this one is on {self._device}: pack model.cuda()")
        if not self._runs:
            raise RuntimeError(f"a network whose Python decides what is computed is no CUDA graph: {self._explanation.untraced}")
        given, own = form_of(example_inputs), self._form
        if (given.keys, set(given.names)) != (own.keys, set(own.names)):
            raise TypeError(f"packed for {', '.join(own.labels)}, got an example of {', '.join(given.labels)}; capture with those")
        row = tuple(example_inputs[name] for name in own.names) if isinstance(example_inputs, Mapping) else inputs_of(example_inputs)
        calls = self._captured or captured.CapturedCalls(self._runs[0].forward, self.graph, self._device)
        calls.add(row)
        self._captured = calls
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_captured": None}

    def explain(self) -> Explanation:
        """What became of each layer; `print` it for a table."""
        return self._explanation

    def _repr_html_(self) -> str:
        return self._explanation._repr_html_()


def pack(
    model: nn.Module,
    example_inputs: Example,
    *,
    values: str | None = None,
    tune: bool = True,
    threads: int | None = None,
    memory: Memory | None = None,
    progress: bool = True,
) -> PackedNetwork:
    """The fastest form that this machine can run of a trained network, sparse or pruned, in eval mode.

    BatchNorm is folded, activations are fused, neurons and channels that can never matter are removed, linear layers that read the same
    input become one; then each layer gets the layout that is fastest for the batch of the example, dense where dense wins. A model that
    cannot be traced, because its operations depend on the values of its input, has its layers packed one by one and is otherwise left
    as it is. `explain()` says what was done.

    A network on a GPU is packed for it, in its own dtype: each layer dense by PyTorch, or in a form of the Triton kernels; each is compared
    with dense before it is chosen. `capture` then makes a CUDA graph of a call. No GPU has run this yet: it is tested without one.

    Hooks of this library (`Rewirer`, `ActivationPenalty`) are left out. Yours on forward passes go on to be called, which holds back
    the modules that they are on; `explain().hooked` names them. Backward hooks are left out: there is no backward pass.

    Args:
        model: left as it is. Of a wrapped one (`torch.compile`, DDP, `AveragedModel`) the network inside is packed.
        example_inputs: an input, a tuple of the positional inputs, or a dict of inputs by the names of the arguments, of the batch that
            is to be fast. Other batches work. For a model that takes one dict the tuple holds it: `({"ids": ids, "mask": mask},)`.
        values: how connections of a float32 network may be held: "float32", "bfloat16"; on the CPU also "int8", with a scale for each row,
            on a GPU also "float16". Where narrow values are not faster, a layer keeps float32. None: as the network holds them.
        tune: measure each layer's layouts here; what was measured is remembered in the user's cache folder. False chooses by rule, the
            same on every machine.
        threads: of the CPU, for which layouts are chosen; None: as many as torch has now.
        memory: where measurements are remembered; None is the usual place.
        progress: show on stderr how far it is, if it takes longer than two seconds.

    Returns:
        A module with nothing to train. Calls are safe from several threads.

    Raises:
        TypeError: if the model cannot be copied, is not of float32 on the CPU, or of float32, float16 or bfloat16 on one GPU, or if the
            example is of another type or on another device.
        ValueError: if `values` or `threads` is out of its range.
        MissingLibrary, NotImplementedError: on a GPU without Triton, or that is too old.
        RuntimeError: if a layout computes something else than dense, which is a fault of this library.
    """
    inputs, untraced = inputs_of(example_inputs), ""
    target = target_of(model, inputs, values, threads)
    try:
        simplified = simplify(model, example_inputs)
    except Untraceable as error:
        simplified, untraced = as_it_is(model), str(error)
    simplified = layers_in_place(simplified, example_inputs)
    graph = simplified.module.eval()
    layers = {change.name: LayerToPack.of(graph.get_submodule(change.name), target.family) for change in simplified.layers}
    given = _inputs_of_layers(graph, layers, example_inputs)
    rows = []
    with _choosing(target, tune, memory) as chooser, _shown(len(layers), progress) as done:
        for change in simplified.layers:
            row, packed = chooser.packed(layers[change.name], change, given[change.name])
            graph.set_submodule(change.name, packed)
            rows.append(row)
            done(row.layer, row.layout)
    runs = None
    if isinstance(graph, fx.GraphModule):
        graph.delete_all_unused_submodules()
        runs = None if target.on_gpu else with_runs(with_shapes(graph, example_inputs))
    batch = inputs[0].shape[0] if inputs and inputs[0].ndim else 1
    explanation = Explanation(
        batch, target.threads, tuple(rows), untraced, simplified.whole, user_hooks(graph), layers_in_runs(runs), target.gpu
    )
    return PackedNetwork(graph, explanation, target, form_of(example_inputs), runs)


def pack_layers(
    model: nn.Module,
    batch: int = 1,
    *,
    values: str | None = None,
    tune: bool = True,
    threads: int | None = None,
    memory: Memory | None = None,
    progress: bool = True,
) -> Explanation:
    """Lay out the linear layers of a trained model, in place, and leave everything else the Python it is: for models with methods of
    their own, such as a language model that is to `generate`, with its cache.

        print(ts.pack_layers(model))
        model.generate(...)

    Each layer is laid out as in `pack`; nothing is folded, removed, joined or fused. Layers that are alike, of one shape and density, are
    measured once. Not packed are convolutions, layers inside modules of torch.nn that read the weights of their parts, and layers with
    a hook of yours: the explanation names them.

    Args:
        model: sparse, pruned or dense, of a dtype and on a device that `pack` takes; in eval mode afterwards. It cannot be trained or saved
            any more: keep its file. Interrupted, some of its layers are packed, and it still computes the same.
        batch: rows of a layer's input in the calls that are to be fast: 1 where a token follows a token. Other sizes work.
        values, tune, threads, memory: as of `pack`.
        progress: show on stderr how far it is, if it takes longer than two seconds.

    Returns:
        What became of each layer; `print` it for a table.

    Raises:
        TypeError: as `pack`, or if the model is itself a layer.
        ValueError: if `batch`, `values` or `threads` is out of its range, or there is no linear layer.
    """
    target = target_of(model, (), values, threads)
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    found = dict(own_layers(model, ""))
    if "" in found:
        raise TypeError(f"the model is itself a layer, {type(model).__name__}, and nothing can take its place: use pack")
    names = {layer: name for name, layer in found.items() if isinstance(geometry_of(layer), Matrix)}
    if not names:
        raise ValueError("found no linear layer to pack; for convolutions use pack, which sees the model as a graph")
    places: dict[str, list[str]] = {name: [] for name in names.values()}  # of a layer that is shared there are several
    for name, module in model.named_modules(remove_duplicate=False):
        if module in names:
            places[names[module]].append(name)
    del found, names  # a dense layer shall be gone when its place is taken
    model.eval()
    rows = []
    with _choosing(target, tune, memory) as chooser, _shown(len(places), progress) as done:
        for name, everywhere in places.items():
            layer = model.get_submodule(name)
            to_pack = LayerToPack.of(layer, target.family)
            row, packed = chooser.packed(to_pack, change(name, [layer], layer), LayerInput((batch, to_pack.weights.topology.shape[1])))
            for place in everywhere:
                model.set_submodule(place, packed)
            rows.append(row)
            done(row.layer, row.layout)
            del layer, to_pack
    left = tuple(name for name, module in model.named_modules() if isinstance(module, PACKED))
    asked = "pack_layers was asked for it"
    return Explanation(batch, target.threads, tuple(rows), asked, left, user_hooks(model), gpu=target.gpu)


@contextmanager
def _choosing(target: Target, tune: bool, memory: Memory | None) -> Iterator[Chooser]:
    """What lays out layers, for as many threads, which torch has as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(target.threads)
    try:
        yield Chooser(target, (memory or Memory()) if tune else None)
    finally:
        torch.set_num_threads(before)


def _shown(layers: int, wanted: bool) -> AbstractContextManager[Done]:
    return show_parts("packing", layers, wanted=wanted, after=2.0, between=5.0)


def _inputs_of_layers(graph: nn.Module, layers: Mapping[str, LayerToPack], example: Example) -> Mapping[str, LayerInput]:
    """What each layer's kernel gets as its input, in its first call."""
    found: dict[str, LayerInput] = {}

    def noted(name: str, layer: LayerToPack) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if name not in found:
                found[name] = LayerInput.of(args[0], layer)

        return hook

    handles = [graph.get_submodule(name).register_forward_pre_hook(noted(name, layer)) for name, layer in layers.items()]
    try:
        with torch.inference_mode():
            graph(*inputs_of(example)) if isinstance(graph, fx.GraphModule) else call(graph, example)
    finally:
        for handle in handles:
            handle.remove()
    return found
