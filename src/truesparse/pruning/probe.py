"""How does a model run on data that is to tell something of its layers? As its user would call it, with hooks on the layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..topology.geometry import Geometry

Batch = Any  # a tensor, (input, target), or a dict of arguments
Forward = Callable[[nn.Module, Batch], Any]
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Probed:
    """A layer that is asked about.

    Attributes:
        module: dense or sparse, whose input and output are seen.
        geometry: what it computes.
    """

    module: nn.Module
    geometry: Geometry


@dataclass(frozen=True)
class Probe:
    """A model, its layers, and the data to run it on.

    Attributes:
        model: in which the layers are.
        layers: what is asked about, by name.
        data: batches, which may be gone through several times.
        forward: calls the model on a batch.
        loss: of (output, batch); None where none was given.
        generator: CPU generator of random probes.
    """

    model: nn.Module
    layers: Mapping[str, Probed]
    data: Sequence[Batch]
    forward: Forward
    loss: Loss | None = None
    generator: torch.Generator | None = None

    def batches(self) -> Iterator[tuple[Any, Batch]]:
        """(output of the model, batch) of each, without gradients, in eval mode."""
        with evaluating(self.model), torch.no_grad():
            for batch in self.data:
                yield self.forward(self.model, batch), batch

    @contextmanager
    def hearing(self, hear: Callable[[str, Probed, Tensor, Tensor], None]) -> Iterator[None]:
        """Within this context `hear(name, layer, input, output)` is called whenever one of the layers was."""

        def hook(name: str, layer: Probed) -> Callable[..., None]:
            def told(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
                hear(name, layer, args[0] if args else kwargs["input"], output)

            return told

        handles = [one.module.register_forward_hook(hook(name, one), with_kwargs=True) for name, one in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context every module is in eval mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def called(model: nn.Module, batch: Batch) -> Any:
    """What a batch means if nobody says otherwise: arguments by name, (input, target), a list or tuple of one, or the input itself."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(batch[0])
    return model(batch)


def inputs_of(layer: Probed, x: Tensor) -> Tensor:
    """[groups, samples and positions, columns] what the columns of each group of the matrix were multiplied with."""
    geometry = layer.geometry
    if geometry.sample_ndim == 1:
        return x.reshape(1, -1, x.shape[-1])
    return unfolded(geometry, x)


def unfolded(geometry: Geometry, x: Tensor) -> Tensor:
    """The patches of a convolution's input.

    Raises:
        NotImplementedError: for transposed convolutions, whose columns are outputs.
    """
    from_outputs = geometry.sides("rows", "columns") != ("rows", "columns")
    if from_outputs:
        raise NotImplementedError("a transposed convolution has no input for each column of its matrix")
    batch = x if x.ndim == geometry.sample_ndim + 1 else x.unsqueeze(0)
    padded = nn.functional.pad(batch, [side for extent in reversed(geometry.padding) for side in (extent, extent)])  # type: ignore[union-attr]
    for place, (kernel, stride, dilation) in enumerate(zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True)):  # type: ignore[union-attr]
        # [..., positions of the output, positions of the kernel]: windows one dimension after the other, each last.
        window = padded.unfold(2 + place, dilation * (kernel - 1) + 1, stride)
        padded = window[..., ::dilation]
    dims = len(geometry.kernel)  # type: ignore[union-attr]
    patches = padded.movedim(tuple(range(2, 2 + dims)), tuple(range(1, 1 + dims)))  # [batch, positions..., channels, kernel...]
    groups = geometry.groups
    channels = batch.shape[1] // groups
    patches = patches.unflatten(1 + dims, (groups, channels)).movedim(1 + dims, 0)
    return patches.flatten(1, 1 + dims).flatten(2)
