"""What keeps sparse training stable: penalties on activations, decay that spares what has just grown, averages of weights.

Gradients are clipped by `torch.nn.utils.clip_grad_norm_`: a `Rewirer` sees it.
Warm-up of the learning rate is a schedule: `truesparse.topology.schedules.warmup`.
"""

from .activations import ActivationPenalty
from .averages import Average
from .decay import DecayGrace

__all__ = ["ActivationPenalty", "Average", "DecayGrace"]
