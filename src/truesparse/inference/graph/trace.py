"""What does a model compute? One symbolic run gives the graph of its calls, one real run their shapes."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

from ...common.hooks import user_hooks, users_on, without_training_hooks
from ...nn import TopologyLayer
from ...nn.opened import Opened, OpenedEmbedding
from ...nn.wrapped import unwrapped
from .exported import exported, same
from .layers import LAYERS
from .spelling import spell

Example = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]
Leaves = Iterable[type[nn.Module]]


class Untraceable(TypeError):
    """What a model computes cannot be written down as a graph."""


def trace(model: nn.Module, example: Example, leaves: Leaves = ()) -> fx.GraphModule:
    """The graph of what `model` computes in eval mode, on modules of its own.

    Modules of torch.nn and of truesparse are single calls, and so are those on which users have hooks; all others are looked into. Where
    a symbolic run cannot follow their Python, or modules of torch.nn have layers inside, torch.export does, which would lose hooks: not
    of a model that has any. Each node knows its shape.

    Args:
        model: any model, which is left as it is.
        example: its input, a tuple of its positional inputs, or its inputs by the names of its arguments. Arguments that are left out
            keep their defaults for good.
        leaves: classes of modules not to look into.

    Raises:
        Untraceable: a TypeError; if the model's operations depend on the values of the input, its outputs are not repeatable, or a
            hook is on the model itself.
        TypeError: if the model cannot be copied, or the example is of another type.
    """
    inputs, names = inputs_of(example), names_of(example)
    model, leaves = copied(model), tuple(leaves)
    hooked = user_hooks(model)
    if "" in hooked:
        raise Untraceable(f"a {hooked['']} is on the model ({type(model).__name__}) itself, which a graph would lose")
    with torch.no_grad():
        expected = call(model, example)
        try:
            module = _symbolic(model, inputs, names, leaves)
        except Untraceable as refusal:
            if hooked:
                raise Untraceable(f"{refusal}. torch.export would lose the hooks on {', '.join(hooked)}") from refusal
            module = _exported(model, inputs, names, leaves, refusal)
        else:
            if not leaves and not hooked and whole_with_layers(module):
                with suppress(TypeError):  # then they are kept whole, and whoever asks is told
                    module = exported(model, inputs, names)
        spell(module)
        if not same(expected, module(*inputs)):
            raise Untraceable(
                f"the graph traced from {type(model).__name__} gives another output than the model: it draws random numbers, changes "
                "itself when called, writes with += into what it also reads under another name, or decides in Python what a trace "
                "cannot see; make its forward a function of its inputs alone"
            )
    return with_shapes(module, example)


def copied(model: nn.Module) -> nn.Module:
    """A copy in eval mode, of what is inside of a wrapper, without hooks that are there for training.

    In the copy the table of an embedding is its own, also where the output layer is that: packed, each has another layout.

    Raises:
        TypeError: if it cannot be copied.
    """
    try:
        copied = without_training_hooks(copy.deepcopy(unwrapped(model))).eval()
    except RuntimeError as error:
        remedy = "if it is pruned by torch.nn.utils.prune, make that permanent with prune.remove"
        raise TypeError(f"cannot copy {type(model).__name__}: {error}; {remedy}") from error
    for module in copied.modules():
        if isinstance(module, OpenedEmbedding):
            module.table = copy.deepcopy(module.table)
    return copied


def call(model: nn.Module, example: Example) -> Any:
    """What the model gives for an example."""
    return model(**example) if isinstance(example, Mapping) else model(*inputs_of(example))


def whole_with_layers(module: fx.GraphModule, kinds: tuple[type[nn.Module], ...] = LAYERS) -> dict[str, nn.Module]:
    """The modules that a graph calls as a whole though there are layers of these kinds inside, or they are one no pass knows."""
    called = {str(node.target): module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module"}
    return {name: one for name, one in called.items() if type(one) not in LAYERS and any(isinstance(part, kinds) for part in one.modules())}


def _symbolic(model: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], leaves: tuple[type[nn.Module], ...]) -> fx.GraphModule:
    tracer = _Tracer(len(inputs), names, leaves)
    root = nn.Sequential(model) if tracer.is_leaf_module(model, "") and not names else model
    try:
        graph = tracer.trace(root)
    except Exception as error:  # of any kind: the model's own code runs
        raise Untraceable(tracer.refusal(error)) from error
    return replaced(fx.GraphModule(root, graph, type(model).__name__))


def _exported(
    model: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], leaves: tuple[type[nn.Module], ...], refusal: Untraceable
) -> fx.GraphModule:
    if leaves:
        raise refusal
    try:
        return exported(model, inputs, names)
    except TypeError as error:
        raise refusal from error


def with_shapes(module: fx.GraphModule, example: Example) -> fx.GraphModule:
    """The same module, its nodes knowing the shapes that they have for `example`."""
    with torch.no_grad():
        ShapeProp(module).propagate(*inputs_of(example))
    return module


def inputs_of(example: Example) -> tuple[Tensor, ...]:
    """An example as a tuple of tensors.

    Raises:
        TypeError: if it is anything else than a tensor, a tuple of tensors, or tensors by name.
    """
    inputs = tuple(example.values()) if isinstance(example, Mapping) else example if isinstance(example, tuple) else (example,)
    if not all(isinstance(one, Tensor) for one in inputs):
        kinds = ", ".join(type(one).__name__ for one in inputs)
        raise TypeError(f"an example is a tensor or a tuple of tensors, got {kinds}; arguments by name are a dict of tensors")
    return inputs


def names_of(example: Example) -> tuple[str, ...]:
    """The arguments that an example is for; none if it is positional."""
    return tuple(example) if isinstance(example, Mapping) else ()


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Shape of what a node gives for the example; None if that is not one tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if isinstance(meta, TensorMetadata) else None


def module_of(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if it calls one, on one positional input, and nothing is hooked to it."""
    if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], fx.Node):
        return None
    called = module.get_submodule(str(node.target))
    return None if called._forward_hooks or called._forward_pre_hooks else called


