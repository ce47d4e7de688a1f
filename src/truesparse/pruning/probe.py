"""How does a model run on data that is to tell something of its layers? As its user would call it, and it stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from ..nn import TopologyLayer
from ..nn.conv import PADDING_MODES, padding_of
from ..nn.kinds import Dense
from ..topology import Topology
from ..topology.geometry import Convolution, Geometry, Matrix, Transposed

Batch = Any  # a tensor, (input, target), or a dict of arguments
Forward = Callable[[nn.Module, Batch], Any]
Loss = Callable[[Any, Any], Tensor]
Replaced = dict[Tensor, Tensor]  # parameters and buffers of a model, and what it is to compute with instead


def parameter_of(layer: Dense | TopologyLayer) -> nn.Parameter:
    """What the weights of a layer are held in."""
    return layer.parameter if isinstance(layer, TopologyLayer) else layer.weight  # type: ignore[return-value]


@dataclass(frozen=True)
class Probed:
    """A layer that is asked about.

    Attributes:
        module: dense or sparse, whose input and output are seen.
        geometry: what it computes.
        kept: the connections that earlier rounds of pruning have left it; None: those that it has.
    """

    module: Dense | TopologyLayer
    geometry: Geometry
    kept: Topology | None = field(default=None, kw_only=True)

    @property
    def parameter(self) -> nn.Parameter:
        """What the weights are held in."""
        return parameter_of(self.module)

    @property
    def topology(self) -> Topology | None:
        """Which connections there are; None: all."""
        if self.kept is not None:
            return self.kept
        return self.module.topology if isinstance(self.module, TopologyLayer) else None

    def matrix(self, array: Tensor) -> Tensor:
        """An array shaped as `parameter`, as [rows, columns], zero where the layer has no connection."""
        if isinstance(self.module, TopologyLayer):
            return self.module.topology.scatter(self.module.of_connections(array))
        return array.flatten(1)

    def grouped(self, array: Tensor) -> Tensor:
        """The same as [groups, rows of a group, columns]."""
        return self.matrix(array).unflatten(0, (self.geometry.groups, -1))

    def pruned(self, array: Tensor) -> Tensor:
        """An array shaped as `parameter`, zero where earlier rounds have left nothing. Differentiable."""
        if self.kept is None:
            return array
        mask = self.kept.mask().to(array.device)
        if isinstance(self.module, TopologyLayer):
            mask = self.module.spread(mask.flatten()[self.module.topology.keys])
        return array * mask.view_as(array)


@dataclass(frozen=True)
class Probe:
    """A model, its layers, and the data to run it on.

    Attributes:
        model: in which the layers are.
        layers: what is asked about, by name.
        data: batches, which may be gone through several times.
        forward: calls the model on a batch.
        loss: of (output, target); None where none was given.
        generator: CPU generator of random probes.
    """

    model: nn.Module
    layers: Mapping[str, Probed]
    data: Sequence[Batch]
    forward: Forward
    loss: Loss | None = None
    generator: torch.Generator | None = None

    def batches(self) -> Iterator[tuple[Any, Batch]]:
        """(output of the model, batch) of each, without gradients."""
        pruned: Replaced = {one.parameter: one.pruned(one.parameter.detach()) for one in self.layers.values() if one.kept is not None}
        for batch in self.data:
            with torch.no_grad():
                output = self.output(batch, pruned)
            yield output, batch

    def output(self, batch: Batch, replaced: Replaced | None = None, *, untracked: bool = True) -> Any:
        """What the model gives in eval mode, with other tensors in the place of its own.

        Args:
            batch: as `forward` takes it.
            replaced: what to compute with instead of these parameters and buffers.
            untracked: batch norms that have not seen any data yet normalise by the batch, as they do when training begins.
        """
        with evaluating(self.model, untracked), torch.random.fork_rng(_accelerators(self.model)):
            if not replaced:
                return self.forward(self.model, batch)
            names = {tensor: f"model.{name}" for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers())}
            given = {names[own]: other for own, other in replaced.items()}
            return functional_call(_Called(self.model, self.forward), given, (batch,))

    def leaves(self) -> dict[str, Tensor]:
        """What gradients are taken of: the weights of each layer, shaped as its parameter."""
        return {name: one.parameter.detach().requires_grad_() for name, one in self.layers.items()}

    def loss_of(self, batch: Batch, leaves: Mapping[str, Tensor], *, untracked: bool = True) -> Tensor:
        """The loss of a batch as a function of these weights; `untracked` is as in `output`.

        Raises:
            ValueError: if there is none, it is no single number, or depends on no layer.
        """
        with torch.enable_grad():
            weights: Replaced = {one.parameter: one.pruned(leaves[name]) for name, one in self.layers.items()}
            output = self.output(batch, weights, untracked=untracked)
            loss = _own_loss(output) if self.loss is None else self.loss(output, target_of(batch))
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            said = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"a loss is one number, a tensor of one entry, as F.cross_entropy gives it; got {said}")
        if not loss.requires_grad:
            raise ValueError("the loss depends on no layer: forward and loss must be differentiable, without detach() and no_grad()")
        return loss

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


class _Called(nn.Module):
    """A model and how it is called, as a module, which is what torch.func calls with other tensors."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model, self.call = model, forward

    def forward(self, batch: Batch) -> Any:
        return self.call(self.model, batch)


