"""What do processes that train one model together agree on, and how does DistributedDataParallel live with layers that change?"""

from .parallel import check_same, check_same_topologies, code_of_topology, together, wrapping
from .processes import ALONE, Processes, code_of, join, shared_generator

__all__ = [
    "ALONE",
    "Processes",
    "check_same",
    "check_same_topologies",
    "code_of",
    "code_of_topology",
    "join",
    "shared_generator",
    "together",
    "wrapping",
]