def replaced(module: fx.GraphModule, modules: Mapping[str, nn.Module] | None = None) -> fx.GraphModule:
    """A copy of the graph on the same modules, except for those given by name."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))  # type: ignore[arg-type]
    new = fx.GraphModule(module, graph, type(module).__name__)
    for name, submodule in (modules or {}).items():
        new.set_submodule(name, submodule)
    return new


class _Tracer(fx.Tracer):
    def __init__(self, inputs: int, names: tuple[str, ...], leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.inputs, self.names, self.leaves = inputs, names, (TopologyLayer, *leaves)
        self.entered: list[nn.Module] = []  # not left again when an error comes: it tells where

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, self.leaves) or (isinstance(m, Opened) and m.whole)
        return whole or bool(users_on(m)) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.entered.append(m)
        result = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        return result

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        # As many inputs as the example has: as placeholders, arguments left to their defaults would no longer be None.
        if self.names:
            named = {name: self.create_proxy("placeholder", name, (), {}) for name in self.names}
            return lambda root: root_fn(root, **named), [self.root]
        known = [name for name, one in inspect.signature(root_fn).parameters.items() if one.kind == one.POSITIONAL_OR_KEYWORD][1:]
        names = [*known, *(f"input_{number}" for number in range(self.inputs))][: self.inputs]
        return root_fn, [self.root, *(self.create_proxy("placeholder", name, (), {}) for name in names)]

    def refusal(self, error: Exception) -> str:
        where, remedy = f"the model ({type(self.root).__name__})", ""
        if self.entered:
            kind = type(self.entered[-1]).__name__
            name = next((name for name, module in self.root.named_modules() if module is self.entered[-1]), "")
            where = f"module {name!r} ({kind})"
            remedy = f", or pass leaves=({kind},) to keep such modules whole (nothing inside them is then made faster)"
        return (
            f"cannot trace {where}: {error}. Its forward must do the same operations for every input: write what depends on values "
            f"with torch.where instead of if{remedy}"
        )
