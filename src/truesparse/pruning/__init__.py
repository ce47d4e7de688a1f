"""From dense to sparse: which weights of a trained network can go, and how they do."""

from . import criteria
from .base import CRITERIA, Chosen, Criterion, Evidence, register
from .blocks import prune_blocks
from .budgets import OWL, Depth
from .compete import EvidenceBudget
from .prune import prune
from .reconstruct import reconstruct
from .statistics import STATISTICS

__all__ = [
    "CRITERIA",
    "OWL",
    "STATISTICS",
    "Chosen",
    "Criterion",
    "Depth",
    "Evidence",
    "EvidenceBudget",
    "criteria",
    "prune",
    "prune_blocks",
    "reconstruct",
    "register",
]
