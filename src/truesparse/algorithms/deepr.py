"""DeepR: a weight that crosses zero goes, another starts at zero at random. Bellec et al. 2018, https://arxiv.org/abs/1711.05136"""

from __future__ import annotations

from math import isnan
from typing import ClassVar

import torch
from torch import Tensor

from ..topology import Move, Topology
from ..topology.merge import sent
from ..topology.patterns import Pattern
from .base import Signals, check_at_least_zero, register


@register
class DeepR:
    """Deep rewiring (algorithm 1 of the paper): a random walk through the networks of one size, biased to those of low loss.

    A weight is w = s theta with a sign s that stays. Each step moves theta by the gradient, by -eta alpha (L1) and by
    sqrt(2 eta T) times normal noise; where theta falls under zero the connection goes dormant, and as many dormant ones, those
    of this step included, start at theta = 0.

    The sign of a connection that starts at zero is kept in its value, as plus or minus zero: that is theta = 0 exactly, and
    every optimizer of torch leaves the sign of a zero alone that it does not move. A theta of exactly zero is active.

    L1 and noise enter as part of the gradient, scaled by the learning rate so that one step of plain SGD is the step above. Other
    optimizers smooth and scale them as they do gradients, and then sample from no distribution that the paper knows. The paper rewires
    to the end. With an `until` before it, the noise ends there too; L1 stays.
    The paper gives each position one sign for ever, which would be a dense array; here, as in the authors' script
    for sparse matrices, a connection draws one whenever it starts. With `every` above 1 a weight that crosses zero in between
    goes unnoticed, and has the other sign from then on.

    Args:
        l1: alpha.
        temperature: T; 0 takes the noise away. The defaults are those of the authors' script at its learning rate of 0.5.
    """

    l1: float = 1e-5
    temperature: float = 2.5e-11

    each_step: ClassVar[bool] = True
    rewiring_ends: ClassVar[float] = 1.0
    sees_previous: ClassVar[bool] = True
    sees_absent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_at_least_zero("l1", self.l1)
        check_at_least_zero("temperature", self.temperature)

    def check_pattern(self, pattern: Pattern) -> None:
        if pattern.couples:
            raise ValueError(f"DeepR drops a connection when its weight crosses zero; with {pattern} they go together, but do not cross so")

    def penalty(self, signals: Signals) -> Tensor:
        """[nnz] alpha s - sqrt(2 T / eta) noise; without the noise once rewiring has ended.

        Raises:
            ValueError: if the optimizer has no learning rate.
        """
        if isnan(signals.learning_rate):
            raise ValueError("DeepR's noise is scaled by the learning rate, and the optimizer's is None: give it one")
        pull = torch.full_like(signals.values, self.l1).copysign(signals.values)
        if not self.temperature or not signals.learning_rate > 0 or signals.progress >= 1:
            return pull
        noise = sent(torch.randn(pull.numel(), generator=signals.generator, device="cpu"), pull.device).to(pull.dtype)
        return pull - (2 * self.temperature / signals.learning_rate) ** 0.5 * noise

    def update(self, topology: Topology, signals: Signals) -> Move:
        values = signals.values
        crossed = (values.signbit() != signals.previous.signbit()) & (values != 0)
        if not bool(crossed.any()):
            return Move.between(topology, topology)
        survivors = topology.drop(torch.cat([crossed.nonzero().squeeze(1), signals.pattern.excess(topology, values.abs())]))
        new = signals.pattern.grow_random(survivors, topology.nnz, signals.generator)
        signs = torch.randint(2, (topology.nnz - survivors.nnz,), generator=signals.generator, device="cpu") * 2.0 - 1.0
        return Move.through(topology, survivors, new, torch.zeros_like(signs).copysign(signs))