@contextmanager
def evaluating(model: nn.Module, untracked: bool = True) -> Iterator[None]:
    """Within this context every module is in eval mode; `untracked`: batch norms that have seen no data normalise by the batch.

    Torch's attention and encoders call their parts, as in training: their fast paths read weights past the layers that are to be heard.
    """
    modes = {module: module.training for module in model.modules()}
    fresh = [module for module in modes if untracked and isinstance(module, _BatchNorm) and _has_seen_nothing(module)]
    buffers = [dict(norm._buffers) for norm in fresh]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    for norm in fresh:
        norm._buffers.update(running_mean=None, running_var=None)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for norm, own in zip(fresh, buffers, strict=True):
            norm._buffers.update(own)
        for module, mode in modes.items():
            module.training = mode


def _has_seen_nothing(norm: _BatchNorm) -> bool:
    return norm.num_batches_tracked is not None and not int(norm.num_batches_tracked)


def _accelerators(model: nn.Module) -> list[int]:
    """Indices of the CUDA devices that the model is on, whose random numbers it may draw."""
    return sorted({tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"})


def called(model: nn.Module, batch: Batch) -> Any:
    """What a batch means if nobody says otherwise: arguments by name, (input, target), a list or tuple of one, or the input itself."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, (tuple, list)):
        return model(batch[0])
    return model(batch)


def target_of(batch: Batch) -> Any:
    """What the loss compares with: the second of a tuple, the labels of a dict, else the batch itself."""
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[1]
    return batch["labels"] if isinstance(batch, Mapping) and "labels" in batch else batch


def samples_of(batch: Batch) -> Iterator[Batch]:
    """The samples of a batch, each a batch of one: what its tensors hold along their first dimension. Those of one entry are for all.

    Raises:
        ValueError: if they do not have equally many.
    """
    several = [tensor for tensor in tree_leaves(batch) if isinstance(tensor, Tensor) and tensor.ndim and len(tensor) > 1]
    counts = sorted({len(tensor) for tensor in several})
    if len(counts) > 1:
        raise ValueError(
            f"this criterion looks at each sample by itself, and the tensors of a batch have {counts} of them: the first dimension is to "
            "be that of the samples, or pass batches of one"
        )
    if not several:
        yield batch
        return

    def sample(place: int) -> Callable[[Tensor], Tensor]:
        return lambda tensor: tensor[place : place + 1] if tensor.ndim and len(tensor) > 1 else tensor

    for place in range(counts[0]):
        yield tree_map_only(Tensor, sample(place), batch)


def _own_loss(output: Any) -> Any:
    """The loss that a model gives itself: its output, or what its output has of that name.

    Raises:
        ValueError: if it gives none.
    """
    if isinstance(output, Tensor) and output.numel() == 1 and output.ndim == 0:
        return output
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        raise ValueError("this criterion looks at gradients, and the model's output has no loss: pass loss=, as F.cross_entropy")
    return loss


def inputs_of(layer: Probed, x: Tensor) -> Tensor:
    """[groups, samples and positions, columns] what the columns of each group of the matrix were multiplied with.

    Raises:
        ValueError: for transposed convolutions, whose columns are outputs.
    """
    geometry = layer.geometry
    if isinstance(geometry, Transposed):
        raise ValueError(
            "a transposed convolution has no input for each column of its matrix: exclude it, or take a criterion that looks at weights "
            "or gradients"
        )
    if isinstance(geometry, Matrix):
        return x.reshape(1, -1, x.shape[-1])
    return unfolded(geometry, _padded(layer, x))


def _padded(layer: Probed, x: Tensor) -> Tensor:
    """A batch of inputs of a convolution, with the padding that comes before its kernel (by reflection and the like)."""
    module: Any = layer.module
    batch = x if x.ndim == layer.geometry.sample_ndim + 1 else x.unsqueeze(0)
    if isinstance(module, TopologyLayer):
        return module._prepared(batch)
    return F.pad(batch, padding_of(module)[1], mode=PADDING_MODES[module.padding_mode]) if any(padding_of(module)[1]) else batch


def unfolded(geometry: Convolution, batch: Tensor) -> Tensor:
    """The patches [groups, samples and positions, columns] of a batch of inputs of a convolution."""
    windows = F.pad(batch, [side for extent in reversed(geometry.padding) for side in (extent, extent)])
    dims = len(geometry.kernel)
    for place, (kernel, stride, dilation) in enumerate(zip(geometry.kernel, geometry.stride, geometry.dilation, strict=True)):
        # [..., positions of the output, positions of the kernel]: windows one dimension after the other, each last.
        windows = windows.unfold(2 + place, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    patches = windows.movedim(tuple(range(2, 2 + dims)), tuple(range(1, 1 + dims)))  # [batch, positions..., channels, kernel...]
    patches = patches.unflatten(1 + dims, (geometry.groups, -1)).movedim(1 + dims, 0)
    return patches.flatten(1, 1 + dims).flatten(2)
