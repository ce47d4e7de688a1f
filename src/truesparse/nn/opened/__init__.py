"""Modules that hold matrices which no layer can replace, opened: the same in parts that can be sparse."""

from .attention import OpenedAttention
from .base import Opened
from .conv1d import OpenedConv1D
from .table import OPENED, closed_base, named_opened, opened_kind

__all__ = ["OPENED", "Opened", "OpenedAttention", "OpenedConv1D", "closed_base", "named_opened", "opened_kind"]
