"""Which weights of a model are made of others, or stored sparse? Modules stand in for those that have them, with marked weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod

from ...nn.reparametrized import is_norm
from ..probe import evaluating
from .marked import from_anything, is_sparse, marked, plain
from .states import masked


def with_weights(model: nn.Module, weights: Mapping[Tensor, Tensor]) -> dict[nn.Module, nn.Module]:
    """{module: the same with other parameters}, of all that have one of the parameters {old: marked}; a parameter of several stays one."""
    new = {old: _parameter(weight, old.requires_grad) for old, weight in weights.items() if isinstance(old, nn.Parameter)}
    found: dict[nn.Module, nn.Module] = {}
    for module in model.modules():
        own = {name: new[old] for name, old in module._parameters.items() if old is not None and old in new}
        if own:
            found[module] = _stand_in(module, own)
    return found


def made_by_others(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """{module: the same with ordinary parameters}, of all that have masks of torch.nn.utils.prune, parametrizations or sparse weights.

    Norms of weights are no pruning: modules that have them are left to be refused.

    Raises:
        ValueError: if a weight holds NaN, or cannot be read.
    """
    found: dict[nn.Module, nn.Module] = {}
    for name, module in model.named_modules():
        own = dict(_weights(f"{name}." if name else "", module))
        if own:
            found[module] = _stand_in(module, own)
    return found


def _weights(prefix: str, module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    chains: Mapping[str, nn.Module] = dict(module.parametrizations.items()) if is_parametrized(module) else {}  # type: ignore[operator, union-attr]
    if any(is_norm(chain) for chain in chains.values()):
        return
    for name, parameter in module._parameters.items():
        if parameter is not None and not is_lazy(parameter) and not parameter.is_meta:  # those are refused later, by name
            weight = from_anything(prefix + name, parameter)
            if is_sparse(parameter):
                yield name, _parameter(weight, parameter.requires_grad)
    for name in _pruned(module):
        original: nn.Parameter = getattr(module, f"{name}_orig")
        yield name, _parameter(masked(prefix + name, original, getattr(module, f"{name}_mask")), original.requires_grad)
    for name, chain in chains.items():
        trained = any(parameter.requires_grad for parameter in chain.parameters())
        yield name, _parameter(_made(prefix + name, module, name, chain), trained)


def _parameter(weight: Tensor, requires_grad: bool) -> nn.Parameter:
    """Of a bias no entry is missing: it stays dense."""
    return nn.Parameter(weight if weight.ndim > 1 else plain(weight), requires_grad)


def _pruned(module: nn.Module) -> list[str]:
    return [hook._tensor_name for hook in module._forward_pre_hooks.values() if isinstance(hook, BasePruningMethod)]


def _made(said: str, module: nn.Module, name: str, chain: nn.Module) -> Tensor:
    """What a chain of parametrizations makes; a mask in it, as torch.ao.pruning has it, tells which entries exist."""
    with evaluating(module), torch.no_grad():
        weight: Tensor = getattr(module, name).detach()
    masks = [mask for one in chain.children() if isinstance(mask := getattr(one, "mask", None), Tensor) and mask.shape == weight.shape]
    if not masks:
        return marked(said, weight)
    return marked(said, weight, torch.stack([mask != 0 for mask in masks]).all(0))


def _stand_in(module: nn.Module, weights: Mapping[str, nn.Parameter]) -> nn.Module:
    """A module of the same class, children and other parameters, with these weights as ordinary parameters."""
    new = module.__class__.__new__(module.__class__)
    new.__dict__ = {name: copy.copy(held) if isinstance(held, (dict, list)) else held for name, held in module.__dict__.items()}
    if is_parametrized(module):
        new.__class__ = module.__class__.__mro__[1]
        del new._modules["parametrizations"]
    for name in _pruned(module):
        del new._parameters[f"{name}_orig"], new._buffers[f"{name}_mask"], new.__dict__[name]
    for key, hook in list(new._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod):
            del new._forward_pre_hooks[key]
    for name, weight in weights.items():
        setattr(new, name, weight)
    return new
