"""The four verbs of sparse arithmetic, and which kernel speaks them."""

from . import mapped  # noqa: F401  # its rules are registered
from .autograd import CHANGED, product, transposed
from .lookup import lookup
from .repeated import Repeated
from .table import family, holds, use, verbs_for
from .verbs import Verbs, summed_rows, values_dtype, widened

__all__ = [
    "CHANGED",
    "Repeated",
    "Verbs",
    "family",
    "holds",
    "lookup",
    "product",
    "summed_rows",
    "transposed",
    "use",
    "values_dtype",
    "verbs_for",
    "widened",
]
