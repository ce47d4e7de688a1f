"""What is in a file, told from its header alone? Layers, coding and bytes; no value is read, so a large file answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from .compressed.container import is_compressed
from .errors import FileError
from .header import Stored, check_version, entry, layers_of, opened, stored, tensor_name

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class LayerContents:
    """A sparse layer.

    Attributes:
        shape: of the dense weight; in a run's file that of the matrix. None stands for columns that the file does not state.
        pattern: "" where the file does not state it.
        coding: how its connections are written: "full", "bits", "gaps8", "gaps16", or "int32" as in a `state_dict`.
        values: dtype of its values, in the words of safetensors; "" where there are none.
        nbytes: of its values and its topology; the bias is among the other tensors.
    """

    name: str
    module: str
    shape: tuple[int | None, ...]
    connections: int
    pattern: str
    coding: str
    values: str
    nbytes: int

    @property
    def size(self) -> int | None:
        """Weights of the dense layer, if known."""
        known = [extent for extent in self.shape if extent is not None]
        return prod(known) if len(known) == len(self.shape) else None

    @property
    def sparsity(self) -> float | None:
        """Share of the dense weight that does not exist, if known."""
        return 1.0 - self.connections / self.size if self.size else None


@dataclass(frozen=True)
class TensorContents:
    """A tensor that belongs to no sparse layer's connections."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class FileContents:
    """Everything in a file.

    Attributes:
        nbytes: of the file, its header included.
    """

    layers: tuple[LayerContents, ...]
    tensors: tuple[TensorContents, ...]
    nbytes: int

    @property
    def connections(self) -> int:
        """Of all sparse layers."""
        return sum(layer.connections for layer in self.layers)

    @property
    def dense_nbytes(self) -> int | None:
        """Bytes of the dense network in float32, without any header; None if a layer does not state its shape."""
        sizes = [layer.size for layer in self.layers]
        if None in sizes:
            return None
        floats = {tensor for tensor in self.tensors if "F" in tensor.dtype}
        others = sum(FLOAT32 * prod(tensor.shape) if tensor in floats else tensor.nbytes for tensor in self.tensors)
        return others + sum(FLOAT32 * size for size in sizes if size is not None)


def contents(path: str | Path) -> FileContents:
    """What is in a file of `save`, of a training run, or in any safetensors file.

    The header is checked, the values are not: `load` verifies every byte.

    Raises:
        FileError: if it cannot be read, is no safetensors file, or says of itself what cannot be.
    """
    path = Path(path)
    if is_compressed(path):
        raise FileError(f"{path} is a compressed network: `truesparse compress {path}` shows its layers, ts.load reads them")
    with opened(path) as file:
        description, tensors = entry(file), stored(file)
        if description is not None and "version" in description:
            check_version(description)
            layers = _saved_layers(description, tensors)
        else:
            layers = _state_layers(description or {}, tensors)
        parts = {part for _, names in layers for part in names}
        others = [TensorContents(name, t.dtype, t.shape, t.nbytes) for name, t in sorted(tensors.items()) if name not in parts]
        return FileContents(tuple(layer for layer, _ in layers), tuple(others), path.stat().st_size)


def _saved_layers(description: Mapping[str, Any], tensors: Mapping[str, Stored]) -> list[tuple[LayerContents, list[str]]]:
    found: list[tuple[LayerContents, list[str]]] = []
    for name, layer in layers_of(description, tensors).items():
        parts = [tensor_name(name, part) for part in layer.parts]
        nbytes, dtype = sum(tensors[part].nbytes for part in parts), tensors[tensor_name(name, "values")].dtype
        row = LayerContents(name, layer.module, layer.weight_shape, layer.connections, layer.pattern, layer.coding, dtype, nbytes)
        found.append((row, parts))
    return found


def _state_layers(description: Mapping[str, Any], tensors: Mapping[str, Stored]) -> list[tuple[LayerContents, list[str]]]:
    """Sparse layers as a `state_dict` holds them: indptr, indices and, but for a topology alone, values."""
    shapes = description.get("shapes")
    found: list[tuple[LayerContents, list[str]]] = []
    for name in (name.removesuffix("indptr").removesuffix(".") for name in tensors if name.split(".")[-1] == "indptr"):
        parts = [part for part in (tensor_name(name, part) for part in ("indptr", "indices", "values")) if part in tensors]
        indptr, *others = (tensors[part] for part in parts)
        if not others or any(array.dtype != "I32" or len(array.shape) != 1 for array in (indptr, others[0])) or indptr.shape == (0,):
            continue
        connections = others[0].shape[0]
        if others[-1].shape != (connections,):
            raise ValueError(f"layer {name!r} has {connections} indices and {prod(others[-1].shape)} values, one for each was expected")
        rows, nbytes = indptr.shape[0] - 1, sum(tensors[part].nbytes for part in parts)
        columns = _columns(shapes.get(name), rows) if type(shapes) is dict else None
        dtype = others[1].dtype if len(others) > 1 else ""
        row = LayerContents(name, "", (rows, columns), connections, "", "int32", dtype, nbytes)
        found.append((row, [*parts, tensor_name(name, "fingerprint")]))
    return found


def _columns(shape: Any, rows: int) -> int | None:
    """The columns of a stated [rows, columns], if it is one."""
    whole = type(shape) is list and [type(extent) for extent in shape] == [int, int]
    return shape[1] if whole and shape[0] == rows and shape[1] >= 0 else None
