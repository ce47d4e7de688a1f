"""Which layers of a model can be made sparse, and what stays dense? Refusals come all at once, and what nobody named is told."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin

from ..common.shown import listed
from .base import TopologyLayer
from .kinds import DENSE, Dense
from .opened import Opened, by_use, closed_base, named_opened, opened_kind, opened_one, tied_tables
from .opened.base import HOOKS
from .reparametrized import made_anew

Excluded = str | type[nn.Module] | nn.Module
Names = list[tuple[str, nn.Module]]  # a module is there under each of its names

# They hold a matrix of weights for which there is no sparse layer.
WITHOUT_SPARSE_LAYER = (_ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
# Their weights of two or more dimensions are looked up or multiplied one by one: no matrix product could be spared.
NO_PRODUCT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)

UNNOTICED_SHARE = 0.1  # of the matrix weights of a model, above which what stays dense is told


@dataclass(frozen=True)
class Selection:
    """What `sparsify` finds in a model.

    Attributes:
        layers: to be made sparse, by name, in order, each once.
        sparse: those that are sparse or masked already, likewise.
        left: weights of two or more dimensions that stay dense and that nobody excluded: (name to exclude, module, weight).
        opened: modules of the model, each with what takes its place because some of these layers are in it.
        within: {name of a layer: name of the opened module that it is in}, of the layers that are in one.
        shared: parameters that are in more than one place: biases that stay so.
    """

    layers: dict[str, Dense]
    sparse: dict[str, TopologyLayer]
    left: list[tuple[str, nn.Module, nn.Parameter]]
    opened: Mapping[nn.Module, Opened]
    within: Mapping[str, str]
    shared: set[torch.Tensor]

    def warn_of_what_is_left(self, model: nn.Module, stacklevel: int) -> None:
        """Say so if a good share of the matrix weights stays dense and nobody said that this is meant."""
        dense, found = sum(weight.numel() for *_, weight in self.left), sum(layer.weight.numel() for layer in self.layers.values())
        if dense > UNNOTICED_SHARE * (dense + found):
            names = [name for name, *_ in self.left]
            warnings.warn(
                f"{dense:,} of {dense + found:,} matrix weights ({dense / (dense + found):.0%}) stay dense: they are in {self.kinds_left}, "
                f"and sparsify replaces nn.Linear and convolutions; replace those modules by nn.Linear, "
                f"or pass exclude={_exclude(names, list(model.named_modules(remove_duplicate=False)))} if this is meant",
                stacklevel=stacklevel + 1,
            )

    @property
    def kinds_left(self) -> str:
        """The classes of the modules that hold what is left."""
        return ", ".join(dict.fromkeys(type(module).__name__ for _, module, _ in self.left))


def select(model: nn.Module, exclude: Iterable[Excluded], include: Iterable[Excluded] = ()) -> Selection:
    """The layers that can be made sparse, and the weights that nothing can be done for.

    Raises:
        ValueError: if a name of `exclude` matches nothing, or an entry of `include` no embedding.
        TypeError: if layers cannot be made sparse and are not excluded. The message names them all, and what to exclude.
    """
    exclude, shared, closed = list(exclude), shared_parameters(model), list(model.named_modules(remove_duplicate=False))
    excluded = _excluded(closed, exclude)
    tied = tied_tables(model.modules(), excluded)
    shared -= {layer.weight for layer in tied.values()}
    wanted = {*tied, *_included(closed, include)}
    opened = _opened(closed, excluded, shared, wanted, tied)
    names = by_use(named_opened(model, opened))
    _refuse_unmatched(closed, names, exclude)
    # A part that is excluded by its class or itself is another object once the module around it is opened, of the same name.
    met = _excluded(names, exclude, {name for name, module in closed if module in excluded})
    layers: dict[str, Dense] = {}
    sparse: dict[str, TopologyLayer] = {}
    refused: dict[str, tuple[nn.Module, str]] = {}
    left: list[tuple[str, nn.Module, nn.Parameter]] = []
    for name, module in names:
        if module in met:
            continue
        met.add(module)
        reason = _reason_against(module, shared, wanted)
        if reason:
            refused[name] = module, reason
            met.update(module.modules())
        elif isinstance(module, DENSE):
            layers[name] = module  # type: ignore[assignment]
        elif isinstance(module, TopologyLayer):
            sparse[name] = module
            met.update(module.modules())  # what is inside of it is its own
        elif not isinstance(module, (*NO_PRODUCT, Opened)):
            left.extend(_matrices(name, module, exclude))
    if refused:
        raise TypeError(_refusal(refused, names))
    return Selection(layers, sparse, left, _with_layers(opened, layers), _owners(names, layers), shared)


def excluded_from(model: nn.Module, exclude: Iterable[Excluded]) -> set[nn.Module]:
    """Modules that are excluded, or inside an excluded one.

    Raises:
        ValueError: if a name of `exclude` matches nothing.
    """
    names, exclude = list(model.named_modules(remove_duplicate=False)), list(exclude)
    _refuse_unmatched(names, names, exclude)
    return _excluded(names, exclude)


def also_opened(model: nn.Module, opened: Mapping[nn.Module, nn.Module]) -> dict[nn.Module, Opened]:
    """What else can be opened, excluded or not, so that a graph sees the layers inside."""
    others = [(name, module) for name, module in model.named_modules() if module not in opened]
    return {module: one for module, one in _opened(others, set(), shared_parameters(model), set(), {}).items() if not one.whole}


def _opened(
    names: Names,
    excluded: set[nn.Module],
    shared: set[torch.Tensor],
    wanted: set[nn.Module],
    tied: Mapping[nn.Module, nn.Linear],
) -> dict[nn.Module, Opened]:
    """{module that holds matrices no layer can replace: the same, opened}, of those for which nothing speaks against it."""
    kinds = {module: opened_kind(type(module)) for _, module in names if module not in excluded}
    return {
        module: opened_one(kind, module, tied)
        for module, kind in kinds.items()
        if kind and (module in wanted or not kind.when_asked) and not _reason_against(module, shared, wanted)
    }


def _included(names: Names, include: Iterable[Excluded]) -> set[nn.Module]:
    """Embeddings that are included, or inside an included module."""
    embeddings = {module: name for name, module in reversed(names) if _opened_when_asked(type(module))}
    found = set[nn.Module]()
    for entry in include:
        matched = {module for module in _excluded(names, [entry]) if module in embeddings}
        if not matched:
            known = ", ".join(map(repr, reversed(embeddings.values()))) or "none"
            raise ValueError(f"include names {entry!r}, which matches no nn.Embedding or nn.EmbeddingBag; there are: {known}")
        found |= matched
    return found


def _opened_when_asked(kind: type[nn.Module]) -> bool:
    base = closed_base(kind)
    opened = opened_kind(base) if base else None
    return opened is not None and opened.when_asked


def _with_layers(opened: Mapping[nn.Module, Opened], layers: Mapping[str, Dense]) -> dict[nn.Module, Opened]:
    chosen = set[nn.Module](layers.values())
    return {closed: one for closed, one in opened.items() if not chosen.isdisjoint(one.modules())}


def _owners(names: Names, layers: Mapping[str, Dense]) -> dict[str, str]:
    """{layer: the opened module that it is in}"""
    owners = [f"{name}." if name else "" for name, module in names if isinstance(module, Opened)]
    return {layer: owner.removesuffix(".") for owner in owners for layer in layers if layer.startswith(owner)}


def _excluded(names: Names, exclude: list[Excluded], also: Collection[str] = ()) -> set[nn.Module]:
    """Modules that are excluded, or inside an excluded one."""
    found = [module for name, module in names if name in also or any(_matches(entry, name, module) for entry in exclude)]
    return {inside for module in found for inside in module.modules()}


def _matches(entry: Excluded, name: str, module: nn.Module) -> bool:
    if isinstance(entry, str):
        return fnmatchcase(name, entry)
    return isinstance(module, entry) if isinstance(entry, type) else module is entry


def _matrices(name: str, module: nn.Module, exclude: list[Excluded]) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """The module's own weights of two or more dimensions that no name excludes."""
    alone = next(module.children(), None) is None
    for own, weight in module.named_parameters(name, recurse=False):
        if weight.ndim > 1 and not any(isinstance(entry, str) and fnmatchcase(own, entry) for entry in exclude):
            # Excluding the module would exclude the layers inside it too.
            yield (name if alone and name else own), module, weight


