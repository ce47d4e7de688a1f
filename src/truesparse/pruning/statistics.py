"""What can be measured of a layer by running its model on data? A function a statistic, from a probe to a tensor for each layer.

Each gives, for every layer that data has reached, a tensor whose first dimension is the groups of the layer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map_only

from ..topology.geometry import Transposed
from .compete import of_layer
from .probe import Batch, Probe, Probed, inputs_of, samples_of

Statistic = Callable[[Probe], Mapping[str, Tensor]]
Gradients = dict[str, Tensor]  # of the layers that a batch has reached, shaped as their parameters

PROBES = 32  # random vectors, at least, of an estimate of the diagonal of a Hessian


def input_squares(probe: Probe) -> Mapping[str, Tensor]:
    """The mean square of what each column is multiplied with, over all samples and positions, [groups, columns]."""
    return _mean(probe, lambda rows: rows.square().sum(1))


def gram(probe: Probe) -> Mapping[str, Tensor]:
    """X^T X of the inputs X [samples and positions, columns], divided by their number, [groups, columns, columns]."""
    return _mean(probe, lambda rows: rows.transpose(1, 2) @ rows)


def gradient(probe: Probe) -> Mapping[str, Tensor]:
    """The gradient of the mean loss of the batches, [groups, rows, columns], zero where a sparse layer has no connection."""
    return _grouped(probe, _mean_gradient(probe))


def gradient_magnitudes(probe: Probe) -> Mapping[str, Tensor]:
    """The mean over the samples of |gradient of the loss of the sample alone|, [groups, rows, columns]."""
    return _grouped(probe, _over(_gradients_of_samples(probe), Tensor.abs))


def gradient_squares(probe: Probe) -> Mapping[str, Tensor]:
    """The diagonal of the Fisher information at the targets given: as `gradient_magnitudes`, of squares."""
    return _grouped(probe, _over(_gradients_of_samples(probe), Tensor.square))


def hessian_diagonal(probe: Probe) -> Mapping[str, Tensor]:
    """The mean of v * (H v) over random signs v, whose expectation is the diagonal of the Hessian of the mean loss of the batches.

    Hutchinson's estimate; each batch has vectors of its own, at least 32 in all. [groups, rows, columns]
    """
    each = -(-PROBES // len(probe.data))

    def estimates() -> Iterator[Gradients]:
        for batch in probe.data:
            leaves, gradients = _twice_differentiable(probe, batch)
            for _ in range(each):
                signs = {name: _signs(tensor, probe.generator) for name, tensor in gradients.items()}
                along = _hessian_product(gradients, signs, leaves, retain=True)
                yield {name: signs[name] * tensor for name, tensor in along.items()}

    return _grouped(probe, _over(estimates()))


def hessian_gradient(probe: Probe) -> Mapping[str, Tensor]:
    """H g, the Hessian of the mean loss of the batches times its gradient: half the gradient of |g|^2, [groups, rows, columns]."""
    mean = _mean_gradient(probe)

    def products() -> Iterator[Gradients]:
        for batch in probe.data:
            leaves, gradients = _twice_differentiable(probe, batch)
            yield _hessian_product(gradients, mean, leaves)

    return _grouped(probe, _over(products()))


def synaptic_flow(probe: Probe) -> Mapping[str, Tensor]:
    """w dR/dw, [groups, rows, columns], with R the sum of all outputs for an input of ones when each parameter is its absolute value.

    In float64, for the products of many layers are large. The first batch says what shape an input has; integers stay as they are.
    """
    model, leaves = probe.model, {name: one.parameter.detach().abs().double().requires_grad_() for name, one in probe.layers.items()}
    absolute = {tensor: tensor.detach().abs().double() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    absolute |= {one.parameter: one.pruned(leaves[name]) for name, one in probe.layers.items()}
    ones = tree_map_only(Tensor, lambda x: torch.ones_like(x, dtype=torch.float64) if x.is_floating_point() else x, probe.data[0])
    with torch.enable_grad():
        output = probe.output(ones, absolute, untracked=False)
        numbers = [tensor for tensor in tree_leaves(output) if isinstance(tensor, Tensor) and tensor.is_floating_point()]
        total = sum((tensor.sum() for tensor in numbers), torch.zeros((), dtype=torch.float64, device="cpu"))
    flow = {name: leaves[name] * slope for name, slope in _differentiated(total, leaves).items()}
    return _grouped(probe, {name: tensor.detach() for name, tensor in flow.items()})


def output_activity(probe: Probe) -> Mapping[str, Tensor]:
    """At which share of samples and positions each output is above zero, behind the batch norm that follows if one does, [groups, rows]."""
    norms = _following_norms(probe)
    sums: dict[str, Tensor] = {}
    lengths = dict.fromkeys(probe.layers, 0)

    def count(name: str, y: Tensor) -> None:
        channels = y.movedim(-probe.layers[name].geometry.sample_ndim, 0).flatten(1)
        above = (channels > 0) + 0 * channels  # NaN where that is not finite, and so told
        _add(sums, name, above.sum(1, dtype=torch.promote_types(y.dtype, torch.float32)))
        lengths[name] += channels.shape[1]

    def hear(name: str, layer: Probed, x: Tensor, y: Tensor) -> None:
        if name not in norms:
            count(name, y)

    def told(name: str, norm: nn.Module, args: tuple[Any, ...], y: Tensor) -> None:
        count(name, y)

    with ExitStack() as hooks:
        hooks.enter_context(probe.hearing(hear))
        for name, norm in norms.items():
            hooks.callback(norm.register_forward_hook(partial(told, name)).remove)
        for _ in probe.batches():
            pass
    return {name: (total / lengths[name]).unflatten(0, (probe.layers[name].geometry.groups, -1)) for name, total in sums.items()}


def output_scale(probe: Probe) -> Mapping[str, Tensor]:
    """|scale| of the batch norm that follows, [groups, rows].

    Raises:
        ValueError: if none follows a layer, or one without a scale.
    """
    norms = _following_norms(probe)
    without = [name for name in probe.layers if name not in norms or norms[name].weight is None]
    if without:
        raise ValueError(f"no batch norm with a scale follows {', '.join(map(repr, without))}: exclude them, or take another criterion")
    return {name: norms[name].weight.detach().abs().unflatten(0, (one.geometry.groups, -1)) for name, one in probe.layers.items()}


def _mean(probe: Probe, part: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The sum of `part` over all inputs [groups, samples and positions, columns], divided by their number."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = dict.fromkeys(probe.layers, 0)

    def hear(name: str, layer: Probed, x: Tensor, y: Tensor) -> None:
        with of_layer(name):
            rows = inputs_of(layer, x).to(torch.promote_types(x.dtype, torch.float32))
        _add(sums, name, part(rows))
        counts[name] += rows.shape[1]

    with probe.hearing(hear):
        for _ in probe.batches():
            pass
    return {name: total / max(counts[name], 1) for name, total in sums.items()}


def _over(found: Iterable[Gradients], part: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Gradients:
    """The mean of `part`; what a layer that was not reached would have had is zero."""
    sums: Gradients = {}
    count = 0
    for gradients in found:
        count += 1
        for name, tensor in gradients.items():
            _add(sums, name, part(tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))))
    return {name: total / count for name, total in sums.items()}


def _add(sums: dict[str, Tensor], name: str, new: Tensor) -> None:
    sums[name] = sums[name].add_(new) if name in sums else new.clone()


def _grouped(probe: Probe, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: probe.layers[name].grouped(tensor) for name, tensor in found.items()}


def _mean_gradient(probe: Probe) -> Gradients:
    leaves = probe.leaves()
    return _over(_differentiated(probe.loss_of(batch, leaves), leaves) for batch in probe.data)


def _gradients_of_samples(probe: Probe) -> Iterator[Gradients]:
    leaves = probe.leaves()
    for batch in probe.data:
        for sample in samples_of(batch):
            yield _differentiated(probe.loss_of(sample, leaves, untracked=False), leaves)  # of one sample there is no variance


def _differentiated(loss: Tensor, leaves: Mapping[str, Tensor], *, graph: bool = False) -> Gradients:
    """The gradient of the loss by each of the leaves that it depends on."""
    found = torch.autograd.grad(loss, list(leaves.values()), create_graph=graph, allow_unused=True)
    return {name: tensor for name, tensor in zip(leaves, found, strict=True) if tensor is not None}


def _twice_differentiable(probe: Probe, batch: Batch) -> tuple[dict[str, Tensor], Gradients]:
    """(the weights, the gradient of the loss of a batch by them as a function of them)."""
    leaves = probe.leaves()
    with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
        return leaves, _differentiated(probe.loss_of(batch, leaves), leaves, graph=True)


def _hessian_product(gradients: Gradients, vector: Gradients, leaves: Mapping[str, Tensor], retain: bool = False) -> Gradients:
    """H times the vector, from the gradients that are functions of the leaves."""
    with torch.enable_grad():
        along = sum(((gradients[name] * vector[name]).sum() for name in gradients), torch.zeros((), device="cpu"))
    own = {name: leaves[name] for name in gradients}
    if not along.requires_grad:  # the loss is linear in all of them
        return {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    found = torch.autograd.grad(along, list(own.values()), retain_graph=retain, allow_unused=True, materialize_grads=True)
    return dict(zip(own, found, strict=True))


def _signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return (torch.randint(2, like.shape, generator=generator, device="cpu") * 2 - 1).to(like)


def _following_norms(probe: Probe) -> dict[str, _BatchNorm]:
    """The batch norm that takes the very output of a layer, of those where one does, seen on the first batch.

    Raises:
        ValueError: for transposed convolutions, whose outputs are not the rows of their matrix.
    """
    for name, one in probe.layers.items():
        if isinstance(one.geometry, Transposed):
            raise ValueError(f"layer {name!r} is a transposed convolution, whose rows are inputs and no neurons: exclude it")
    found: dict[str, _BatchNorm] = {}
    outputs: dict[str, weakref.ref[Tensor]] = {}

    def hear(name: str, layer: Probed, x: Tensor, y: Tensor) -> None:
        outputs[name] = weakref.ref(y)

    def told(norm: _BatchNorm, module: nn.Module, args: tuple[Any, ...]) -> None:
        found.update({name: norm for name, output in outputs.items() if output() is args[0]})

    with ExitStack() as hooks:
        hooks.enter_context(probe.hearing(hear))
        for module in probe.model.modules():
            if isinstance(module, _BatchNorm):
                hooks.callback(module.register_forward_pre_hook(partial(told, module)).remove)
        for _ in probe.batches():
            break
    return found


def _table(functions: Sequence[Statistic]) -> dict[str, Statistic]:
    return {function.__name__: function for function in functions}


STATISTICS: dict[str, Statistic] = _table(
    [
        input_squares,
        gram,
        gradient,
        gradient_magnitudes,
        gradient_squares,
        hessian_diagonal,
        hessian_gradient,
        synaptic_flow,
        output_activity,
        output_scale,
    ]
)
"""Each by name. A layer that no data reached is not in what a statistic returns."""
