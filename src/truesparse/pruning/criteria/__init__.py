"""Criteria, a file each. The name of a file is the name of its criterion; this package holds their classes."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ..base import CRITERIA

if TYPE_CHECKING:
    from .magnitude import Magnitude as Magnitude
    from .random import Random as Random
    from .wanda import Wanda as Wanda

for _file in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_file}")

globals().update({kind.__name__: kind for kind in CRITERIA.values()})
__all__ = sorted(kind.__name__ for kind in CRITERIA.values())  # pyright: ignore[reportUnsupportedDunderAll]
