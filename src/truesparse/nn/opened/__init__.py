"""Modules that hold matrices which no layer can replace, opened: the same in parts that can be sparse."""

from .attention import OpenedAttention
from .base import Opened
from .cells import OpenedCell
from .conv1d import OpenedConv1D
from .embedding import OpenedEmbedding, OpenedEmbeddingBag, by_use, named_once, opened_one, tied_tables
from .recurrent import OpenedRecurrent
from .table import OPENED, closed_base, named_opened, opened_kind

__all__ = [
    "OPENED",
    "Opened",
    "OpenedAttention",
    "OpenedCell",
    "OpenedConv1D",
    "OpenedEmbedding",
    "OpenedEmbeddingBag",
    "OpenedRecurrent",
    "by_use",
    "closed_base",
    "named_once",
    "named_opened",
    "opened_kind",
    "opened_one",
    "tied_tables",
]
