"""Pictures of runs, and of topologies at hand, as matplotlib figures: for notebooks, papers and slides. Needs the extra `plot`."""

from .life import ages, changes, explored, fan, mask_distance, neurons, survival
from .masks import change, input_heat_map, mask_evolution, topology
from .pictures import write_all, write_pictures
from .training import curves, gradients, layers, step_time

__all__ = [
    "ages",
    "change",
    "changes",
    "curves",
    "explored",
    "fan",
    "gradients",
    "input_heat_map",
    "layers",
    "mask_distance",
    "mask_evolution",
    "neurons",
    "step_time",
    "survival",
    "topology",
    "write_all",
    "write_pictures",
]
