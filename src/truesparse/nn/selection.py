"""Which layers of a model can be made sparse, and what stays dense? Refusals come all at once, and what nobody named is told."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

from .base import TopologyLayer
from .kinds import DENSE, Dense

Excluded = str | type[nn.Module] | nn.Module

# It reads the weights of the linear layer inside it directly, so that cannot be replaced.
CLOSED = (nn.MultiheadAttention,)
# They hold a matrix of weights for which there is no sparse layer.
WITHOUT_SPARSE_LAYER = (_ConvNd, nn.RNNBase, nn.RNNCellBase, nn.Bilinear)
# Their weights of two or more dimensions are looked up or multiplied one by one: no matrix product could be spared.
NO_PRODUCT = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

UNNOTICED_SHARE = 0.1  # of the matrix weights of a model, above which what stays dense is told
NAMES_SAID = 6


@dataclass(frozen=True)
class Selection:
    """What `sparsify` finds in a model.

    Attributes:
        layers: to be made sparse, by name, in order, each once.
        left: weights of two or more dimensions that stay dense and that nobody excluded: (name to exclude, module, weight).
    """

    layers: dict[str, Dense]
    left: list[tuple[str, nn.Module, nn.Parameter]]

    def warn_of_what_is_left(self, model: nn.Module, stacklevel: int) -> None:
        """Say so if a good share of the matrix weights stays dense and nobody said that this is meant."""
        dense, found = sum(weight.numel() for *_, weight in self.left), sum(layer.weight.numel() for layer in self.layers.values())
        if dense > UNNOTICED_SHARE * (dense + found):
            names = [name for name, *_ in self.left]
            warnings.warn(
                f"{dense:,} of {dense + found:,} matrix weights ({dense / (dense + found):.0%}) stay dense: they are in {self.kinds_left}, "
                f"and sparsify replaces nn.Linear and convolutions; replace those modules by nn.Linear, "
                f"or pass exclude={_exclude(names, model)} if this is meant",
                stacklevel=stacklevel + 1,
            )

    @property
    def kinds_left(self) -> str:
        """The classes of the modules that hold what is left."""
        return ", ".join(dict.fromkeys(type(module).__name__ for _, module, _ in self.left))


def select(model: nn.Module, exclude: Iterable[Excluded]) -> Selection:
    """The layers that can be made sparse, and the weights that nothing can be done for.

    Raises:
        ValueError: if a name of `exclude` matches nothing.
        TypeError: if layers cannot be made sparse and are not excluded. The message names them all, and what to exclude.
    """
    exclude = list(exclude)
    _refuse_unmatched(model, exclude)
    layers: dict[str, Dense] = {}
    refused: dict[str, tuple[nn.Module, str]] = {}
    left: list[tuple[str, nn.Module, nn.Parameter]] = []
    shared, inside = _shared(model), set[nn.Module]()
    for name, module in _walk(model, exclude):
        if module in inside:
            continue
        reason = _reason_against(module, shared)
        if reason:
            refused[name] = module, reason
            inside.update(module.modules())
        elif isinstance(module, DENSE):
            layers[name] = module  # type: ignore[assignment]
        elif not isinstance(module, (*NO_PRODUCT, TopologyLayer)):
            left.extend(_matrices(name, module, exclude))
    if refused:
        raise TypeError(_refusal(refused, model))
    return Selection(layers, left)


def _walk(model: nn.Module, exclude: list[Excluded]) -> Iterator[tuple[str, nn.Module]]:
    """Modules that are not excluded and not inside an excluded one, each once."""
    excluded: set[nn.Module] = set()
    for name, module in model.named_modules(remove_duplicate=False):
        if any(_matches(entry, name, module) for entry in exclude):
            excluded.update(module.modules())
    for name, module in model.named_modules():
        if module not in excluded:
            yield name, module


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


def _refuse_unmatched(model: nn.Module, exclude: list[Excluded]) -> None:
    modules = dict(model.named_modules(remove_duplicate=False))
    weights = [
        own
        for name, module in modules.items()
        if not isinstance(module, (*DENSE, *CLOSED, *WITHOUT_SPARSE_LAYER))
        for own, weight in module.named_parameters(name, recurse=False)
        if weight.ndim > 1
    ]
    names = [entry for entry in exclude if isinstance(entry, str)]
    unmatched = sorted(entry for entry in names if not any(fnmatchcase(name, entry) for name in (*modules, *weights)))
    if unmatched:
        known = ", ".join(name for name, _ in model.named_modules() if name)
        raise ValueError(f"exclude names {', '.join(map(repr, unmatched))}, which match no module; there are: {known}")


def _reason_against(module: nn.Module, shared: set[torch.Tensor]) -> str:
    """Why it cannot be made sparse, or nothing."""
    if isinstance(module, CLOSED):
        return "reads its weights itself"
    if isinstance(module, LazyModuleMixin):
        return "has no shape yet (run the model once on an example before sparsify)"
    if isinstance(module, WITHOUT_SPARSE_LAYER) and not isinstance(module, DENSE):
        return "has no sparse counterpart"
    if not isinstance(module, DENSE):
        return ""
    weight = getattr(module, "weight", None)
    if is_parametrized(module) or not isinstance(weight, nn.Parameter):
        return "has a parametrized or pruned weight (make it permanent first)"
    if type(module) not in DENSE:
        return f"is a subclass of {type(module).__mro__[1].__name__} whose own behaviour would be lost"
    if any(getattr(module, hooks) for hooks in HOOKS):
        return "has hooks that would be lost (register them after sparsify)"
    if weight.is_meta:
        return "is on the meta device and has no values yet"
    if any(parameter in shared for parameter in module.parameters(recurse=False)):
        return "shares its weight or bias with another module (tied weights)"
    return ""


def _shared(model: nn.Module) -> set[torch.Tensor]:
    """Parameters that more than one module holds."""
    owners: dict[torch.Tensor, set[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, set()).add(module)
    return {parameter for parameter, modules in owners.items() if len(modules) > 1}


def _refusal(refused: dict[str, tuple[nn.Module, str]], model: nn.Module) -> str:
    if "" in refused:
        module, reason = refused[""]
        return f"the model is itself a layer ({type(module).__name__}) that cannot be made sparse: it {reason}"
    alike: dict[tuple[str, str], list[str]] = {}
    for name, (module, reason) in refused.items():
        alike.setdefault((type(module).__name__, reason), []).append(name)
    said = [
        f"layer {names[0]!r} ({kind}) cannot be made sparse: it {reason}"
        if len(names) == 1
        else f"layers {_listed(names)} ({kind}) cannot be made sparse: each {reason}"
        for (kind, reason), names in alike.items()
    ]
    return f"{'; '.join(said)}; pass exclude={_exclude(list(refused), model)} to leave {'it' if len(refused) == 1 else 'them'} dense"


def _listed(names: list[str]) -> str:
    said = ", ".join(map(repr, names[:NAMES_SAID]))
    return said if len(names) <= NAMES_SAID else f"{said} and {len(names) - NAMES_SAID} more"


def _exclude(names: list[str], model: nn.Module) -> tuple[str, ...]:
    """What to pass as `exclude` to leave out exactly these, names that differ in numbers only as one pattern where that is exact."""
    known = {name for name, _ in model.named_modules(remove_duplicate=False)} | {name for name, _ in model.named_parameters()}
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(re.sub(r"(?<![^.])\d+(?![^.])", "*", name), []).append(name)
    chosen: list[str] = []
    for pattern, own in alike.items():
        met = [name for name in known if fnmatchcase(name, pattern)]
        exact = all(any(name == one or name.startswith(f"{one}.") for one in names) for name in met)
        chosen += [pattern] if len(own) > 1 and exact else own
    return tuple(dict.fromkeys(chosen))
