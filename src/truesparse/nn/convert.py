"""How does a dense model become sparse, and dense again?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from math import prod
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from ..topology.budgets import Budget, kept
from ..topology.budgets import budget as named_budget
from ..topology.patterns import Pattern, Unstructured
from ..topology.patterns import pattern as named_pattern
from .base import TopologyLayer
from .conv import ConvolutionInterface, SparseConv2d
from .initial import initial_values
from .linear import LinearInterface, SparseLinear
from .masked import MaskedConv2d, MaskedLinear

Model = TypeVar("Model", bound=nn.Module)
Dense = nn.Linear | nn.Conv2d
Excluded = str | type[nn.Module] | nn.Module

# They read the weights of the linear layers inside them directly, so those cannot be replaced one by one.
CLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# They hold a matrix of weights for which there is no sparse layer.
WITHOUT_SPARSE_LAYER = (_ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)


def sparsify(
    model: Model,
    sparsity: float = 0.9,
    budget: str | Budget = "erk",
    pattern: str | Pattern | None = None,
    exclude: Iterable[Excluded] = (),
    from_weights: bool = False,
    *,
    sparsities: Mapping[str, float] | None = None,
    masked: bool = False,
    generator: torch.Generator | None = None,
) -> Model:
    """Replace every `nn.Linear` and `nn.Conv2d` of `model` by a sparse layer, in place.

    A layer to which the budget gives all its connections gets a full topology, and runs as dense PyTorch does.

    Args:
        model: any model. Build its optimizer after this call: the parameters are new ones.
        sparsity: share of the weights of these layers to leave out, in [0, 1).
        budget: how the layers share what is kept: "erk", "er", "uniform", or an object with `counts`.
        pattern: the rule every topology obeys: "fan-in", "nm:2:4", "block:4", "neurons", or a `Pattern`; None is `Unstructured()`.
        exclude: layers to leave alone, each given as a name ("classifier", "encoder.*"), a class or the module itself.
            Whatever is inside an excluded module is excluded too.
        from_weights: keep the weights of largest magnitude with their values. False draws random topologies and new
            values, of variance 2 / fan-in of each row; biases stay.
        sparsities: sparsity of single layers by name or name pattern; they leave the budget.
        masked: make the dense + mask twins instead (simulated sparsity, for comparison).
        generator: CPU generator of topologies and values; None is torch's global one.

    Returns:
        The same model (or, if it is itself a layer to replace, the layer that replaces it).

    Raises:
        ValueError: if there is nothing to replace, a name matches nothing, or a pattern does not fit a layer.
        TypeError: if the model holds a layer that cannot be made sparse and is not excluded. In every case the model is
            unchanged.
    """
    layers = _convertible(model, list(exclude))
    if not layers:
        raise ValueError(
            "found no nn.Linear or nn.Conv2d to make sparse: the model has none, they are all excluded, or it is sparse already"
        )
    counts = _counts(layers, sparsity, named_budget(budget), dict(sparsities or {}))
    rule = named_pattern(pattern or Unstructured())
    replacements: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        try:
            replacements[name] = _sparse(layer, counts[name], rule, from_weights, masked, generator)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    return _replaced(model, replacements)


def densify(model: Model) -> Model:
    """Replace every sparse or masked layer of `model` by the dense layer that computes exactly the same, in place.

    Returns:
        The same model (or, if it is itself such a layer, the dense layer).
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (LinearInterface, ConvolutionInterface))}
    return _replaced(model, {name: layer.dense_module() for name, layer in layers.items()})