def _refuse_unmatched(closed: Names, names: Names, exclude: list[Excluded]) -> None:
    weights = [
        own
        for name, module in names
        if not isinstance(module, (*DENSE, Opened, *WITHOUT_SPARSE_LAYER))
        for own, weight in module.named_parameters(name, recurse=False)
        if weight.ndim > 1
    ]
    known = [*(name for name, _ in (*names, *closed)), *weights]
    unmatched = sorted(entry for entry in exclude if isinstance(entry, str) and not any(fnmatchcase(name, entry) for name in known))
    if unmatched:
        first: dict[nn.Module, str] = {}
        for name, module in names:
            first.setdefault(module, name)
        there = ", ".join(name for name in first.values() if name)
        raise ValueError(f"exclude names {', '.join(map(repr, unmatched))}, which match no module; there are: {there}")


def _reason_against(module: nn.Module, shared: set[torch.Tensor], wanted: set[nn.Module]) -> str:
    """Why it cannot be made sparse, or nothing.

    Args:
        wanted: modules that become sparse though others of their kind do not.
    """
    kind = opened_kind(type(module))
    if isinstance(module, LazyModuleMixin):
        return "has no shape yet (run the model once on an example before sparsify)"
    if isinstance(module, WITHOUT_SPARSE_LAYER) and not isinstance(module, DENSE) and not closed_base(type(module)):
        return "has no sparse counterpart"
    if not isinstance(module, DENSE) and not closed_base(type(module)):
        return ""
    if module not in wanted and _opened_when_asked(type(module)):
        return ""
    anew = made_anew(module)
    if anew:
        return anew
    if isinstance(module, DENSE) and not isinstance(getattr(module, "weight", None), nn.Parameter):
        return "has a weight that is no parameter (assign nn.Parameter(layer.weight) before sparsify)"
    if type(module) not in DENSE and not kind:
        return f"is a subclass of {type(module).__mro__[1].__name__} whose own behaviour would be lost"
    if any(getattr(part, hooks) for part in module.modules() for hooks in HOOKS):
        return "has hooks that would be lost (register them after sparsify)"
    if any(parameter.is_meta for parameter in module.parameters()):
        return "is on the meta device and has no values yet"
    if any(parameter in shared for parameter in ([module.weight] if isinstance(module, DENSE) else module.parameters())):
        return "shares its weight with another module (tied weights: only those of one nn.Linear and nn.Embedding can be sparse)"
    return kind.reason_against(module) if kind else ""


