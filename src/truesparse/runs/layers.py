"""What are the layers of a run, for those who read its folder without its model?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import topology_layers
from ..topology.geometry import Convolution, Geometry, Matrix, Transposed
from .config import RunConfig


@torch.no_grad()
def described(config: RunConfig, model: nn.Module, example: Any, steps: int) -> dict[str, Any]:
    """As plain values: `steps` an epoch, the shape of a `sample` (None where it is no tensor), and `layers` by name, each with its
    `geometry` (the fields of `Matrix`, `Convolution` or `Transposed`), `pattern`, `budget` (connections it has been given; at the end,
    where the algorithm prunes on the way), and `sees_sample`: whether samples come to it as they are, or flattened.

    Args:
        config: of the run.
        model: with its first topologies; a dense one has no layers to describe. It is run once, in `eval` mode.
        example: one sample, as a batch.
        steps: of an epoch.
    """
    layers = topology_layers(model)
    seeing: set[str] = set()

    def note(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
            (x,) = (*args, *named.values())
            if isinstance(example, Tensor) and torch.equal(x.flatten(), example.flatten()):
                seeing.add(name)

        return hook

    handles = [layer.register_forward_hook(note(name), with_kwargs=True) for name, layer in layers.items()]
    training = model.training
    try:
        with torch.random.fork_rng(devices=[]):
            model.eval()(example)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    budgets = _budgets(config, model)
    return {
        "steps": steps,
        "sample": list(example.shape[1:]) if isinstance(example, Tensor) else None,
        "layers": {
            name: {
                "geometry": asdict(layer.geometry),
                "pattern": str(layer.pattern),
                "budget": budgets[name],
                "sees_sample": name in seeing,
            }
            for name, layer in layers.items()
        },
    }


def geometry_of(fields: Mapping[str, Any]) -> Geometry:
    """The geometry with those fields.

    Raises:
        TypeError: if they are those of none.
    """
    if "rows" in fields:
        return Matrix(**fields)
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    if "of" in values:
        of = geometry_of(values.pop("of"))
        assert isinstance(of, Convolution)
        return Transposed(of, **values)
    return Convolution(**values)


def _budgets(config: RunConfig, model: nn.Module) -> dict[str, int]:
    layers = topology_layers(model)
    if config.initial_sparsity == config.sparsity:
        return {name: layer.topology.nnz for name, layer in layers.items()}
    return config.make_budget().counts({name: layer.geometry.weight_shape for name, layer in layers.items()}, config.sparsity)
