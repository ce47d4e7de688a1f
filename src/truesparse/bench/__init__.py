"""How fast and how small, beside dense PyTorch, here? Layers, whole steps, memory, rewiring, inference: `truesparse bench`."""

from .document import Document, InferenceRow, LayerRow, MemoryRow, RewireRow, ScaleRow, StepRow, read_document
from .inference import InferenceCase, measure_inference
from .inference_cases import LinearCase, NetworkCase, RunCase
from .layers import LayerCase, measure_layers
from .memory import MemoryCase, measure_memory
from .networks import NETWORKS
from .request import Conditions
from .rewire import RewireCase, measure_rewirings
from .scale import ScaleCase, measure_scale
from .steps import StepCase, measure_steps
from .wrong import WrongResult

__all__ = [
    "NETWORKS",
    "Conditions",
    "Document",
    "InferenceCase",
    "InferenceRow",
    "LayerCase",
    "LayerRow",
    "LinearCase",
    "MemoryCase",
    "MemoryRow",
    "NetworkCase",
    "RewireCase",
    "RewireRow",
    "RunCase",
    "ScaleCase",
    "ScaleRow",
    "StepCase",
    "StepRow",
    "WrongResult",
    "measure_inference",
    "measure_layers",
    "measure_memory",
    "measure_rewirings",
    "measure_scale",
    "measure_steps",
    "read_document",
]
