"""Static: never rewires. The control of every comparison. Mocanu et al. 2016, https://arxiv.org/abs/1604.05978"""

from __future__ import annotations

from typing import ClassVar

from ..topology import Topology
from .base import Signals, register


@register
class Static:
    """Keeps the topology it is given."""

    rewires: ClassVar[bool] = False
    sees_absent: ClassVar[bool] = False

    def update(self, topology: Topology, signals: Signals) -> Topology:
        return topology
