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
from ...nn import ThresholdReLU, TopK, TopologyLayer
from ...nn.opened import Opened, OpenedEmbedding
from ...nn.wrapped import unwrapped
from .example import Example, Form, call, form_of, inputs_of
from .exported import exported, same
from .layers import LAYERS
from .spelling import spell

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
        example: its input, a tuple of its positional inputs, or its inputs by the names of its arguments. A dict in the tuple is an
            argument itself. Arguments that are left out keep their defaults for good.
        leaves: classes of modules not to look into.

    Raises:
        Untraceable: a TypeError; if the model's operations depend on the values of the input, its outputs are not repeatable, or a
            hook is on the model itself.
        TypeError: if the model cannot be copied, or the example is of another type, or names what the model does not take.
    """
    inputs, form = inputs_of(example), form_of(example)
    model, leaves = copied(model), tuple(leaves)
    hooked = user_hooks(model)
    if "" in hooked:
        raise Untraceable(f"a {hooked['']} is on the model ({type(model).__name__}) itself, which a graph would lose")
    with torch.no_grad():
        expected = called(model, example)
        try:
            module = _symbolic(model, form, leaves)
        except Untraceable as refusal:
            if hooked:
                raise Untraceable(f"{refusal}. torch.export would lose the hooks on {', '.join(hooked)}") from refusal
            module = _exported(model, inputs, form, leaves, refusal)
        else:
            if not leaves and not hooked and whole_with_layers(module):
                with suppress(TypeError):  # then they are kept whole, and whoever asks is told
                    module = exported(model, inputs, form)
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


def called(model: nn.Module, example: Example) -> Any:
    """What the model gives for an example.

    Raises:
        TypeError: if it does not take the names of one that is by name.
    """
    try:
        return call(model, example)
    except TypeError as error:
        if isinstance(example, Mapping) and not _takes(model, example):
            names = ", ".join(example)
            raise TypeError(
                f"{type(model).__name__} does not take the arguments {names} by name ({error}); if it takes one dict of them, pass the "
                "example as a tuple that holds the dict: (example,)"
            ) from error
        raise


def _takes(model: nn.Module, names: Iterable[str]) -> bool:
    try:
        inspect.signature(model.forward).bind(**dict.fromkeys(names))
    except TypeError:
        return False
    return True


def whole_with_layers(module: fx.GraphModule, kinds: tuple[type[nn.Module], ...] = LAYERS) -> dict[str, nn.Module]:
    """The modules that a graph calls as a whole though there are layers of these kinds inside, or they are one no pass knows."""
    called = {str(node.target): module.get_submodule(str(node.target)) for node in module.graph.nodes if node.op == "call_module"}
    return {name: one for name, one in called.items() if type(one) not in LAYERS and any(isinstance(part, kinds) for part in one.modules())}


def _symbolic(model: nn.Module, form: Form, leaves: tuple[type[nn.Module], ...]) -> fx.GraphModule:
    tracer = _Tracer(form, leaves)
    root = nn.Sequential(model) if tracer.is_leaf_module(model, "") and not form.names else model
    try:
        graph = tracer.trace(root)
    except Exception as error:  # of any kind: the model's own code runs
        raise Untraceable(tracer.refusal(error)) from error
    return replaced(fx.GraphModule(root, graph, type(model).__name__))


def _exported(
    model: nn.Module, inputs: tuple[Tensor, ...], form: Form, leaves: tuple[type[nn.Module], ...], refusal: Untraceable
) -> fx.GraphModule:
    if leaves:
        raise refusal
    try:
        return exported(model, inputs, form)
    except TypeError as error:
        raise refusal from error


def with_shapes(module: fx.GraphModule, example: Example) -> fx.GraphModule:
    """The same module, its nodes knowing the shapes that they have for `example`."""
    with torch.no_grad():
        ShapeProp(module).propagate(*inputs_of(example))
    return module


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
    def __init__(self, form: Form, leaves: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.form, self.leaves = form, (TopologyLayer, TopK, ThresholdReLU, *leaves)
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
        names = self.form.names
        if not names:
            known = [name for name, one in inspect.signature(root_fn).parameters.items() if one.kind == one.POSITIONAL_OR_KEYWORD][1:]
            outer = [*known, *(f"input_{number}" for number in range(len(self.form.keys)))]
            names = [name for own, one in zip(self.form.keys, outer, strict=False) for name in ([one] if own is None else own)]
        args, named = self.form.arguments([self.create_proxy("placeholder", name, (), {}) for name in names])
        return lambda root: root_fn(root, *args, **named), [self.root]

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
