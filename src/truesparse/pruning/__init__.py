"""From dense to sparse: which weights of a trained network can go, and how they do."""

from . import criteria
from .base import CRITERIA, Chosen, Criterion, Evidence, register
from .blocks import block_influence, prune_blocks
from .compete import EvidenceBudget
from .prune import prune
from .statistics import STATISTICS

__all__ = [
    "CRITERIA",
    "STATISTICS",
    "Chosen",
    "Criterion",
    "Evidence",
    "EvidenceBudget",
    "block_influence",
    "criteria",
    "prune",
    "prune_blocks",
    "register",
]
