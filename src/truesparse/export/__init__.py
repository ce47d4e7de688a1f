"""How does a network leave this program? As one file that anyone can read: docs/guide/files.md describes it byte by byte. Or as ONNX."""

from .contents import FileContents, LayerContents, TensorContents, contents
from .errors import FileError
from .files import SavedLayer, SavedModel, load, save
from .onnx import export_onnx

__all__ = [
    "FileContents",
    "FileError",
    "LayerContents",
    "SavedLayer",
    "SavedModel",
    "TensorContents",
    "contents",
    "export_onnx",
    "load",
    "save",
]
