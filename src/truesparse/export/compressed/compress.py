"""How is a network compressed? Its layers as numbers and gaps, every other tensor by its bytes, and what that took."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...quantization import QuantizedWeights
from ..snapshot import SavedLayer, SavedModel, snapshot
from ..written import check_place, write_file
from .container import put_together
from .positions import Positions, encode_positions
from .report import CompressedLayer, CompressionReport
from .tensors import CodedTensor, encode_tensor

VERSION = 1


def compress(model: nn.Module | SavedModel, path: str | Path | None = None) -> CompressionReport:
    """Write a network to one file of few bytes: what connects, and its numbers, in about as many bits as their entropy says.

        ts.quantize(model, bits=5, by="codebook")
        print(ts.compress(model, "net.tsz"))
        ts.load("net.tsz", other)

    Nothing is lost: `ts.load` gives the same values, numbers and connections, bit by bit. How often a number, or a gap between
    connections, is there says how many bits it gets (Han, Mao and Dally 2016, https://arxiv.org/abs/1510.00149, section 4, has Huffman's
    code for that; the one here takes fractions of bits). Values that are not quantised are written too, in more bytes. There is no code
    in the file, and it appears whole or not at all.

    Args:
        model: any model, as `ts.save` takes it, quantised or not; or what `ts.load` has read.
        path: of the file; what is there is replaced. Its folder must exist. None writes nothing.

    Returns:
        What each layer takes, beside its entropy; printed, a table.

    Raises:
        FileError: if the file cannot be written.
        TypeError: if the model holds something that such a file cannot.
        ImportError: if the library of the coder is not installed: pip install 'truesparse[compress]'.
    """
    if path is not None:
        check_place(Path(path))
    saved = model if isinstance(model, SavedModel) else snapshot(model)
    description: dict[str, Any] = {"version": VERSION, "layers": {}, "tensors": {}}
    pieces: list[bytes] = []
    rows: list[CompressedLayer] = []
    for name, layer in saved.layers.items():
        positions, values = encode_positions(layer.topology), _values(layer)
        described = {"module": layer.module, "arguments": dict(layer.arguments), "pattern": layer.pattern}
        said = {"connections": layer.topology.nnz, "low": positions.low, "gaps": [positions.gaps.symbols, len(positions.gaps.content)]}
        description["layers"][name] = {**described, **said, **_kind(layer.weights), "arrays": [one.description for one in values]}
        pieces += [positions.lowest, positions.gaps.content, *(piece for one in values for piece in one.pieces)]
        rows.append(_row(name, layer, positions, values))
    others = 0
    for name, tensor in saved.tensors.items():
        coded = encode_tensor(tensor)
        description["tensors"][name] = coded.description
        pieces += coded.pieces
        others += coded.nbytes
    content = put_together(description, pieces)
    if path is not None:
        write_file(Path(path), *content)
    dense = sum(4 * layer.topology.size for layer in saved.layers.values()) + sum(_float32(tensor) for tensor in saved.tensors.values())
    return CompressionReport(tuple(rows), others, sum(map(len, content)), dense)


def _values(layer: SavedLayer) -> list[CodedTensor]:
    """Its arrays, in the order of the file: values, or numbers and their table; which act, if not all."""
    weights = layer.weights
    arrays = [layer.values] if weights is None else [from_zero(weights), weights.table]
    return [encode_tensor(array) for array in (arrays if layer.acting is None else [*arrays, layer.acting])]


def from_zero(weights: QuantizedWeights) -> Tensor:
    """The numbers as uint8, the least that there can be as 0."""
    return weights.numbers if weights.by == "codebook" else (weights.numbers.to(torch.int16) + least(weights.bits)).to(torch.uint8)


def least(bits: int) -> int:
    """The magnitude of the least number by row."""
    return 2 ** (bits - 1) - 1


def _kind(weights: QuantizedWeights | None) -> dict[str, Any]:
    if weights is None:
        return {"by": "", "bits": 0, "activations": []}
    affine = [] if weights.inputs is None or weights.outputs is None else [weights.inputs, weights.outputs]
    return {"by": weights.by, "bits": weights.bits, "activations": [[one.scale, one.zero_point] for one in affine]}


def _row(name: str, layer: SavedLayer, positions: Positions, values: list[CodedTensor]) -> CompressedLayer:
    return CompressedLayer(
        name=name,
        size=layer.topology.size,
        connections=layer.topology.nnz,
        values="floats" if layer.weights is None else f"{layer.weights.by}, {layer.weights.bits} bits",
        value_bytes=values[0].nbytes,
        value_entropy=values[0].entropy,
        gap_bytes=len(positions.lowest) + len(positions.gaps.content),
        gap_entropy=positions.entropy,
        other_bytes=sum(one.nbytes for one in values[1:]),
    )


def _float32(tensor: Tensor) -> int:
    return 4 * tensor.numel() if tensor.is_floating_point() else tensor.nbytes
