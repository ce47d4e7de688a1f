"""How does a dense model become sparse, and dense again?"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from ..common.observers import observers
from ..topology import Topology
from ..topology.budgets import Budget, kept
from ..topology.budgets import budget as named_budget
from ..topology.patterns import Pattern, Unstructured
from ..topology.patterns import pattern as named_pattern
from ..topology.select import shared_out
from .base import TopologyLayer
from .fast_paths import set_fast_paths
from .initial import initial_values, kept_values
from .kinds import Dense, kind_of
from .opened import Opened, named_once
from .selection import Excluded, Selection, select, shared_parameters

Model = TypeVar("Model", bound=nn.Module)
Initialisation = Literal["keep", "he"]

POINT = 0.01  # of sparsity, by which what comes out may differ from what was asked


def sparsify(
    model: Model,
    sparsity: float | None = 0.9,
    budget: str | Budget = "erk",
    pattern: str | Pattern | None = None,
    exclude: Iterable[Excluded] = (),
    from_weights: bool = False,
    *,
    include: Iterable[Excluded] = (),
    init: Initialisation = "keep",
    sparsities: Mapping[str, float] | None = None,
    masked: bool = False,
    generator: torch.Generator | None = None,
) -> Model:
    """Replace every linear layer and convolution of `model` by a sparse layer, in place.

    A layer to which the budget gives all its connections gets a full topology, and runs as dense PyTorch does; at sparsity 0 the
    model computes what it did.

    Args:
        model: any model. Build its optimizer after this call: the parameters are new ones.
        sparsity: share of the weights of these layers to leave out, in [0, 1). None, with `from_weights`: exactly the zeros that are
            there, so that a network pruned elsewhere computes what it did.
        budget: how the layers share what is kept: "erk", "er", "uniform", or an object with `counts`.
        pattern: the rule every topology obeys: "fan-in", "shared-fan-in:32", "nm:2:4", "block:4", "neurons", or a `Pattern`; None is
            `Unstructured()`.
        exclude: layers to leave alone, each given as a name ("classifier", "encoder.*"), a class or the module itself.
            Whatever is inside an excluded module is excluded too. A weight that a module of another kind holds itself is named
            as `named_parameters` does.
        from_weights: keep the weights of largest magnitude with their values, equal ones drawn at random. Zeros stay only when no
            other weight is left: a layer that has fewer others than its budget gives the rest to the layers that have more. (A
            layer of zeros only is not taken as pruned and keeps its budget.) False draws random topologies.
        include: embeddings to make sparse too, given in the same way: `include=[nn.Embedding]` is all of them. They stay dense otherwise,
            for they are looked up, not multiplied. One whose weight is that of an `nn.Linear` follows it without being named.
        init: values at random topologies. "keep": the model's own, times sqrt(columns / fan-in) of the row, so that the variance of
            its output stays. "he": new ones of variance 2 / fan-in of the row. Biases stay.
        sparsities: sparsity of single layers by name or name pattern; they leave the budget.
        masked: make the dense + mask twins instead (simulated sparsity, for comparison).
        generator: CPU generator of topologies and values; None is torch's global one.

    Returns:
        The same model (or, if it is itself a layer to replace, the layer that replaces it).

    Raises:
        ValueError: if there is nothing to replace, a name matches nothing, a pattern does not fit a layer, or arguments
            exclude one another.
        TypeError: if the model holds layers that cannot be made sparse and are not excluded; the message names them all. In every
            case the model is unchanged.

    Warns:
        UserWarning: if more than a tenth of the matrix weights stays dense because modules of other kinds hold them (embeddings and
            norms do not count), or if "uniform", which keeps the first layer dense, misses the sparsity by more than a point
            (`Uniform()` itself, an object, says that this is meant).
    """
    _check_arguments(sparsity, from_weights, init, sparsities)
    selection, rule = select(model, exclude, include), named_pattern(pattern or Unstructured())
    layers = selection.layers
    if not layers:
        left = f" (its matrices are in {selection.kinds_left}: replace those by nn.Linear)" if selection.left else ""
        raise ValueError(
            f"found no nn.Linear or convolution to make sparse: the model has none{left}, they are all excluded, or it is sparse already"
        )
    counts: Mapping[str, int] = {}
    if sparsity is not None:
        own = _own_counts(selection, sparsities or {}, rule)
        shared = _shared_counts({name: layer for name, layer in layers.items() if name not in own}, sparsity, budget, rule, from_weights)
        counts = own | shared
    replacements: dict[nn.Module, nn.Module] = {**selection.opened}
    for name, layer in layers.items():
        with _named(name):
            replacements[layer] = _with_shared_bias(
                _sparse(layer, counts.get(name), rule, from_weights, init, masked, generator), layer, selection.shared
            )
    selection.warn_of_what_is_left(model, stacklevel=2)
    return replaced(model, replacements)


def densify(model: Model) -> Model:
    """Replace every sparse or masked layer of `model` by the dense layer that computes exactly the same, in place.

    Returns:
        The same model (or, if it is itself such a layer, the dense layer).
    """
    return _made_dense(model, [module for module in model.modules() if isinstance(module, TopologyLayer)])


def densify_full(model: Model) -> Model:
    """The same for those layers only that have all of their connections, all of which act."""
    layers = [one for one in model.modules() if isinstance(one, TopologyLayer) and one.topology.nnz == one.topology.size]
    return _made_dense(model, [one for one in layers if one.acting is None])


def _made_dense(model: Model, layers: Iterable[TopologyLayer]) -> Model:
    shared = shared_parameters(model)
    model = replaced(model, {layer: _with_shared_bias(layer.dense_module(), layer, shared) for layer in layers})
    return replaced(model, {module: module.closed() for module in model.modules() if isinstance(module, Opened) and module.can_be_closed})


def topology_layers(model: nn.Module) -> dict[str, TopologyLayer]:
    """The sparse and masked layers of a model by name, in order, each once.

    One that is an output layer and the table of an embedding (tied weights) is there as the output layer.
    """
    return {name: module for name, module in named_once(model) if isinstance(module, TopologyLayer)}


def _check_arguments(sparsity: float | None, from_weights: bool, init: str, sparsities: Mapping[str, float] | None) -> None:
    if init not in get_args(Initialisation):
        raise ValueError(f"init is 'keep' (the model's own values) or 'he' (new ones), got {init!r}")
    if from_weights and init == "he":
        raise ValueError("from_weights=True keeps the model's weights and init='he' draws new ones: leave one of them out")
    if sparsity is None and not from_weights:
        raise ValueError("sparsity=None takes over the zeros of the model's weights: pass from_weights=True with it, or a sparsity")
    if sparsity is None and sparsities:
        raise ValueError("sparsity=None takes over the zeros of every layer, so sparsities cannot be given with it")


def _own_counts(selection: Selection, sparsities: Mapping[str, float], pattern: Pattern) -> dict[str, int]:
    """Connections of the layers that have a sparsity of their own; what is said of an opened module goes for all that are in it."""
    layers, within = selection.layers, selection.within
    own: dict[str, int] = {}
    for glob, value in sparsities.items():
        names = [name for name in layers if fnmatchcase(name, glob) or fnmatchcase(within.get(name, name), glob)]
        if not names:
            raise ValueError(f"sparsities names {glob!r}, which matches no layer; there are: {', '.join(layers)}")
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"the sparsity of {glob!r} lies in [0, 1], got {value}")
        own.update({name: kept(layers[name].weight.numel(), value) for name in names})
    return {name: _rounded(name, layers[name], pattern, count) for name, count in own.items()}


def _shared_counts(
    layers: Mapping[str, Dense], sparsity: float, budget: str | Budget, pattern: Pattern, from_weights: bool
) -> dict[str, int]:
    """Connections of the layers that share one budget."""
    shapes = {name: tuple(layer.weight.shape) for name, layer in layers.items() if layer.weight.numel()}
    given = named_budget(budget).counts(shapes, sparsity) if shapes else {}
    counts = {name: _rounded(name, layer, pattern, given.get(name, 0)) for name, layer in layers.items()}
    if pattern.fixes_count:
        return counts
    if budget == "uniform" and len(shapes) > 1:
        _warn_of_a_dense_first_layer(sparsity, shapes, counts)
    return _shared_by_weights(layers, counts, pattern) if from_weights else counts


def _rounded(name: str, layer: Dense, pattern: Pattern, count: int) -> int:
    with _named(name):
        return _fitted(pattern, layer).round(_matrix(layer), count)


def _warn_of_a_dense_first_layer(sparsity: float, shapes: Mapping[str, tuple[int, ...]], counts: Mapping[str, int]) -> None:
    """Say so if the layers together miss the sparsity that was asked for, and what to pass instead."""
    size, first = sum(map(prod, shapes.values())), next(iter(shapes))
    found = 1 - sum(counts.values()) / size
    if abs(found - sparsity) <= POINT:
        return
    share = sparsity * size / (size - prod(shapes[first]))
    instead = f", sparsity={share:.3f} gives {sparsity:.1%} in all" if share < 1 else ""
    warnings.warn(
        f"sparsity {sparsity:.1%} was asked for and these layers have {found:.1%}: "
        f"budget='uniform' keeps the first layer, {first!r}, dense; budget=ts.Uniform(dense_first=False) makes it sparse too, "
        f"budget=ts.Uniform() says that this is meant{instead}",
        stacklevel=4,
    )


def _shared_by_weights(layers: Mapping[str, Dense], counts: Mapping[str, int], pattern: Pattern) -> dict[str, int]:
    """`counts` moved between layers so that none keeps zeros while another drops what is not zero; their sum stays, but for rounding."""
    names = list(layers)
    shapes, total = [_matrix(layers[name]) for name in names], sum(counts.values())
    rules = [_fitted(pattern, layers[name]) for name in names]
    steps = [rule.step(shape) for rule, shape in zip(rules, shapes, strict=True)]
    full = [rule.round(shape, prod(shape)) for rule, shape in zip(rules, shapes, strict=True)]
    held = [_connections_of_weights(layers[name].weight.detach(), rule) for name, rule in zip(names, rules, strict=True)]
    useful = [some or most for some, most in zip(held, full, strict=True)]
    if abs(total - sum(useful)) <= 2 * len(names):  # budgets round each layer: asked for the zeros there are they may miss that by a few
        total = sum(useful)
    none = [0] * len(names)
    least, most = (none, useful) if total <= sum(useful) else (useful, full)
    return dict(zip(names, shared_out(total, [counts[name] for name in names], least, most, steps), strict=True))


def _connections_of_weights(weight: Tensor, pattern: Pattern) -> int:
    """How many connections the fullest group needs for its weights that are not zero, times the groups: with more, zeros are kept."""
    topology = Topology.from_mask(weight != 0)
    if not topology.nnz:
        return 0
    units, step = pattern.units(topology), pattern.step(topology.shape)
    groups = step // prod(pattern.unit(topology.shape))
    return step * int(torch.bincount(units.keys // (units.size // groups)).max())


def _fitted(pattern: Pattern, layer: Dense) -> Pattern:
    kind = kind_of(layer)
    assert kind is not None
    return pattern.fitted(kind.sparse.geometry_of(layer))


def _sparse(
    layer: Dense,
    count: int | None,
    pattern: Pattern,
    from_weights: bool,
    init: Initialisation,
    masked: bool,
    generator: torch.Generator | None,
) -> TopologyLayer:
    kind = kind_of(layer)
    assert kind is not None
    geometry = kind.sparse.geometry_of(layer)
    pattern = pattern.fitted(geometry)
    weight, values = layer.weight.detach(), None
    if count is None:
        topology = Topology.from_mask(weight != 0)
    elif from_weights:
        topology = pattern.strongest(pattern.ranks(weight.abs().flatten(1), generator), count)
    else:
        topology = pattern.random(_matrix(layer), count, generator)
        if init == "he":
            values = initial_values(topology, geometry, generator, weight.dtype)
        else:
            values = kept_values(weight, topology.to(weight.device), geometry)
    return (kind.masked if masked else kind.sparse).from_dense(layer, topology, pattern=pattern, values=values)


def sparse_in_place_of(layer: Any, topology: Topology, pattern: Pattern, values: Tensor) -> TopologyLayer:
    """The sparse layer for a dense one, with these connections and values [nnz], and the very bias, for those who share it.

    Raises:
        ValueError: if the topology does not obey the pattern.
    """
    kind = kind_of(layer)
    assert kind is not None
    new = kind.sparse.from_dense(layer, topology, pattern=pattern, values=values)
    if new.bias is not None:
        new.bias = layer.bias
    return new


@contextmanager
def standing_in(model: nn.Module, stand_ins: Mapping[nn.Module, nn.Module]) -> Iterator[nn.Module]:
    """The model with these modules in the places of others, also where one of them holds one of the others; afterwards it is as it was."""
    parts = [*model.modules(), *stand_ins.values()]
    holders = [(part, name, child) for part in parts for name, child in part._modules.items() if child in stand_ins]
    for holder, name, child in holders:
        holder._modules[name] = stand_ins[child]  # type: ignore[index]
    try:
        yield stand_ins.get(model, model)
    finally:
        for holder, name, child in holders:
            if holder not in stand_ins.values():
                holder._modules[name] = child


def _with_shared_bias(new: nn.Module, old: nn.Module, shared: set[Tensor]) -> nn.Module:
    """A replacement, with the very bias of what it replaces where others have that too."""
    if old.bias is not None and old.bias in shared:
        new.bias = old.bias
    return new


def _matrix(layer: Dense) -> tuple[int, int]:
    """(rows, columns) of the layer's weight."""
    return layer.weight.shape[0], prod(layer.weight.shape[1:])


@contextmanager
def _named(layer: str) -> Iterator[None]:
    """Errors within name the layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {layer!r}: {error}") from error


def replaced(model: Model, replacements: Mapping[nn.Module, nn.Module]) -> Model:
    """The model with other modules in the places of these, also where a replacement holds one of them."""
    model = replacements.get(model, model)  # type: ignore[assignment]
    for module in [*model.modules(), *(part for new in replacements.values() for part in new.modules())]:
        for child_name, child in list(module._modules.items()):
            if child is not None and child in replacements:
                module.register_module(child_name, replacements[child])
    set_fast_paths(model)
    for observer in observers:
        observer(model)
    return model
