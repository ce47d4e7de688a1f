"""What does a file say that it holds? Its header, checked in full before any tensor is read.

A file is a safetensors file. Its metadata has one entry, `truesparse`: a JSON text with `sha256`, `version` and, for each sparse layer,
the torch module it stands for, its arguments, pattern and coding. docs/guide/files.md is the reference.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..topology.topology import LARGEST_COUNT
from .coding import ESCAPES, POSITIONS, ROW_LENGTHS, bits_nbytes
from .errors import FileError
from .layers import bias_length, listed, weight_shape

ENTRY, VERSION = "truesparse", 1
UNSIGNED = "0" * 64  # stands where the digest comes, while the digest is computed
VALUES = ("F16", "BF16", "F32", "F64")
# What may not be the name of another tensor of a sparse layer: here or in a state_dict it names a part of the layer.
PARTS = ("values", "row_lengths", "gaps", "bits", "indptr", "indices", "weight", "mask")
CHUNK = 1 << 18


@dataclass(frozen=True)
class Stored:
    """One tensor of the file, by its dtype in the words of safetensors, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)  # each dtype says its bits, but for BOOL, which has a byte
        return (prod(self.shape) * (int(bits[0]) if bits else 8) + 7) // 8


@dataclass(frozen=True)
class LayerHeader:
    """A sparse layer of the file."""

    module: str
    arguments: Mapping[str, Any]
    pattern: str
    coding: str
    weight_shape: tuple[int, ...]
    connections: int
    has_acting: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight_shape[0], prod(self.weight_shape[1:])

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its tensors, without the layer's own and without the bias."""
        positions = POSITIONS[self.coding]
        return ("values", "row_lengths", *((positions[0],) if positions else ()), *(("acting",) if self.has_acting else ()))


def tensor_name(layer: str, part: str) -> str:
    """As in a state_dict: the layer is "" where it is the whole model."""
    return f"{layer}.{part}" if layer else part


