"""How does a network leave as C? Read, held to what the model gives, planned, and only then written."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.files import write_atomically
from ..export.written import check_place
from ..inference.graph.trace import copied
from ..quantization import quantized_layers
from .budget import check_fits
from .dialect import KERNELS
from .float_c import FloatC
from .floats import run, take
from .header import Written, written
from .int8_c import Int8C, constants
from .network import Network
from .quantised import Quantised, quantised, ranges
from .read import read
from .report import Exported
from .stated import without_rounding
from .text import is_identifier

VALUES = ("float32", "int8")
TOLERANCE = 1e-4  # of the largest output: more than rounding of float32 adds up to


def export_c(
    model: nn.Module,
    example: Tensor,
    path: str | Path,
    *,
    values: str = "float32",
    calibration: Iterable[Tensor] | None = None,
    name: str | None = None,
    flash: int | None = None,
    ram: int | None = None,
) -> Exported:
    """Write what a network computes in eval mode, for one sample, as one C99 header for microcontrollers.

    The header holds the connections that exist, each as one byte for its place and its value, and `int NAME_predict(const float *x, float
    *y)`. It allocates nothing and writes no variable of its own; its comment says what each layer takes. BatchNorm is folded, and neurons
    and channels that can never matter are gone. Of int8 there is also `NAME_predict_int8`, and no float after the input: bit by bit what
    `truesparse.embedded.quantised.run_integers` computes. Of layers of `truesparse.quantize` it has the numbers.

    Args:
        model: with sparse, masked or dense layers; it is left as it is. A layer whose weights take fewer bytes that way is written dense.
        example: [batch, ...] float32; the C takes one sample of that shape.
        path: of the header; what is there is replaced, whole or not at all. Its folder must exist.
        values: "float32" (5 bytes a connection) or "int8" (2 bytes).
        calibration: for int8, batches [batch, ...] like the inputs to come: the range of each activation is what they lead to. Layers that
            `quantize` has given ranges keep these; if it has given all that matter, calibration may be left out.
        name: with which all names in C begin; None: as the file.
        flash, ram: bytes that constants, and memory with input and output, may take; None: any number.

    Returns:
        What each layer takes. `print` it for a table.

    Raises:
        TypeError: if an operation has no C here, which names the layer; if there is not one tensor in and one out, of float32; if layers
            round their inputs and it is to be float32; or what `truesparse.pack` raises for models that are no graph.
        ValueError: if the network does not fit, `name` is none in C, or calibration data is missing or has other shapes.
        FileError: if the file cannot be written. All of these before anything is written.
    """
    path = Path(path)
    check_place(path)
    name = _name(path, name)
    if values not in VALUES:
        raise ValueError(f"values is one of {', '.join(VALUES)}, got {values!r}")
    _check_device(model, example)
    _check_calibration(model, values, calibration)
    network = read(model, example)
    _check_reading(network, model, example)
    if values == "float32":
        made = written(network, FloatC(network), path, name, values)
    else:
        made = written_integers(quantised(network, {} if calibration is None else ranges(network, calibration)), path, name)
    check_fits(made.exported, flash, ram)
    write_atomically(path, made.text)
    return made.exported


def _check_device(model: nn.Module, example: Tensor) -> None:
    named = {**dict(model.named_parameters()), **dict(model.named_buffers()), "example": example}
    elsewhere = {name: tensor.device for name, tensor in named.items() if isinstance(tensor, Tensor) and tensor.device.type != "cpu"}
    if elsewhere:
        name, device = next(iter(elsewhere.items()))
        raise TypeError(
            f"export_c reads networks on the CPU, and {name!r} is on {device}: move the network and the example with .cpu() first"
        )


def written_integers(model: Quantised, path: Path, name: str) -> Written:
    """The header of a network in int8, however its scales were found.

    Args:
        path, name: as in `export_c`.
    """
    floats = (KERNELS / Int8C.folder / "floats.h").read_text().rstrip()
    facts = (
        f"A number is scale * (q - zero): of x {model.input_scale.scale:.9g} and {model.input_scale.zero}, "
        f"of y {model.output_scale.scale:.9g} and {model.output_scale.zero}.\n"
        "int NAME_predict(const float *x, float *y) takes and gives floats."
    )
    return written(model.network, Int8C(model), path, name, "int8", (constants(model), floats), facts)


def _name(path: Path, name: str | None) -> str:
    name = re.sub(r"[\W_]+", "_", path.stem).strip("_") if name is None else name
    if not is_identifier(name):
        raise ValueError(f"{name!r} cannot begin names in C: pass name= of letters, digits and single _, a letter first")
    return name


def _check_calibration(model: nn.Module, values: str, calibration: Iterable[Tensor] | None) -> None:
    rounding = [name for name, one in quantized_layers(model).items() if one.inputs is not None]
    if values == "float32" and rounding:
        raise TypeError(
            f"layer {rounding[0]!r} rounds its inputs to int8, and C of floats none: use values='int8', or ts.dequantize(model) first"
        )
    if values == "float32" and calibration is not None:
        raise ValueError("calibration=batches is for values='int8'; got values='float32' with some")
    if values == "int8" and calibration is None and not rounding:
        raise ValueError("values='int8' needs calibration=batches, inputs like those to come, or a model of ts.quantize(model, data=...)")


def _check_reading(network: Network, model: nn.Module, example: Tensor) -> None:
    """The steps must give what the model gives."""
    with torch.no_grad():
        expected, given = copied(without_rounding(model)[0])(example), take(run(network, example), network.output)
    difference, largest = float((expected - given).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise TypeError(
            f"the steps read from {type(model).__name__} give another output than the model, off by {difference:.1g}: it writes in place "
            "(+=, relu_) what it reads again later; write y = x + ... instead"
        )
