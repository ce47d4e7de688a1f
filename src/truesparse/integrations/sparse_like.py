"""How does a dense model become sparse where a stored state is? For those that make a model anew and then load it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..export.header import tensor_name
from ..export.layers import listed, stated_pattern
from ..nn import sparsify, topology_layers
from ..topology.budgets import Uniform
from ..topology.patterns import Pattern, Unstructured

PARTS = ("values", "indptr", "indices", "acting")
STAND_IN = 0.5  # the sparsity of topologies that are replaced at once


def sparse_names(names: Mapping[str, object] | set[str]) -> set[str]:
    """The sparse layers of a `state_dict`, told by its names."""
    return {name.removesuffix("indptr").removesuffix(".") for name in names if name.split(".")[-1] == "indptr"}


def sparse_like(model: nn.Module, state: Mapping[str, Tensor], patterns: Mapping[str, str]) -> None:
    """Make those layers of a dense model sparse, in place, that `state` has sparse, with the topologies and values it has.

    Args:
        model: whose layers may be on the meta device.
        state: a `state_dict`, or those of its entries that belong to sparse layers.
        patterns: of the layers, as `str(pattern)` writes them; those left out are unstructured.

    Raises:
        RuntimeError: if the model has no such layer, or another one. The model is not to be used then.
    """
    names = sparse_names(state)
    modules = dict(model.named_modules())
    if not names:
        return
    left = [module for name, module in modules.items() if not any(_at_or_under(one, name) for one in names)]
    for name in names:
        module = modules.get(name, modules.get(name.rpartition(".")[0]))  # the layers of an opened module are inside it
        if module is not None and any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
    # A model is often made under torch.device("meta"); and what stays dense was dense when it was stored.
    with torch.device("cpu"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            sparsify(model, STAND_IN, Uniform(dense_first=False), exclude=left, generator=torch.Generator())
        except (TypeError, ValueError) as error:
            raise RuntimeError(f"this model cannot be made sparse as the stored one is: {error}") from error
    layers = topology_layers(model)
    if layers.keys() != names:
        raise RuntimeError(
            f"expected the sparse layers that are stored ({listed(names)}), and this model can have {listed(layers)}: it is another model"
        )
    for name, layer in layers.items():
        parts = {part: state[tensor_name(name, part)] for part in PARTS if tensor_name(name, part) in state}
        try:
            with torch.device("cpu"):
                layer.load_state_dict(parts, strict=False)
            layer.pattern = _pattern(name, patterns.get(name)).fitted(layer.geometry)
            layer.pattern.check(layer.topology)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise RuntimeError(f"layer {name!r} does not fit the stored one, so it is another model: {reason}") from error


def _pattern(layer: str, text: str | None) -> Pattern:
    found = Unstructured() if text is None else stated_pattern(text)
    if found is None:
        warnings.warn(
            f"the pattern {text} of layer {layer!r} is none of truesparse: the layer is unstructured from now on, set its .pattern before "
            "it is trained on",
            stacklevel=3,
        )
    return found or Unstructured()


def _at_or_under(name: str, module: str) -> bool:
    """Whether a layer of this name is the module, or inside it."""
    return not module or name == module or name.startswith(f"{module}.")
