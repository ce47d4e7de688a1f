"""What is in a file of pruned weights? safetensors, one or a folder of several as compressed-tensors writes them; or ONNX."""

from __future__ import annotations

from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from .graphs import read_onnx
from .source import Source
from .states import read_state


def read_file(path: Path) -> Source:
    """
    Raises:
        ValueError: if it cannot be read.
        FileNotFoundError: if there is none.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.suffix == ".onnx":
        return read_onnx(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or any(file.suffix != ".safetensors" for file in files):
        raise ValueError(
            f"expected a .safetensors or .onnx file, or a folder with .safetensors files, got {path}; "
            "what torch.save wrote: pass torch.load(path, weights_only=True)"
        )
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            state |= safetensors.torch.load_file(file)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{file} is no whole safetensors file: {error}; fetch it again") from error
    return read_state(state)
