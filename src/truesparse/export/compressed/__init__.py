"""How does a network become a file of few bytes? Numbers and gaps, each in about as many bits as their entropy says."""

from .compress import compress
from .report import CompressedLayer, CompressionReport

__all__ = ["CompressedLayer", "CompressionReport", "compress"]
