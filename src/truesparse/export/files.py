"""How is a network saved, and loaded into a model? Layers as `header` describes them, every other tensor as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import safetensors.torch
import torch
from torch import Tensor, nn

from ..nn import MaskedLayer, SparseLayer, TopologyLayer
from ..nn.quantized import QuantizedLayer
from ..nn.wrapped import plain_name, unwrapped
from .coding import POSITIONS, decode, encode
from .compressed.read import is_compressed, read_compressed
from .errors import FileError
from .header import (
    ENTRY,
    PARTS,
    LayerHeader,
    check_digest,
    check_version,
    entry,
    first_line,
    layers_of,
    opened,
    signed,
    stored,
    tensor_name,
    written,
)
from .layers import check_pattern, described
from .opening import closed_state, opened_for, opened_modules, opened_state
from .quantized import quantized_parts
from .snapshot import SavedLayer, SavedModel, snapshot
from .written import write_file

Model = TypeVar("Model", bound=nn.Module)
OF_ANY_LENGTH = ("values", "indices", "rounding.trained", "rounding.codes")
VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def save(model: nn.Module, path: str | Path, *, values: Literal["float32", "bfloat16"] | None = None) -> None:
    """Write a network to one file: the values and the topology of its sparse layers, and every other tensor as it is.

    The file is a safetensors file without any code in it; docs/guide/files.md says what each byte means. It appears
    whole or not at all. Masked twins are saved as the sparse layers they stand for.

    Args:
        model: any model; its dense layers stay dense. Of one that is wrapped (`torch.compile`, `DataParallel`,
            `DistributedDataParallel`, `AveragedModel`) the network inside is saved, under its own names.
        path: of the file; what is there is replaced. Its folder must exist.
        values: the dtype of the sparse layers' values in the file. None keeps that of each layer, float32 as a rule: the
            loaded network is equal bit by bit. "bfloat16" has two bytes a connection less and errs by up to 1/256 of each value.

    Raises:
        FileError: if the file cannot be written.
        TypeError: if the model holds something that a file of tensors cannot.
        ValueError: if `values` is unknown, or two tensors would have one name.
    """
    if values is not None and values not in VALUES:
        raise ValueError(f"values must be None, {' or '.join(map(repr, VALUES))}, got {values!r}")
    saved = snapshot(model)
    state = dict(saved.tensors)
    descriptions = {name: _put_layer(state, name, layer, values) for name, layer in saved.layers.items()}
    try:
        content = safetensors.torch.save(state, metadata={ENTRY: written(descriptions)})
    except (KeyError, ValueError, RuntimeError) as error:
        raise TypeError(f"the model has a tensor that a safetensors file cannot hold: {first_line(error)}") from error
    write_file(Path(path), *signed(content))


@overload
def load(path: str | Path) -> SavedModel: ...


@overload
def load(path: str | Path, model: Model) -> Model: ...


def load(path: str | Path, model: Model | None = None) -> SavedModel | Model:
    """Read a file that `save` or `compress` wrote. Every byte is verified before anything is made of it.

    Args:
        path: of the file.
        model: what to fill, in place: a model of the same architecture. Its layers may be sparse with any topology, masked
            or dense, attention opened or as torch has it; values take the dtype and device that they have there. Of a wrapped
            one, as `save` takes it, the network inside is filled. Quantised layers take the numbers of a file whose layers are
            quantised likewise; all others take the rounded values, and do not round their inputs. None fills nothing.

    Returns:
        `model`, or, without one, what the file holds.

    Raises:
        FileError: if the file cannot be read, is damaged, or does not fit the model exactly; the model is unchanged.
    """
    path = Path(path)
    saved = read_compressed(path) if is_compressed(path) else _read(path)
    if model is None:
        return saved
    inside = unwrapped(model)
    try:
        state = _state_for(inside, saved)
    except ValueError as error:
        raise FileError(f"{path} does not fit the model: {error}; nothing was loaded") from error
    held = {plain_name(inside, name): name for name, _ in inside.named_modules(remove_duplicate=False)}
    owners = {name: name.rpartition(".") for name in state}
    inside.load_state_dict({tensor_name(held[owner], leaf): state[name] for name, (owner, _, leaf) in owners.items()})
    return model


def _put_layer(state: dict[str, Tensor], name: str, layer: SavedLayer, values: str | None) -> dict[str, Any]:
    """The description of a layer, whose tensors come into `state`."""
    if layer.weights is not None:
        raise TypeError(f"layer {name!r} is quantised, and this file would have its values in floats: write it with ts.compress")
    coding, arrays = encode(layer.topology)
    parts = {part: torch.from_numpy(array) for part, array in arrays.items()}
    if layer.acting is not None:
        parts["acting"] = layer.acting
    parts["values"] = layer.values if values is None else layer.values.to(VALUES[values])
    for part in PARTS:
        if tensor_name(name, part) in state:
            raise ValueError(f"the name {tensor_name(name, part)!r} is taken: layer {name!r} has a tensor {part!r} of its own; rename it")
    state |= {tensor_name(name, part): tensor for part, tensor in parts.items()}
    return {"module": layer.module, "arguments": layer.arguments, "pattern": layer.pattern, "coding": coding}


def _read(path: Path) -> SavedModel:
    with opened(path) as file:
        description = entry(file)
        check_version(description)
        assert description is not None
        check_digest(path, description.get("sha256"))
        tensors = stored(file)
        headers = layers_of(description, tensors)
        layers = {name: _read_layer(file, name, header) for name, header in headers.items()}
        parts = {tensor_name(name, part) for name, header in headers.items() for part in header.parts}
        return SavedModel(layers, {name: _tensor(file, name) for name in tensors if name not in parts})


def _read_layer(file: Any, name: str, header: LayerHeader) -> SavedLayer:
    parts = {part: _tensor(file, tensor_name(name, part)) for part in header.parts}
    values, beside = parts["values"], POSITIONS[header.coding]
    positions = parts[beside[0]].numpy() if beside else None
    try:
        topology = decode(header.shape, header.coding, parts["row_lengths"].numpy(), positions, values.numel())
        check_pattern(header.pattern, topology)
    except ValueError as error:
        raise ValueError(f"layer {name!r:.100}: {error}") from error
    return SavedLayer(header.module, header.arguments, header.pattern, topology, values, parts.get("acting"))


def _tensor(file: Any, name: str) -> Tensor:
    """A tensor of its own: those of the file are the file's memory, and change with it."""
    tensor = file.get_tensor(name)
    if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
        raise ValueError(f"{name!r:.100} must have bytes of 0 and 1, false and true")
    return tensor.clone()


