"""How fast and how small, beside dense PyTorch, on this machine? Layers, whole training steps, memory: what `truesparse bench` runs."""

from .document import Document, LayerRow, MemoryRow, StepRow, read_document
from .layers import LayerCase, measure_layers
from .memory import MemoryCase, measure_memory
from .networks import NETWORKS
from .request import Conditions
from .steps import StepCase, measure_steps
from .wrong import WrongResult

__all__ = [
    "NETWORKS",
    "Conditions",
    "Document",
    "LayerCase",
    "LayerRow",
    "MemoryCase",
    "MemoryRow",
    "StepCase",
    "StepRow",
    "WrongResult",
    "measure_layers",
    "measure_memory",
    "measure_steps",
    "read_document",
]
