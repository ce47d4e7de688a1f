"""From float32 to numbers of a few bits: quantise, fine-tune, and read the numbers."""

from .described import Affine, QuantizedWeights, quantized_layers
from .kmeans import kmeans
from .quantize import dequantize, quantize

__all__ = ["Affine", "QuantizedWeights", "dequantize", "kmeans", "quantize", "quantized_layers"]
