"""How does a network leave as C? Read, checked against the model, planned, and only then written."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from ..common.files import write_atomically
from ..export.written import check_place
from ..inference.graph.trace import copied
from .float_c import FloatC
from .floats import run, take
from .header import written
from .network import Network
from .read import read
from .report import Exported
from .text import is_identifier

TOLERANCE = 1e-4  # of the largest output: more than rounding of float32 adds up to


def export_c(model: nn.Module, example: Tensor, path: str | Path, *, name: str | None = None) -> Exported:
    path = Path(path)
    check_place(path)
    name = _name(path, name)
    network = read(model, example)
    _check_reading(network, model, example)
    made = written(network, FloatC(), path, name, "float32")
    write_atomically(path, made.text)
    return made.exported


def _name(path: Path, name: str | None) -> str:
    name = re.sub(r"\W+", "_", path.stem).strip("_") if name is None else name
    if not is_identifier(name):
        raise ValueError(f"{name!r} cannot begin names in C: pass name= of letters, digits and single _, a letter first")
    return name


def _check_reading(network: Network, model: nn.Module, example: Tensor) -> None:
    """The steps must give what the model gives."""
    with torch.no_grad():
        expected, given = copied(model)(example), take(run(network, example), network.output)
    difference, largest = float((expected - given).abs().max()), float(expected.abs().max())
    if not difference <= TOLERANCE * max(largest, 1.0):
        raise TypeError(
            f"the steps read from {type(model).__name__} give another output than the model, off by {difference:.1g}: it writes in place "
            "(+=, relu_) what it reads again later; write y = x + ... instead"
        )
