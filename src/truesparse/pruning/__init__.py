"""From dense to sparse: which weights of a trained network can go, and how they do."""

from . import criteria
from .base import CRITERIA, Chosen, Criterion, Evidence, register
from .block_by_block import prune_blocks
from .budgets import OWL, Depth
from .compete import EvidenceBudget
from .distill import Distillation, distill
from .history import History
from .imported import from_pruned
from .logits import Logits, teacher_logits
from .prune import prune
from .reconstruct import reconstruct
from .rewind import Rewind
from .rounds import rounds
from .statistics import STATISTICS
from .whole_blocks import block_influence, drop_blocks

__all__ = [
    "CRITERIA",
    "OWL",
    "STATISTICS",
    "Chosen",
    "Criterion",
    "Depth",
    "Distillation",
    "Evidence",
    "EvidenceBudget",
    "History",
    "Logits",
    "Rewind",
    "block_influence",
    "criteria",
    "distill",
    "drop_blocks",
    "from_pruned",
    "prune",
    "prune_blocks",
    "reconstruct",
    "register",
    "rounds",
    "teacher_logits",
]
