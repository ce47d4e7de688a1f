"""Who hears of a model whose layers were replaced? Those who keep something beside the layers, though they stand above them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

observers: list[Callable[[nn.Module], None]] = []
"""Called with each model whose layers `sparsify` or `densify` has replaced."""
