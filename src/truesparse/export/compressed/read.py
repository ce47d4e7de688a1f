"""How is a compressed network read? Everything that the file says is held against everything else, before a model sees any of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...quantization import Affine, QuantizedWeights
from ...topology.topology import LARGEST_COUNT
from ..errors import FileError
from ..header import first_line, tensor_name
from ..layers import bias_length, check_pattern, weight_shape
from ..snapshot import SavedLayer, SavedModel
from .compress import VERSION, least
from .container import Pieces, is_compressed, taken_apart
from .positions import decode_positions
from .tensors import decode_tensor, fields

__all__ = ["is_compressed", "read_compressed"]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYER: dict[str, type] = {
    "module": str,
    "arguments": dict,
    "pattern": str,
    "connections": int,
    "low": int,
    "gaps": list,
    "by": str,
    "bits": int,
    "activations": list,
    "arrays": list,
}


def read_compressed(path: Path) -> SavedModel:
    """What is in a file of `compress`. Every byte is verified.

    Raises:
        FileError: if it cannot be read or is damaged.
        ImportError: if the library of the coder is not installed.
    """
    try:
        return _read(*taken_apart(path.read_bytes()))
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise FileError(f"cannot read {path}: {first_line(error)}") from error


def _read(description: dict[str, Any], pieces: Pieces) -> SavedModel:
    version = description.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"it has version {version!r:.20} of the format, this program reads version {VERSION}; update truesparse")
    _, layers, tensors = fields(description, version=int, layers=dict, tensors=dict)
    found: dict[str, SavedLayer] = {}
    for name, said in layers.items():
        try:
            found[name] = _layer(said, pieces)
        except ValueError as error:
            raise ValueError(f"layer {name!r:.100}: {error}") from error
    others = {name: decode_tensor(said, pieces) for name, said in tensors.items()}
    pieces.check_end()
    for name, layer in found.items():
        _check_names(name, layer, others)
    return SavedModel(found, others)


def _layer(said: Any, pieces: Pieces) -> SavedLayer:
    module, arguments, pattern, connections, low, gaps, by, bits, activations, arrays = fields(said, **LAYER)
    shape = weight_shape(module, arguments)
    rows, columns = shape[0], math.prod(shape[1:])
    if not 0 <= connections <= min(rows * columns, LARGEST_COUNT):
        raise ValueError(f"a weight of shape {shape} cannot have {connections} connections")
    if len(gaps) != 2 or type(gaps[0]) is not int or gaps[0] < 0:
        raise ValueError(f"gaps are a number of symbols and one of bytes, got {gaps!r:.80}")
    lowest, coded = pieces.take((low * connections + 7) // 8), pieces.take(gaps[1])
    topology = decode_positions((rows, columns), connections, low, lowest, coded, gaps[0])
    check_pattern(pattern, topology)
    expected = (1 if by == "" else 2, 2 if by == "" else 3)
    if len(arrays) not in expected:
        raise ValueError(f"expected {expected[0]} or {expected[1]} arrays, got {len(arrays)}")
    first, *others = (decode_tensor(one, pieces) for one in arrays)
    acting = others.pop() if len(arrays) == expected[1] else None
    if first.shape != (connections,):
        raise ValueError(f"expected {connections} values, got shape {tuple(first.shape)}")
    if acting is not None and (acting.dtype != torch.bool or acting.shape != (connections,)):
        raise ValueError(f"acting must say of each of {connections} connections whether it acts")
    weights = None if by == "" else _weights(by, bits, first, others[0], rows, activations)
    if weights is None and (bits or activations or first.dtype not in FLOATS):
        raise ValueError(f"values that are not quantised are floats of no bits and no activations, got {first.dtype}")
    values = first if weights is None else weights.values(topology)
    return SavedLayer(module, arguments, pattern, topology, values, acting, weights)


def _weights(by: str, bits: int, numbers: Tensor, table: Tensor, rows: int, activations: list[Any]) -> QuantizedWeights:
    if by not in ("row", "codebook") or not 1 <= bits <= 8:
        raise ValueError(f"expected numbers by row or codebook with 1 to 8 bits, got {by!r:.40} and {bits}")
    entries = rows if by == "row" else 2**bits
    most = int(numbers.max()) if numbers.numel() else -1
    if numbers.dtype != torch.uint8 or table.dtype not in FLOATS or table.ndim != 1 or not bool(table.isfinite().all()):
        raise ValueError("expected numbers of one byte and a table of finite floats")
    if by == "row":
        if len(table) != entries or bool((table <= 0).any()) or most > 2 * least(bits):
            raise ValueError(f"expected {entries} scales above 0 and numbers up to {2 * least(bits)}, got {len(table)} and {most}")
        numbers = (numbers.to(torch.int16) - least(bits)).to(torch.int8)
    elif len(table) > entries or most >= len(table):
        raise ValueError(f"expected a codebook of at most {entries} entries and numbers below, got {len(table)} and {most}")
    if len(activations) not in (0, 2):
        raise ValueError(f"activations are those of inputs and outputs, got {activations!r:.80}")
    inputs, outputs = map(_affine, activations) if activations else (None, None)
    return QuantizedWeights(by, bits, numbers, table, inputs, outputs)  # type: ignore[arg-type]


def _affine(said: Any) -> Affine:
    whole = type(said) is list and [type(one) for one in said] == [float, int]
    if not whole or not (0 < said[0] < math.inf and -128 <= said[1] <= 127):
        raise ValueError(f"activations have a scale above 0 and a zero point in [-128, 127], got {said!r:.80}")
    return Affine(*said)


def _check_names(name: str, layer: SavedLayer, others: dict[str, Tensor]) -> None:
    bias, said = others.get(tensor_name(name, "bias")), layer.arguments["bias"]
    if said != (bias is not None):
        raise ValueError(f"layer {name!r:.100}: bias={said}, but the file has {'no' if said else 'a'} tensor for it")
    length = bias_length(layer.module, layer.arguments)
    if bias is not None and bias.shape != (length,):
        raise ValueError(f"layer {name!r:.100}: expected a bias of shape ({length},), got {tuple(bias.shape)}")
    for part in layer.parts():
        if tensor_name(name, part) in others:
            raise ValueError(f"layer {name!r:.100} has a tensor {part!r} of its own")
