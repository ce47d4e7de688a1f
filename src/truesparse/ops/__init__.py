"""The four verbs of sparse arithmetic, and which kernel speaks them."""

from .autograd import CHANGED, product
from .table import family, use, verbs_for
from .verbs import Verbs, summed_rows, values_dtype, widened

__all__ = ["CHANGED", "Verbs", "family", "product", "summed_rows", "use", "values_dtype", "verbs_for", "widened"]
