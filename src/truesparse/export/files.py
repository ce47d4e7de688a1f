"""How is a network saved, and loaded into a model? Layers as `header` describes them, every other tensor as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import safetensors.torch
import torch
from torch import Tensor, nn

from ..nn import MaskedLayer, SparseLayer, TopologyLayer
from ..nn.quantized import QuantizedLayer
from ..nn.wrapped import plain_name, unwrapped
from ..topology import Topology
from .coding import POSITIONS, decode, encode
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
from .written import write_file

Model = TypeVar("Model", bound=nn.Module)
VALUES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class SavedLayer:
    """A sparse layer of a file.

    Attributes:
        module: what it stands for: "Linear" or "Conv2d" of `torch.nn`.
        arguments: those of that module, `bias` included; `ts.SparseLinear(**arguments)` has the same shape.
        pattern: the text of its pattern, as `str(pattern)` writes it.
        topology: which connections exist, over [rows, columns] of the flattened weight.
        values: [nnz], in the dtype of the file.
        acting: [nnz] bool, which connections act: the others have been trained, but the layer computes without them. None, as
            nearly always: all of them.
    """

    module: str
    arguments: Mapping[str, Any]
    pattern: str
    topology: Topology
    values: Tensor
    acting: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """As a sparse layer's `state_dict` has them."""
        parts = {"values": self.values, "indptr": self.topology.indptr, "indices": self.topology.indices}
        return parts if self.acting is None else parts | {"acting": self.acting}


@dataclass(frozen=True, eq=False)
class SavedModel:
    """What a file holds.

    Attributes:
        layers: the sparse layers, by name.
        tensors: every other tensor of the `state_dict`, by its name there: biases, norms, dense layers.
    """

    layers: Mapping[str, SavedLayer]
    tensors: Mapping[str, Tensor]

    def state_dict(self) -> dict[str, Tensor]:
        """The `state_dict` of the sparse model."""
        state = dict(self.tensors)
        for name, layer in self.layers.items():
            state |= {tensor_name(name, part): tensor for part, tensor in layer.parts().items()}
        return state


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
    model = unwrapped(model)
    # Each tensor apart from all others: safetensors refuses those that share memory.
    state = {plain_name(model, name): _copied(name, tensor) for name, tensor in model.state_dict().items()}
    descriptions: dict[str, dict[str, Any]] = {}
    for name, layer in opened_modules(model, {}).items():
        if isinstance(layer, TopologyLayer):
            descriptions[name] = _put_layer(state, name, layer, values)
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
    """Read a file that `save` wrote. Every byte is verified before anything is made of it.

    Args:
        path: of the file.
        model: what to fill, in place: a model of the same architecture. Its layers may be sparse with any topology, masked
            or dense, attention opened or as torch has it; values take the dtype and device that they have there. Of a wrapped
            one, as `save` takes it, the network inside is filled. None fills nothing.

    Returns:
        `model`, or, without one, what the file holds.

    Raises:
        FileError: if the file cannot be read, is damaged, or does not fit the model exactly; the model is unchanged.
    """
    path = Path(path)
    saved = _read(path)
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


def _copied(name: str, tensor: Any) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
        what = type(tensor).__name__ if not isinstance(tensor, Tensor) else f"a tensor on {tensor.device} of layout {tensor.layout}"
        raise TypeError(f"a file holds dense tensors with values, but {name!r} of the state_dict is {what}; take it out of the model")
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _put_layer(state: dict[str, Tensor], name: str, layer: TopologyLayer, values: str | None) -> dict[str, Any]:
    """The description of a layer, whose tensors in `state` make way for those of the file."""
    own = ("weight", "mask") if isinstance(layer, MaskedLayer) else ("values", "indptr", "indices")
    for part in own:
        if state.pop(tensor_name(name, part), None) is None:
            remedy = "ts.compress writes it" if isinstance(layer, QuantizedLayer) else "make that permanent first"
            raise TypeError(f"layer {name!r} has no {part!r} in its state_dict: it is quantised or parametrized; {remedy}")
    state.pop(tensor_name(name, "fingerprint"), None)  # the digest of the file sees more
    module, arguments = described(layer)
    if not module:
        raise TypeError(f"layer {name!r} ({type(layer).__name__}) stands for no layer of torch that a file can name")
    coding, arrays = encode(layer.topology.to("cpu"))
    kept = layer.of_connections(layer.parameter).detach().cpu()
    parts = {part: torch.from_numpy(array) for part, array in arrays.items()}
    if layer.acting is not None:
        parts["acting"] = layer.of_connections(layer.acting).cpu().clone()
    parts["values"] = (kept if values is None else kept.to(VALUES[values])).clone()
    for part in PARTS:
        if tensor_name(name, part) in state:
            raise ValueError(f"the name {tensor_name(name, part)!r} is taken: layer {name!r} has a tensor {part!r} of its own; rename it")
    state |= {tensor_name(name, part): tensor for part, tensor in parts.items()}
    bias = tensor_name(name, "bias") in state
    return {"module": module, "arguments": {**arguments, "bias": bias}, "pattern": str(layer.pattern), "coding": coding}


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
        of_any_length |= {tensor_name(name, part) for part in parts if part in ("values", "indices")}
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
