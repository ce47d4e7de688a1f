"""From dense to sparse: which weights of a trained network can go, and how they do."""

from . import criteria
from .base import CRITERIA, Chosen, Criterion, Evidence, register
from .compete import EvidenceBudget
from .history import History
from .prune import prune
from .statistics import STATISTICS

__all__ = ["CRITERIA", "STATISTICS", "Chosen", "Criterion", "Evidence", "EvidenceBudget", "History", "criteria", "prune", "register"]
