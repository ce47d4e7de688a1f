"""Measures of sparse training: pure functions of topologies and values, and a `Tracker` that follows a `Rewirer`."""

from .activations import Activations, InputZeros, activations
from .energy import Energy, EnergyEstimate, energy
from .flops import Flops, layer_flops, output_positions
from .history import Explored, Lineage
from .memory import connections, live_bytes
from .topologies import Change, Distribution, change, dead_neurons, distribution, fan_in, fan_out
from .tracker import Tracker, gradient_norms

__all__ = [
    "Activations",
    "Change",
    "Distribution",
    "Energy",
    "EnergyEstimate",
    "Explored",
    "Flops",
    "InputZeros",
    "Lineage",
    "Tracker",
    "activations",
    "change",
    "connections",
    "dead_neurons",
    "distribution",
    "energy",
    "fan_in",
    "fan_out",
    "gradient_norms",
    "layer_flops",
    "live_bytes",
    "output_positions",
]