def topology_layers(model: nn.Module) -> dict[str, TopologyLayer]:
    """The sparse and masked layers of a model by name, in order, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, TopologyLayer)}


def _convertible(model: nn.Module, exclude: list[Excluded]) -> dict[str, Dense]:
    layers: dict[str, Dense] = {}
    unmatched = {entry for entry in exclude if isinstance(entry, str)}
    for name, module in _walk(model, exclude, unmatched):
        if isinstance(module, LazyModuleMixin):
            raise TypeError(f"layer {name!r} ({type(module).__name__}) has no shape yet: run the model once on an example before sparsify")
        if isinstance(module, CLOSED) or (isinstance(module, WITHOUT_SPARSE_LAYER) and not isinstance(module, nn.Conv2d)):
            raise TypeError(
                _refusal(name, module, "reads its weights itself" if isinstance(module, CLOSED) else "has no sparse counterpart")
            )
        if not isinstance(module, Dense):
            continue
        if type(module) not in (nn.Linear, nn.Conv2d):
            raise TypeError(
                _refusal(name, module, f"is a subclass of {type(module).__mro__[1].__name__} whose own behaviour would be lost")
            )
        if is_parametrized(module) or not isinstance(getattr(module, "weight", None), nn.Parameter):
            raise TypeError(_refusal(name, module, "has a parametrized or pruned weight (make it permanent first)"))
        if any(getattr(module, hooks) for hooks in HOOKS):
            raise TypeError(_refusal(name, module, "has hooks that would be lost (register them after sparsify)"))
        if module.weight.is_meta:
            raise TypeError(_refusal(name, module, "is on the meta device and has no values yet"))
        layers[name] = module
    if unmatched:
        known = ", ".join(name for name, _ in model.named_modules() if name)
        raise ValueError(f"exclude names {', '.join(map(repr, sorted(unmatched)))}, which match no module; there are: {known}")
    _refuse_shared(model, layers)
    return layers


def _walk(model: nn.Module, exclude: list[Excluded], unmatched: set[str]) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are not excluded and not inside an excluded one, each once, noting which names have matched."""
    excluded: set[nn.Module] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        hits = [entry for entry in exclude if _matches(entry, name, module)]
        unmatched.difference_update(entry for entry in hits if isinstance(entry, str))
        if hits:
            excluded.update(module.modules())
    for name, module in model.named_modules():
        if module not in excluded:
            yield name, module


def _matches(entry: Excluded, name: str, module: nn.Module) -> bool:
    if isinstance(entry, str):
        return fnmatchcase(name, entry)
    return isinstance(module, entry) if isinstance(entry, type) else module is entry


def _refusal(name: str, module: nn.Module, reason: str) -> str:
    return f"layer {name!r} ({type(module).__name__}) cannot be made sparse: it {reason}; pass exclude=({name!r},) to leave it dense"


def _refuse_shared(model: nn.Module, layers: dict[str, Dense]) -> None:
    owners: dict[torch.Tensor, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    for name, layer in layers.items():
        if any(len(owners[parameter]) > 1 for parameter in layer.parameters(recurse=False)):
            raise TypeError(_refusal(name, layer, "shares its weight or bias with another module (tied weights)"))


def _counts(layers: dict[str, Dense], sparsity: float, budget: Budget, sparsities: dict[str, float]) -> dict[str, int]:
    own: dict[str, int] = {}
    for pattern, value in sparsities.items():
        names = [name for name in layers if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"sparsities names {pattern!r}, which matches no layer; there are: {', '.join(layers)}")
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"the sparsity of {pattern!r} lies in [0, 1], got {value}")
        own.update({name: kept(layers[name].weight.numel(), value) for name in names})
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items() if name not in own and prod(layer.weight.shape)}
    return dict.fromkeys(layers, 0) | (budget.counts(shapes, sparsity) if shapes else {}) | own


def _sparse(
    layer: Dense, count: int, pattern: Pattern, from_weights: bool, masked: bool, generator: torch.Generator | None
) -> LinearInterface | ConvolutionInterface:
    kind: type[LinearInterface] | type[ConvolutionInterface]
    if isinstance(layer, nn.Linear):
        kind, geometry = (MaskedLinear if masked else SparseLinear), LinearInterface.geometry_of(layer)
    else:
        kind, geometry = (MaskedConv2d if masked else SparseConv2d), ConvolutionInterface.geometry_of(layer)
    pattern = pattern.fitted(geometry)
    count = pattern.round(geometry.shape, count)
    if from_weights:
        topology = pattern.strongest(layer.weight.detach().abs().flatten(1), count)
        return kind.from_dense(layer, topology, pattern=pattern)  # type: ignore[arg-type]
    topology = pattern.random(geometry.shape, count, generator)
    values = initial_values(topology, generator, layer.weight.dtype)
    return kind.from_dense(layer, topology, pattern=pattern, values=values)  # type: ignore[arg-type]


def _replaced(model: Model, replacements: Mapping[str, nn.Module]) -> Model:
    same = {id(model.get_submodule(name)): new for name, new in replacements.items()}
    if id(model) in same:
        return same[id(model)]  # type: ignore[return-value]
    for module in list(model.modules()):
        for child_name, child in list(module._modules.items()):
            if id(child) in same:
                module._modules[child_name] = same[id(child)]
    return model
