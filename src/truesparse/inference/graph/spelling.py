"""Which calls are the same operation? Each gets one spelling, that of a module of torch.nn, so that later passes know only modules."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Function = str | Callable[..., Any]

# What is called -> (module that does the same, names of the arguments after the input).
_POOL = ("kernel_size", "stride", "padding")
_WITHOUT_WEIGHTS: Mapping[Function, tuple[type[nn.Module], tuple[str, ...]]] = {
    F.relu: (nn.ReLU, ("inplace",)),
    torch.relu: (nn.ReLU, ()),
    "relu": (nn.ReLU, ()),
    F.relu6: (nn.ReLU6, ("inplace",)),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    F.gelu: (nn.GELU, ("approximate",)),
    F.silu: (nn.SiLU, ("inplace",)),
    F.hardswish: (nn.Hardswish, ("inplace",)),
    F.sigmoid: (nn.Sigmoid, ()),
    torch.sigmoid: (nn.Sigmoid, ()),
    "sigmoid": (nn.Sigmoid, ()),
    F.tanh: (nn.Tanh, ()),
    torch.tanh: (nn.Tanh, ()),
    "tanh": (nn.Tanh, ()),
    F.dropout: (nn.Dropout, ("p", "training", "inplace")),
    F.max_pool2d: (nn.MaxPool2d, (*_POOL, "dilation", "ceil_mode", "return_indices")),
    F.avg_pool2d: (nn.AvgPool2d, (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")),
    F.adaptive_avg_pool2d: (nn.AdaptiveAvgPool2d, ("output_size",)),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, ("output_size", "return_indices")),
}


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Module:
    rows, columns = weight.shape
    return _holding(nn.Linear(columns, rows, bias is not None, device="meta"), weight=weight, bias=bias)


def _convolution(
    weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> nn.Module:
    rows, inputs, *kernel = weight.shape
    stride, padding, dilation = (tuple(given) if isinstance(given, list) else given for given in (stride, padding, dilation))
    settings: tuple[Any, ...] = tuple(kernel), stride, padding, dilation, groups, bias is not None
    return _holding(nn.Conv2d(inputs * groups, rows, *settings, device="meta"), weight=weight, bias=bias)


def _batch_norm(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> nn.Module | None:
    if training or running_mean is None or running_var is None or (weight is None) != (bias is None):
        return None
    norm = nn.BatchNorm2d(running_mean.numel(), eps, momentum, weight is not None, device="meta")
    norm.running_mean, norm.running_var, norm.num_batches_tracked = running_mean, running_var, torch.tensor(0, device="cpu")
    return _holding(norm, weight=weight, bias=bias)


def _layer_norm(normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> nn.Module | None:
    if weight is None and bias is not None:
        return None
    norm = nn.LayerNorm(list(normalized_shape), eps, weight is not None, bias is not None, device="meta")
    return _holding(norm, weight=weight, bias=bias)


def _embedding(weight: Tensor, padding_idx: int | None = None, max_norm: float | None = None, *_: Any) -> nn.Module | None:
    return None if max_norm is not None else nn.Embedding.from_pretrained(weight, freeze=not weight.requires_grad)


_WITH_WEIGHTS: Mapping[Function, Callable[..., nn.Module | None]] = {
    F.linear: _linear,
    F.conv2d: _convolution,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.embedding: _embedding,
}


def spell(module: fx.GraphModule) -> None:
    """One spelling for each operation that has several; and no questions for shapes that nobody reads the answer of."""
    for node in reversed(module.graph.nodes):
        asks = node.op == "call_function" and node.target in (getattr, operator.getitem)
        if not node.users and (asks or node.target == "size"):
            module.graph.erase_node(node)
    lifted: dict[Any, str] = {}  # modules made of functions and the weights that they were given, by what they are
    for node in module.graph.nodes:
        if node.op not in ("call_function", "call_method"):
            continue
        if node.target in _WITHOUT_WEIGHTS:
            _spell_without_weights(module, node)
        elif node.op == "call_function" and node.target in _WITH_WEIGHTS:
            _spell_with_weights(module, node, lifted)
    for node in reversed(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.recompile()


def _spell_without_weights(module: fx.GraphModule, node: fx.Node) -> None:
    kind, names = _WITHOUT_WEIGHTS[node.target]
    settings = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    source = node.args[0] if node.args else settings.pop("input", None)
    training = settings.pop("training", kind is nn.Dropout)
    if training or not isinstance(source, fx.Node) or any(isinstance(value, fx.Node) for value in settings.values()):
        return
    _becomes_call(module, node, source, _free_name(module, node.name), kind(**settings).eval())


def _spell_with_weights(module: fx.GraphModule, node: fx.Node, lifted: dict[Any, str]) -> None:
    make = _WITH_WEIGHTS[node.target]
    names = list(inspect.signature(make).parameters)
    settings = dict(zip(names, node.args[1:], strict=False)) | node.kwargs
    source = node.args[0] if node.args else settings.pop("input", None)
    arrays = {name: value for name, value in settings.items() if isinstance(value, fx.Node)}
    if not isinstance(source, fx.Node) or source in arrays.values() or any(one.op != "get_attr" for one in arrays.values()):
        return
    key = node.target, tuple((name, str(value.target if name in arrays else value)) for name, value in sorted(settings.items()))  # type: ignore[union-attr]
    if key in lifted:
        _becomes_call(module, node, source, lifted[key])
        return
    made = make(**{name: _attribute(module, str(value.target)) if name in arrays else value for name, value in settings.items()})  # type: ignore[union-attr]
    if made is None:
        return
    weight = settings.get("weight", next(iter(arrays.values()), node))
    lifted[key] = _name_of(module, str(getattr(weight, "target", node.name)), set(lifted.values()))
    _becomes_call(module, node, source, lifted[key], made.eval())


def _becomes_call(module: fx.GraphModule, node: fx.Node, source: fx.Node, name: str, called: nn.Module | None = None) -> None:
    if called is not None:
        module.set_submodule(name, called)
    with module.graph.inserting_before(node):
        node.replace_all_uses_with(module.graph.call_module(name, (source,)))
    module.graph.erase_node(node)


def _name_of(module: fx.GraphModule, weight: str, taken: set[str]) -> str:
    """That of the module which owns the weight, if it is nothing else; so a layer keeps its name."""
    owner, _, leaf = weight.rpartition(".")
    used = {str(node.target) for node in module.graph.nodes if node.op == "call_module"}
    if owner and leaf == "weight" and owner not in taken and not any(f"{name}.".startswith(f"{owner}.") for name in used):
        return owner
    return _free_name(module, f"{owner}.layer" if leaf == "weight" and owner else weight.replace("_weight", ""))


def _free_name(module: fx.GraphModule, name: str) -> str:
    while _attribute(module, name) is not None:
        name += "_"
    return name


def _attribute(module: nn.Module, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _holding(module: nn.Module, **arrays: Tensor | None) -> nn.Module:
    for name, array in arrays.items():
        if array is not None:
            setattr(module, name, array if isinstance(array, nn.Parameter) else nn.Parameter(array, requires_grad=False))
    return module
