"""From dense to sparse: which weights of a trained network can go, and how they do."""

from . import criteria
from .base import CRITERIA, Chosen, Criterion, Evidence, register
from .compete import EvidenceBudget
from .distill import Distillation, distill
from .history import History
from .imported import from_pruned
from .logits import Logits, teacher_logits
from .prune import prune
from .rewind import Rewind
from .rounds import rounds
from .statistics import STATISTICS
from .whole_blocks import block_influence, drop_blocks

__all__ = [
    "CRITERIA",
    "STATISTICS",
    "Chosen",
    "Criterion",
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
    "register",
    "rounds",
    "teacher_logits",
]
