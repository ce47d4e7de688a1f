"""What keeps sparse training stable: clipping, penalties on activations, decay that spares what has just grown, averages of weights.

Warm-up of the learning rate is a schedule: `truesparse.topology.schedules.warmup`.
"""

from .activations import ActivationPenalty
from .averages import Average
from .clipping import clip_gradients
from .decay import DecayGrace

__all__ = ["ActivationPenalty", "Average", "DecayGrace", "clip_gradients"]
