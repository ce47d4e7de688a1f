"""How does a network leave this program? As one file that anyone can read, as one of few bytes (docs/guide/files.md), or as ONNX."""

from .compressed import CompressedLayer, CompressionReport, compress
from .contents import FileContents, LayerContents, TensorContents, contents
from .errors import FileError
from .files import load, save
from .onnx import export_onnx
from .snapshot import SavedLayer, SavedModel

__all__ = [
    "CompressedLayer",
    "CompressionReport",
    "FileContents",
    "FileError",
    "LayerContents",
    "SavedLayer",
    "SavedModel",
    "TensorContents",
    "compress",
    "contents",
    "export_onnx",
    "load",
    "save",
]