def shared_parameters(model: nn.Module) -> set[torch.Tensor]:
    """Parameters that are in more than one place."""
    places = Counter(parameter for module in model.modules() for parameter in module._parameters.values() if parameter is not None)
    return {parameter for parameter, times in places.items() if times > 1}


def _refusal(refused: dict[str, tuple[nn.Module, str]], names: Names) -> str:
    if "" in refused:
        module, reason = refused[""]
        return f"the model is itself a layer ({type(module).__name__}) that cannot be made sparse: it {reason}"
    alike: dict[tuple[str, str], list[str]] = {}
    for name, (module, reason) in refused.items():
        alike.setdefault((type(module).__name__, reason), []).append(name)
    said = [
        f"layer {names[0]!r} ({kind}) cannot be made sparse: it {reason}"
        if len(names) == 1
        else f"layers {listed(names)} ({kind}) cannot be made sparse: each {reason}"
        for (kind, reason), names in alike.items()
    ]
    return f"{'; '.join(said)}; pass exclude={_exclude(list(refused), names)} to leave {'it' if len(refused) == 1 else 'them'} dense"


def _exclude(names: list[str], modules: Names) -> tuple[str, ...]:
    """What to pass as `exclude` to leave out exactly these, names that differ in numbers only as one pattern where that is exact."""
    known = {name for name, _ in modules} | {own for name, module in modules for own, _ in module.named_parameters(name, recurse=False)}
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(name)
    chosen: list[str] = []
    for pattern, own in alike.items():
        met = [name for name in known if fnmatchcase(name, pattern)]
        exact = all(any(name == one or name.startswith(f"{one}.") for one in names) for name in met)
        chosen += [pattern] if len(own) > 1 and exact else own
    return tuple(dict.fromkeys(chosen))
