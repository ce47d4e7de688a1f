"""What does a model compute whose Python a symbolic run cannot follow? torch.export's graph of it, in calls of torch's Python."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._ops import OpOverload
from torch.utils._pytree import TreeSpec, tree_leaves, tree_unflatten, treespec_dumps, treespec_loads

from ...common.quiet import quiet
from ...nn import TopologyLayer
from ...nn.conv import ConvolutionInterface, padding_of
from ...nn.opened import OpenedEmbedding
from .example import Form

Inputs = tuple[Tensor, ...]

# Operators whose function takes the arguments in another order, or not all of them: (function, what it calls those it takes).
_REARRANGED: Mapping[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "embedding": (F.embedding, ("weight", "input")),
    "layer_norm": (F.layer_norm, ("input", "normalized_shape", "weight", "bias", "eps")),
    "batch_norm": (F.batch_norm, ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")),
}


def exported(model: nn.Module, inputs: Inputs, form: Form) -> fx.GraphModule:
    """The graph of what `model` computes; its sparse layers are single calls.

    Sizes stay open where the model leaves them so. What it decided by sizes, and of which kind its inputs were, is checked at each call.

    Args:
        model: in eval mode; left as it is.
        inputs: the tensors of an example.
        form: which arguments they are.

    Raises:
        TypeError: if torch.export cannot follow it either, or what it gives is something else.
    """
    # A size of one is taken for good, so the batch is tried with two.
    plural = tuple(torch.cat([one, one]) if one.ndim and one.shape[0] == 1 else one for one in inputs)
    single = tuple(one[:1] if one.ndim else one for one in inputs)
    failure = "what torch.export gives is not what the model gives"
    for example in (plural, inputs):
        try:
            with quiet():
                module, decisions = _graph_of(model, example, form)
        except Exception as error:  # of any kind: the model's own code runs
            failure = f"torch.export: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            continue
        tested = [one for one in (plural, single, inputs) if _agree(model, module, one, form)]
        if any(one is inputs for one in tested):
            module.add_module("guards", Guards(tested, decisions, form.labels))
            placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
            with module.graph.inserting_after(placeholders[-1]):
                module.graph.call_module("guards", tuple(placeholders))
            module.recompile()
            return module
    raise TypeError(failure)


class Guards(nn.Module):
    """Refuses inputs for which the model might have done other operations than for the examples.

    Args:
        examples: that are known to be right.
        decisions: asserts what the model decided by sizes.
        names: of the inputs.
    """

    def __init__(self, examples: Sequence[Inputs], decisions: fx.GraphModule, names: Sequence[str]) -> None:
        super().__init__()
        self.decisions, self.names = decisions, tuple(names)
        self.kinds = tuple(one.dtype for one in examples[0])
        # Where nobody has seen a size of one, it could be taken for one that is to be repeated.
        self.least = tuple(
            tuple(min(2, *sizes) for sizes in zip(*(one.shape for one in own), strict=True)) for own in zip(*examples, strict=True)
        )

    def forward(self, *inputs: Tensor) -> None:
        """
        Raises:
            ValueError: for such inputs.
        """
        for name, one, dtype, least in zip(self.names, inputs, self.kinds, self.least, strict=True):
            if one.dtype != dtype or one.ndim != len(least) or any(map(operator.lt, one.shape, least)):
                self._refuse(
                    f"{name} of {dtype} with {len(least)} dimensions of at least {least}, got {one.dtype} of shape {tuple(one.shape)}"
                )
        try:
            self.decisions(*inputs)
        except AssertionError as error:
            self._refuse(str(error).removeprefix("Guard failed: "))

    def _refuse(self, expected: str) -> None:
        raise ValueError(
            f"the graph of this network holds for inputs like its example only: expected {expected}; pack it with such an example"
        )


class Structure(nn.Module):
    """Puts the outputs of a graph together as the model did.

    Args:
        spec: how.
    """

    def __init__(self, spec: TreeSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, leaves: Sequence[Any]) -> Any:
        return tree_unflatten(leaves, self.spec)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "spec": treespec_dumps(self.spec)}  # pickle would write torch's own classes, which change

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "spec": treespec_loads(state["spec"])})


def same(expected: Any, given: Any) -> bool:
    """Whether two outputs of the same operations are the same."""
    one, other = tree_leaves(expected), tree_leaves(given)
    return len(one) == len(other) and all(_close(*pair) for pair in zip(one, other, strict=True) if isinstance(pair[0], Tensor))


def _close(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # Only what is not repeatable to the last bit on some devices may differ.
    return torch.allclose(one, other, rtol=1e-3, atol=1e-5, equal_nan=True) if one.is_floating_point() else torch.equal(one, other)


def _agree(model: nn.Module, module: fx.GraphModule, inputs: Inputs, form: Form) -> bool:
    args, kwargs = form.arguments(inputs)
    try:
        return same(model(*args, **kwargs), module(*inputs))
    except Exception:  # neither need be able to take it
        return False


def _graph_of(model: nn.Module, example: Inputs, form: Form) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The graph, and one that asserts what was decided by sizes."""
    args, kwargs = form.arguments(example)
    sizes, sizes_by_name = form.arguments([dict.fromkeys(range(one.ndim), torch.export.Dim.AUTO) for one in example])
    with _sparse_layers_stood_in(model) as sparse:
        root = torch.export.export(model, args, kwargs, dynamic_shapes=sizes_by_name or sizes, strict=False).module()
    assert isinstance(root, fx.GraphModule)
    decisions = fx.Graph()
    root._guards_fn.forward(*(fx.Proxy(decisions.placeholder(f"input_{number}")) for number in range(len(example))))  # type: ignore[operator, union-attr]
    decisions.output(None)
    graph = fx.Graph()
    leaves = graph.graph_copy(root.graph, {})
    graph.output(graph.call_module("structure", (leaves,)))
    root.add_module("structure", Structure(root._out_spec))  # type: ignore[arg-type]
    for node in list(graph.nodes):
        asserts = node.op == "call_function" and "assert" in str(node.target)
        if asserts or node.target == "_guards_fn":
            graph.erase_node(node)
    for name, layer in sparse.items():
        root.set_submodule(name, layer)
    _call_layers(graph, sparse)
    for node in reversed(graph.nodes):
        if not node.users and node.op in ("call_function", "get_attr") and not _writes(node.target):
            graph.erase_node(node)
    module = fx.GraphModule(root, graph, type(model).__name__)
    _InPython(module).run(*example)
    module.recompile()
    return module, fx.GraphModule(nn.Module(), decisions)


