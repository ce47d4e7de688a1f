"""How do the weights of sparse layers become numbers of a few bits? In place, and trained on if wanted, their connections staying."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from ..nn import MaskedLayer, SparseLayer
from ..nn.quantized import KINDS, QuantizedLayer, become_plain, become_quantized
from ..nn.rounded import FromCodebook, RoundedByRow, RoundedInput
from ..nn.selection import Excluded, excluded_from
from ..nn.wrapped import unwrapped
from ..pruning.evidence import held
from ..pruning.probe import Batch, Forward, called
from .norms import fold, foldable
from .numbers import By, check_bits, check_values, numbers_of
from .ranges import ranges_of

Model = TypeVar("Model", bound=nn.Module)


def quantize(
    model: Model,
    bits: int | Mapping[str, int] = 8,
    by: By = "row",
    data: Iterable[Batch] | None = None,
    *,
    percentile: float = 100.0,
    forward: Forward = called,
    exclude: Iterable[Excluded] = (),
) -> Model:
    """Give sparse layers weights of a few bits, in place: whole numbers with a scale a row, or entries of a codebook a layer.

        ts.quantize(model, bits=8, data=batches)                 # weights and activations as int8 has them
        ts.quantize(model, {"conv*": 8, "*": 5}, by="codebook")  # Deep Compression: then fine-tune, then ts.compress

    The layers stay modules with parameters, which a loop of yours trains through the rounding: by row the values before rounding, whose
    gradient passes straight through; by codebook its entries, whose gradient is the sum over their connections (Han, Mao and Dally 2016,
    https://arxiv.org/abs/1510.00149). Arithmetic stays in floats, of rounded numbers. Batch norms that a layer can take over are folded
    into it first if there are data. `ts.compress` writes the numbers, `quantization.quantized_layers` gives them.

    Args:
        model: any model with sparse layers. Dense layers stay as they are: `ts.prune(model, 0.0)` makes them sparse, with all connections.
        bits: of a number: 2 to 8 by row, 1 to 8 by codebook; or by name pattern, the first that matches counting, and layers that none
            matches staying as they are.
        by: "row": value = scale x number, the largest value of a row being the largest number. "codebook": value = one of 2^bits numbers,
            by k-means from a linear initialisation.
        data: batches that say how large activations are, as in `prune`: inputs of the layers are then rounded to int8, by one scale and
            one zero point a layer. None: weights only.
        percentile: of the activations of a batch, how many shall lie inside the range, at each end; the means over batches are taken.
            100: from the least to the largest of all.
        forward: calls the model on a batch, as in `prune`.
        exclude: layers to leave as they are, as in `prune`.

    Returns:
        The same model. By row the parameters are the same objects; by codebook they are new: build the optimizer after this.

    Raises:
        ValueError: if bits or percentile are out of range, a codebook has more entries than the layer connections, a weight is not
            finite, no data reaches a layer, or there is no sparse layer. The model is as it was.
        TypeError: if the model has masked layers, or subclasses of sparse ones.

    Warns:
        UserWarning: if there are batch norms and the model cannot be traced, so that they stay.
    """
    if not 50.0 < percentile <= 100.0:
        raise ValueError(f"percentile lies above 50 and up to 100, got {percentile}")
    inside = unwrapped(model)
    layers = _layers(inside, excluded_from(inside, exclude))
    wanted = _bits_of(list(layers), bits, by)
    layers = {name: layer for name, layer in layers.items() if name in wanted}
    batches = held(data)
    norms: dict[str, str] = {}
    work: nn.Module = inside
    if data is not None:
        if not batches:
            raise ValueError("there is no batch in data: pass some, or None to leave activations as they are")
        norms = foldable(inside, layers, _example(batches[0]))
        work = copy.deepcopy(inside)
        fold(work, norms)
    folded = {name: work.get_submodule(name) for name in layers}
    for name, layer in folded.items():
        check_values(name, layer.values, wanted[name], by)  # type: ignore[arg-type]
    ranges = {} if data is None else ranges_of(work, folded, batches, forward, percentile)
    fold(inside, norms)
    for name, layer in layers.items():
        beside = None
        if name in ranges:
            inputs, outputs = ((one.scale, one.zero_point) for one in ranges[name])
            beside = RoundedInput(inputs, outputs, layer.indices.device)
        become_quantized(layer, _rounding(layer, wanted[name], by), beside)
    return model


def dequantize(model: Model) -> Model:
    """Make quantised layers ordinary sparse ones again, in place, with the rounded values; inputs are no longer rounded.

    Then they can be pruned, packed, exported and trained as any other.

    Returns:
        The same model. By row the parameters are the same objects, by codebook they are new.
    """
    for layer in list(model.modules()):
        if isinstance(layer, QuantizedLayer):
            become_plain(layer)
    return model


def _layers(model: nn.Module, excluded: Collection[nn.Module]) -> dict[str, SparseLayer]:
    found: dict[str, SparseLayer] = {}
    for name, layer in model.named_modules():
        if layer in excluded:
            continue
        if isinstance(layer, MaskedLayer):
            raise TypeError(f"layer {name!r} is a masked twin, whose weight is dense: quantise the sparse model")
        if isinstance(layer, QuantizedLayer):
            raise ValueError(f"layer {name!r} is quantised already: ts.dequantize(model) first, or exclude it")
        if isinstance(layer, SparseLayer):
            if type(layer) not in KINDS:
                raise TypeError(f"layer {name!r} is a {type(layer).__name__}, whose own behaviour would be lost: exclude it")
            found[name] = layer
    if not found:
        raise ValueError("found no sparse layer: ts.prune(model, sparsity) makes some; ts.prune(model, 0.0) has all connections in them")
    return found


def _bits_of(names: Collection[str], bits: int | Mapping[str, int], by: By) -> dict[str, int]:
    stated = bits if isinstance(bits, Mapping) else {"*": bits}
    for glob, count in stated.items():
        check_bits(count, by)
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"bits names {glob!r}, which matches no sparse layer; there are: {', '.join(names)}")
    first = {name: next((glob for glob in stated if fnmatchcase(name, glob)), None) for name in names}
    return {name: stated[glob] for name, glob in first.items() if glob is not None}


def _rounding(layer: SparseLayer, bits: int, by: By) -> RoundedByRow | FromCodebook:
    values: nn.Parameter = layer.values
    weights = numbers_of(layer.topology, values, bits, by)
    if by == "row":
        return RoundedByRow(values, weights.table, bits)
    return FromCodebook(nn.Parameter(weights.table, requires_grad=values.requires_grad), weights.numbers, bits)


def _example(batch: Batch) -> Batch:
    """What `called` passes to a model."""
    return batch[0] if isinstance(batch, (tuple, list)) else batch
