"""What makes zeros while a network trains? Penalties and gates, each a small class that hooks into any loop.

After training `ts.sparsify(model, None, from_weights=True)` takes the zeros of dense layers, `drop_zeros` those of sparse ones.
"""

from .base import drop_zeros
from .fista import fista
from .group_lasso import GroupLasso, group_soft_threshold
from .hard_concrete import L0, chance_of_a_gate, hard_concrete
from .l1 import L1, SmoothL1, soft_threshold
from .slimming import Slimming
from .variational import VariationalDropout, divergence

__all__ = [
    "L0",
    "L1",
    "GroupLasso",
    "Slimming",
    "SmoothL1",
    "VariationalDropout",
    "chance_of_a_gate",
    "divergence",
    "drop_zeros",
    "fista",
    "group_soft_threshold",
    "hard_concrete",
    "soft_threshold",
]
