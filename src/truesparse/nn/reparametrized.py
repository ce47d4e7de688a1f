"""Is the weight of a layer made anew in every forward pass? Then its connections have no values of their own, and what makes it is told."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

PERMANENT = "torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})"
WEIGHT_NORM = "by weight_norm, whose length of a row is not that of the connections which are left (call {call} before sparsify)"
SPECTRAL_NORM = "by spectral_norm, which needs the whole matrix in every step (call {call} before sparsify)"
PRUNED = "by torch.nn.utils.prune (call {call} before sparsify; from_weights=True keeps its zeros, which are permanent then)"
OTHER = "by a parametrization, {kind} (call {call} before sparsify)"
NORMS = {"_WeightNorm": WEIGHT_NORM, "_SpectralNorm": SPECTRAL_NORM}


def is_norm(chain: nn.Module) -> bool:
    """Whether a chain of parametrizations begins with a norm of the weight."""
    return type(next(chain.children())).__name__ in NORMS


def made_anew(module: nn.Module) -> str:
    """What is said of a module one of whose tensors is made of others: "has a weight that is made by ..."; "" if there is none."""
    for part in module.modules():
        for name, who in (*_by_parametrizations(part), *_by_hooks(part)):
            return f"has a {name} that is made anew in every forward pass {who}"
    return ""


def _by_parametrizations(module: nn.Module) -> Iterator[tuple[str, str]]:
    if is_parametrized(module):
        for name, chain in module.parametrizations.items():  # type: ignore[operator, union-attr]
            kinds = [type(one).__name__ for one in chain]
            said = NORMS.get(kinds[0], OTHER)
            yield name, said.format(kind=", ".join(kinds), call=PERMANENT.format(name=name))


def _by_hooks(module: nn.Module) -> Iterator[tuple[str, str]]:
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield hook.name, WEIGHT_NORM.format(call=f"torch.nn.utils.remove_weight_norm(layer, {hook.name!r})")
        elif isinstance(hook, SpectralNorm):
            yield hook.name, SPECTRAL_NORM.format(call=f"torch.nn.utils.remove_spectral_norm(layer, {hook.name!r})")
        elif isinstance(hook, BasePruningMethod):
            yield hook._tensor_name, PRUNED.format(call=f"torch.nn.utils.prune.remove(layer, {hook._tensor_name!r})")
