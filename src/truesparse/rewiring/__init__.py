"""How topologies change under a running optimizer: the only impure step of the library."""

from .rewire import rewire
from .rewirer import Rewirer

__all__ = ["Rewirer", "rewire"]
