"""Criteria, a file each. The name of a file is the name of its criterion; this package holds their classes."""

from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING

from ..base import CRITERIA

if TYPE_CHECKING:
    from .apoz import APoZ as APoZ
    from .grasp import GraSP as GraSP
    from .lamp import LAMP as LAMP
    from .magnitude import Magnitude as Magnitude
    from .movement import Movement as Movement
    from .obd import OBD as OBD
    from .obs import OBS as OBS
    from .random import Random as Random
    from .slimming import Slimming as Slimming
    from .snip import SNIP as SNIP
    from .sparsegpt import SparseGPT as SparseGPT
    from .synflow import SynFlow as SynFlow
    from .taylor import Taylor as Taylor
    from .wanda import Wanda as Wanda

for _file in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_file}")

globals().update({kind.__name__: kind for kind in CRITERIA.values()})
__all__ = sorted(kind.__name__ for kind in CRITERIA.values())  # pyright: ignore[reportUnsupportedDunderAll]