def written(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of the entry, not signed yet. The digest comes first, and is the first of its kind in the file."""
    return json.dumps({"sha256": UNSIGNED, "version": VERSION, "layers": layers}, separators=(",", ":"))


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file as `safetensors.safe_open` gives it, for torch.

    Raises:
        FileError: if it cannot be read, or what is done with it inside the block finds it wrong.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        with safe_open(path, framework="pt") as file:
            yield file
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}") from error
    # Beside ValueError: what torch says of a shape that it cannot have, and Python of JSON that is too deep (RecursionError).
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise FileError(f"cannot read {path}: {first_line(error)}") from error


def stored(file: Any) -> dict[str, Stored]:
    """Every tensor by name, from the header alone."""
    names: list[str] = file.keys()
    slices = {name: file.get_slice(name) for name in names}
    return {name: Stored(piece.get_dtype(), tuple(piece.get_shape())) for name, piece in slices.items()}


def entry(file: Any) -> dict[str, Any] | None:
    """What the metadata say; None if there is no entry of ours.

    Raises:
        ValueError: if the entry is no JSON object, or says anything twice.
    """
    text = (file.metadata() or {}).get(ENTRY)
    if text is None:
        return None
    found = json.loads(text, object_pairs_hook=once, parse_constant=refused)
    return _of_type(dict, found, "the description")


def check_version(description: Mapping[str, Any] | None) -> None:
    """
    Raises:
        ValueError: if this is not the description of a file that `save` of this version wrote.
    """
    if description is None:
        raise ValueError(f"expected a file of truesparse.save, but its metadata has no entry {ENTRY!r}")
    if "layers" not in description and "version" not in description:
        raise ValueError(
            "it is a file of a training run, not of truesparse.save: "
            "load it with model.load_state_dict(safetensors.torch.load_file(path)), and save the model"
        )
    version = description.get("version")
    if type(version) is not int or version != VERSION:
        raise ValueError(f"it has version {version!r:.20} of the format, this program reads version {VERSION}; update truesparse")


def layers_of(description: Mapping[str, Any], tensors: Mapping[str, Stored]) -> dict[str, LayerHeader]:
    """The sparse layers, each held against the tensors that are there.

    Raises:
        ValueError: if the description is incomplete or contradicts itself or the tensors.
    """
    if description.keys() != {"sha256", "version", "layers"}:
        raise ValueError(f"its description must have sha256, version and layers, got {listed(description)}")
    layers: dict[str, LayerHeader] = {}
    for name, said in _of_type(dict, description["layers"], "layers").items():
        try:
            layers[name] = _layer(name, _of_type(dict, said, "the description"), tensors)
        except ValueError as error:
            raise ValueError(f"layer {name!r:.100}: {error}") from error
    return layers


def check_digest(path: Path, digest: Any) -> None:
    """
    Raises:
        ValueError: if `path`, a safetensors file, is not byte for byte what was written.
    """
    if type(digest) is not str or not re.fullmatch("[0-9a-f]{64}", digest, re.ASCII):
        raise ValueError(f"expected 64 hexadecimal digits of SHA-256, got {digest!r:.80}")
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        found = hashlib.sha256(length + header.replace(digest.encode(), UNSIGNED.encode(), 1))
        while chunk := file.read(CHUNK):
            found.update(chunk)
    if found.hexdigest() != digest:
        raise ValueError("its bytes are not those that were written (SHA-256 differs); get the file again")


def signed(content: bytes) -> tuple[bytes, memoryview]:
    """(head, rest) of a file of `written` text, the digest in its place."""
    end = 8 + int.from_bytes(content[:8], "little")
    digest = hashlib.sha256(content).hexdigest()
    return content[:end].replace(UNSIGNED.encode(), digest.encode(), 1), memoryview(content)[end:]


def first_line(error: BaseException) -> str:
    """Torch adds a stack of calls."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _layer(name: str, said: dict[str, Any], tensors: Mapping[str, Stored]) -> LayerHeader:
    if said.keys() != {"module", "arguments", "pattern", "coding"}:
        raise ValueError(f"expected module, arguments, pattern and coding, got {listed(said)}")
    module, pattern, coding = (_of_type(str, said[key], key) for key in ("module", "pattern", "coding"))
    arguments = _of_type(dict, said["arguments"], "arguments")
    if coding not in POSITIONS:
        raise ValueError(f"expected one of the codings {', '.join(POSITIONS)}, got {coding!r:.100}")
    shape = weight_shape(module, arguments)
    rows, size = shape[0], prod(shape)
    values = _part(name, "values", tensors, VALUES)
    has_acting = tensor_name(name, "acting") in tensors
    layer = LayerHeader(module, arguments, pattern, coding, shape, prod(values.shape), has_acting)
    if len(values.shape) != 1 or layer.connections > min(size, LARGEST_COUNT):
        raise ValueError(f"expected one dimension of at most {min(size, LARGEST_COUNT)} values, got shape {values.shape}")
    lengths = _part(name, "row_lengths", tensors, tuple(ROW_LENGTHS))
    if lengths.shape != (rows,):
        raise ValueError(f"expected {rows} row lengths, one for each row, got shape {lengths.shape}")
    _check_positions(name, layer, tensors)
    if has_acting and _part(name, "acting", tensors, ("BOOL",)).shape != values.shape:
        raise ValueError(f"acting must say of each of {layer.connections} connections whether it acts")
    if arguments["bias"] != (tensor_name(name, "bias") in tensors):
        raise ValueError(f"bias={arguments['bias']}, but the file has {'no' if arguments['bias'] else 'a'} tensor for it")
    length = bias_length(module, arguments)
    if arguments["bias"] and tensors[tensor_name(name, "bias")].shape != (length,):
        raise ValueError(f"expected a bias of shape ({length},), got {tensors[tensor_name(name, 'bias')].shape}")
    for part in PARTS:
        if part not in layer.parts and tensor_name(name, part) in tensors:
            raise ValueError(f"a layer with coding {coding} has no tensor {part!r}")
    return layer


def _check_positions(name: str, layer: LayerHeader, tensors: Mapping[str, Stored]) -> None:
    positions, size = POSITIONS[layer.coding], prod(layer.weight_shape)
    if positions is None:
        if layer.connections != size:
            raise ValueError(f"a full layer has {size} values, got {layer.connections}")
        return
    part, dtype = positions
    found = _part(name, part, tensors, (dtype,)).shape
    if layer.coding in ESCAPES:
        fits, expected = len(found) == 1 and found[0] >= layer.connections, f"at least {layer.connections}"
    else:
        fits, expected = found == (bits_nbytes(size),), str(bits_nbytes(size))
    if not fits:
        raise ValueError(f"expected one dimension of {expected} {part} for {layer.connections} connections, got shape {found}")


def _part(layer: str, part: str, tensors: Mapping[str, Stored], dtypes: tuple[str, ...]) -> Stored:
    name = tensor_name(layer, part)
    if name not in tensors:
        raise ValueError(f"the file has no tensor {name!r:.100}")
    if tensors[name].dtype not in dtypes:
        raise ValueError(f"{part} must be one of {', '.join(dtypes)}, got {tensors[name].dtype}")
    return tensors[name]


def _of_type(kind: type, value: Any, what: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{what} must be a JSON {'object' if kind is dict else 'string'}, got {value!r:.100}")
    return value


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"its description says {name!r:.100} twice")
        found[name] = value
    return found


def refused(constant: str) -> None:
    raise ValueError(f"its description has {constant}, which is no JSON")