@contextmanager
def _sparse_layers_stood_in(model: nn.Module) -> Iterator[Mapping[str, nn.Module]]:
    """Dense layers without memory stand where the sparse ones are, which torch.export cannot follow into their kernels."""
    modules = list(model.named_modules(remove_duplicate=False))
    tables = {name: one for name, one in modules if type(one) is OpenedEmbedding and isinstance(one.table, TopologyLayer)}
    inside = {f"{name}.table" for name in tables}
    sparse: dict[str, nn.Module] = {name: one for name, one in modules if isinstance(one, TopologyLayer) and name not in inside}
    sparse.update(tables)
    stand_ins = {layer: _RowsStandIn(layer) if isinstance(layer, OpenedEmbedding) else _StandIn(layer) for layer in sparse.values()}
    try:
        for name, layer in sparse.items():
            model.set_submodule(name, stand_ins[layer])
        yield sparse
    finally:
        for name, layer in sparse.items():
            model.set_submodule(name, layer)


class _StandIn(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        if isinstance(layer, ConvolutionInterface) and any(padding_of(layer)[1]):
            raise TypeError(f"a sparse convolution that pads with {layer.padding_mode}, {layer.padding}, cannot be exported")
        self.geometry = layer.geometry
        self.weight = nn.Parameter(_zero_like(layer.parameter).expand(layer.geometry.weight_shape))

    def forward(self, input: Tensor) -> Tensor:
        return self.geometry.dense(input, self.weight, None)


class _RowsStandIn(nn.Module):
    def __init__(self, embedding: OpenedEmbedding) -> None:
        super().__init__()
        self.weight = nn.Parameter(_zero_like(embedding.weight).expand(embedding.num_embeddings, embedding.embedding_dim))

    def forward(self, input: Tensor) -> Tensor:
        return F.embedding(input, self.weight)


def _zero_like(weight: Tensor) -> Tensor:
    return torch.zeros((), dtype=weight.dtype, device=weight.device)


def _call_layers(graph: fx.Graph, layers: Mapping[str, nn.Module]) -> None:
    for node in list(graph.nodes):
        reads = [str(source.target).removesuffix(".weight") for source in node.all_input_nodes if source.op == "get_attr"]
        if node.op == "call_function" and len(reads) == 1 and reads[0] in layers:
            given = next(one for one in node.args if isinstance(one, fx.Node) and one.op != "get_attr")
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_module(reads[0], (given,)))
            graph.erase_node(node)


