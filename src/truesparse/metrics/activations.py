"""How many zeros do layers read? Columns of zero inputs need not be read at all, which `truesparse.pack` makes use of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .flops import weight_layers


@dataclass(frozen=True)
class InputZeros:
    """Of what a layer has read.

    Args:
        zeros: how many numbers were zero, of either sign.
        numbers: how many there were.
    """

    zeros: int = 0
    numbers: int = 0

    @property
    def share(self) -> float | None:
        """0 to 1; None of a layer that was not called."""
        return self.zeros / self.numbers if self.numbers else None

    def __add__(self, other: InputZeros) -> InputZeros:
        return InputZeros(self.zeros + other.zeros, self.numbers + other.numbers)


@dataclass(frozen=True)
class Activations:
    """Zeros in the inputs of layers, by their names; as text a line for each."""

    layers: Mapping[str, InputZeros]

    @property
    def share(self) -> float | None:
        """Of all that was read, 0 to 1."""
        return sum(self.layers.values(), InputZeros()).share

    def __str__(self) -> str:
        width = max(map(len, self.layers), default=0)
        shares = {name: "not called" if own.share is None else f"{own.share:.1%} zeros" for name, own in self.layers.items()}
        return "\n".join(f"{name.ljust(width)}  {said}" for name, said in shares.items())


@torch.no_grad()
def activations(model: nn.Module, data: Any) -> Activations:
    """The share of zeros in what each layer reads, over all samples, positions and calls.

        print(ts.metrics.activations(model, x))
        ts.metrics.activations(model, (x for x, _ in loader)).layers["fc2"].share

    Layers are the sparse and masked ones, and dense linear layers and convolutions. The model runs in eval mode, and is afterwards as
    it was. Zeros with which a convolution pads are not counted.

    Args:
        model: dense, sparse or masked.
        data: an input; a tuple of positional inputs; inputs by the names of the arguments; or batches, an iterable of these.

    Raises:
        TypeError: if a batch is something else, a list for example.
        ValueError: if there is no batch.
    """
    layers = weight_layers(model)
    counted = dict.fromkeys(layers, InputZeros())
    modes = [(module, module.training) for module in model.modules()]
    handles = [layer.register_forward_pre_hook(_counter(counted, name), with_kwargs=True) for name, layer in layers.items()]
    batches = 0
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]):
            for batch in [data] if isinstance(data, (Tensor, tuple, Mapping)) else data:
                args, named = _arguments(batch)
                model(*args, **named)
                batches += 1
    finally:
        for module, mode in modes:
            module.training = mode
        for handle in handles:
            handle.remove()
    if not batches:
        raise ValueError("expected an input or batches of inputs, got no batch")
    return Activations(counted)


def _arguments(batch: Tensor | tuple[Any, ...] | Mapping[str, Any]) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(batch, Tensor):
        return (batch,), {}
    if isinstance(batch, tuple):
        return batch, {}
    if isinstance(batch, Mapping):
        return (), batch
    raise TypeError(
        f"expected a tensor, a tuple of positional inputs, or a dict of inputs by name, got {type(batch).__name__}: of a loader that gives "
        "[inputs, targets] pass (inputs for inputs, _ in loader)"
    )


def _counter(counted: dict[str, InputZeros], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def count(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        read: Tensor = args[0] if args else named["input"]
        counted[name] += InputZeros(read.numel() - int(torch.count_nonzero(read)), read.numel())

    return count