def _state_for(model: nn.Module, saved: SavedModel) -> dict[str, Tensor]:
    """The `state_dict` for `model`, whose layers may hold values in another way than those that were saved.

    Raises:
        ValueError: if the model is another one.
    """
    opened = opened_for(model, saved.layers)
    modules, own = opened_modules(model, opened), opened_state(model, opened)
    _refuse_other_prefix({*saved.tensors, *saved.layers}, {*own, *modules})
    state, of_any_length = dict(saved.tensors), set[str]()
    layers = [name for name, module in modules.items() if isinstance(module, TopologyLayer)]
    may_lack = {tensor_name(name, part) for name in layers for part in ("acting", "fingerprint")}
    for name, layer in saved.layers.items():
        if name not in modules:
            raise ValueError(f"it has no layer {name!r}")
        parts = _as_held_by(modules[name], name, layer)
        state |= {tensor_name(name, part): tensor for part, tensor in parts.items()}
        of_any_length |= {tensor_name(name, part) for part in parts if part in OF_ANY_LENGTH}
    for what, names in (("the model has", own.keys() - state.keys() - may_lack), ("the file has", state.keys() - own.keys() - may_lack)):
        if names:
            other = "the file" if what == "the model has" else "the model"
            raise ValueError(f"{what} {', '.join(sorted(names)[:5])}{' ...' if len(names) > 5 else ''}, {other} has not")
    for name in sorted(own.keys() - may_lack):
        tensor = state[name]
        if name not in of_any_length and tensor.shape != own[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model")
        if tensor.dtype != own[name].dtype and not (tensor.is_floating_point() and own[name].is_floating_point()):
            raise ValueError(f"{name} is {tensor.dtype} in the file, {own[name].dtype} in the model")
    return closed_state(model, opened, state)


def _refuse_other_prefix(names: set[str], known: set[str]) -> None:
    """
    Raises:
        ValueError: if all of a file's names would be known to the model without the word that they begin with, or with such a word.
    """
    if not names or names <= known:
        return
    first, others = {name.partition(".")[0] for name in names}, {name.partition(".")[0] for name in known if "." in name}
    if len(first) == 1 and {name.partition(".")[2] for name in names} <= known:
        word = first.pop()
        raise ValueError(
            f"every name in the file begins with {word!r}, and without that it would fit: load it into a model that holds this one "
            f"as .{word}, such as nn.ModuleDict({{{word!r}: model}})"
        )
    for word in sorted(others):
        if {f"{word}.{name}" for name in names} <= known:
            raise ValueError(f"every name in the model begins with {word!r}, and none in the file: load it into model.{word}")


def _as_held_by(module: nn.Module, name: str, layer: SavedLayer) -> dict[str, Tensor]:
    kind, arguments = described(module)
    ours = {**arguments, "bias": getattr(module, "bias", None) is not None}
    if (kind, ours) != (layer.module, layer.arguments):
        raise ValueError(f"layer {name!r} is {_call(layer.module, layer.arguments)} in the file, {_call(kind, ours)} in the model")
    topology, values = layer.topology, layer.values
    if isinstance(module, TopologyLayer):
        module.pattern.check(topology)
    if isinstance(module, QuantizedLayer):
        return quantized_parts(module, name, layer)
    if isinstance(module, SparseLayer):
        return layer.parts()
    weight: Tensor = module.weight  # type: ignore[assignment]
    if isinstance(module, MaskedLayer):
        parts = {"weight": topology.scatter(values), "mask": topology.mask()}
        if layer.acting is not None:
            parts["acting"] = topology.scatter(layer.acting)
    else:
        parts = {"weight": topology.scatter(values if layer.acting is None else values.masked_fill(~layer.acting, 0))}
    return {part: array.view(weight.shape) for part, array in parts.items()}


def _call(module: str, arguments: Mapping[str, Any]) -> str:
    return (
        f"{module}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})" if module else "no linear layer or convolution"
    )