def _writes(target: Any) -> bool:
    return isinstance(target, OpOverload) and target._schema.is_mutable


class _InPython(fx.Interpreter):
    """Operators become methods and functions of torch, which are called in half the time. Each is held to what the operator gives."""

    def run_node(self, n: fx.Node) -> Any:
        expected = super().run_node(n)
        if n.op != "call_function" or not isinstance(n.target, OpOverload) or _writes(n.target):
            return expected
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        name = n.target.overloadpacket.__name__
        if name == "slice" and all(isinstance(one, int) for one in n.args[1:]):  # unpickling a graph takes no nodes in slices
            dimension, bounds = (n.args[1] if len(n.args) > 1 else 0), n.args[2:]
            index: Any = (slice(None),) * int(dimension) + (slice(*bounds, *(0, None)[len(bounds) :]),)  # type: ignore[arg-type]
            if _gives(expected, lambda: args[0][index]):
                n.target, n.args = operator.getitem, (n.args[0], index)  # type: ignore[misc]
            return expected
        if name == "to" and n.kwargs.get("layout") is torch.strided:  # which the method does not take
            kwargs = {key: one for key, one in kwargs.items() if key != "layout"}
            n.kwargs = {key: one for key, one in n.kwargs.items() if key != "layout"}
        function, names = _REARRANGED.get(name, (getattr(F, name, getattr(torch, name, None)), None))
        if names is not None:
            if _gives(expected, lambda: function(**dict(zip(names, args, strict=False)))):  # type: ignore[misc]
                n.target, n.args, n.kwargs = function, (), dict(zip(names, n.args, strict=False))  # type: ignore[assignment]
            return expected
        method = "size" if name == "sym_size" else name
        if args and isinstance(args[0], Tensor) and _gives(expected, lambda: getattr(args[0], method)(*args[1:], **kwargs)):
            n.op, n.target = "call_method", method
        elif function is not None and _gives(expected, lambda: function(*args, **kwargs)):
            n.target = function
        return expected


def _gives(expected: Any, call: Callable[[], Any]) -> bool:
    try:
        given = call()
    except (TypeError, AttributeError, RuntimeError, ValueError):
        return False
    if isinstance(expected, Tensor):
        return isinstance(given, Tensor) and given.stride() == expected.stride() and same(expected, given)
    if isinstance(expected, list) and isinstance(given, tuple):  # the parts of a tensor
        return len(expected) == len(given) and all(
            _gives(one, lambda other=other: other) for one, other in zip(expected, given, strict=True)
        )
    return type(given) is type(expected) and same(expected, given) and (isinstance(given, (tuple, list)) or given == expected)
