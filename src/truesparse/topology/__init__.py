"""Which connections exist, which may, and how they change: values and pure functions that know no layer."""

from .topology import Move, Topology

__all__ = ["Move", "Topology"]
