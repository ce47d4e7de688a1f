"""How does a network run on a microcontroller? As one C99 header that holds its connections and the loops over them."""

from .export import export_c
from .quantised import Quantised, quantised, run_integers
from .report import Exported
from .scale import Scale
from .size import CompilerError, Sizes, size

__all__ = ["CompilerError", "Exported", "Quantised", "Scale", "Sizes", "export_c", "quantised", "run_integers", "size"]
