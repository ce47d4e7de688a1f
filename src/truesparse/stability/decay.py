"""How can connections that begin at zero grow large enough to stay? Weight decay spares them for their first steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..rewiring import Rewirer
from ..topology import Move

# Coupled, but for AdamW and for groups with decoupled_weight_decay.
KNOWN = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.Adamax,
    torch.optim.ASGD,
    torch.optim.RMSprop,
)


class DecayGrace:
    """For its first `steps` steps of the optimizer, a grown connection is trained as with `weight_decay=0`; all else decays as ever.

        rewirer = Rewirer(model, optimizer, RigL())
        grace = DecayGrace(rewirer, steps=100)

    and nothing else in the loop. With decay coupled to the gradient (SGD, Adam, ...: weight_decay x value is added to it) and decoupled
    (AdamW: values shrink by learning rate x weight_decay; Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101) alike. To the bit:
    the decay of a step in which some connection is spared is done here, with the optimizer's own arithmetic, and its `weight_decay` is 0
    for that step only.

    No paper prescribes it in this form. The reason is that of Liu et al. 2021 (ITOP, https://arxiv.org/abs/2102.02887, section 3): grown
    connections start at zero and are the first to be dropped by magnitude, unless they get the time to become large.

    Args:
        rewirer: grows the connections; its optimizer decays them.
        steps: of the optimizer, at least 1.

    Raises:
        ValueError: if `steps` is less than 1.
        TypeError: if it is not known how the optimizer decays.
    """

    def __init__(self, rewirer: Rewirer, steps: int) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"steps must be a whole number, at least 1, got {steps!r}")
        optimizer = rewirer.optimizer
        if not isinstance(optimizer, KNOWN):
            known = ", ".join(kind.__name__ for kind in KNOWN)
            raise TypeError(f"it is not known how {type(optimizer).__name__} decays weights; known are {known}")
        self.rewirer, self.grace = rewirer, steps
        self.layers = rewirer.layers
        self.steps = 0
        self._spared_to = {name: _never(layer.topology.nnz, layer.topology.device) for name, layer in self.layers.items()}
        self._latest = 0  # no connection is spared after this step
        self._rewirer_steps = rewirer.steps
        self._decays: list[tuple[dict[str, Any], float]] = []
        self._gradients: list[tuple[torch.nn.Parameter, Tensor, Tensor]] = []
        self._handles = [
            rewirer.register_hook(self._after_rewiring),
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]
        rewirer.rewire_last()

    def detach(self) -> None:
        """Spare nothing any longer."""
        for handle in self._handles:
            handle.remove()

    def state_dict(self) -> dict[str, Any]:
        """Where this object stands: steps so far, and to which step each connection is spared."""
        return {"steps": self.steps, "spared_to": {name: array.clone() for name, array in self._spared_to.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` stood. Load the states of model and rewirer first.

        Raises:
            ValueError: if the state is of other layers, or of layers with other numbers of connections.
        """
        found = {name: len(array) for name, array in state["spared_to"].items()}
        held = {name: layer.topology.nnz for name, layer in self.layers.items()}
        if found != held:
            raise ValueError(f"expected the state of layers with {held} connections, got {found}: load the model's own state first")
        self.steps = state["steps"]
        self._spared_to = {name: state["spared_to"][name].clone().to(layer.topology.device) for name, layer in self.layers.items()}
        self._latest = max((int(array.max()) for array in self._spared_to.values() if array.numel()), default=0)
        self._rewirer_steps = self.rewirer.steps

    def _after_rewiring(self, moves: Mapping[str, Move]) -> None:
        self._latest = self.steps + self.grace
        for name, move in moves.items():
            self._spared_to[name] = move(self._spared_to[name], fill=self._latest)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.rewirer.steps == self._rewirer_steps:
            raise RuntimeError("the rewirer has not stepped: call rewirer.step() before optimizer.step(), or rewirer.attach() once")
        if any(argument is not None for argument in (*args[1:], *kwargs.values())):
            raise RuntimeError("weight decay cannot spare connections where the optimizer calls a closure: call backward() before step()")
        self._rewirer_steps = self.rewirer.steps
        if all(parameter.grad is None for group in optimizer.param_groups for parameter in group["params"]):
            return  # a step that attach() leaves out
        self.steps += 1
        if self.steps > self._latest:
            return
        spared = {id(layer.parameter): self._spared(name) for name, layer in self.layers.items()}
        for group in optimizer.param_groups:
            if not group["weight_decay"]:
                continue
            decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
            self._decays.append((group, group["weight_decay"]))
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._decay(parameter, group, spared.get(id(parameter)), decoupled)
            group["weight_decay"] = 0.0

    def _decay(self, parameter: torch.nn.Parameter, group: Mapping[str, Any], spared: Tensor | None, decoupled: bool) -> None:
        weight_decay = group["weight_decay"]
        if decoupled:
            shrunk = parameter * (1 - group["lr"] * weight_decay)
            parameter.copy_(shrunk if spared is None else torch.where(spared, parameter, shrunk))
            return
        gradient = parameter.grad
        assert gradient is not None
        decaying = parameter if spared is None else parameter.masked_fill(spared, 0.0)
        sign = -1 if group.get("maximize") else 1  # those optimizers turn the gradient round before they add the decay
        decayed = gradient.add(decaying, alpha=sign * weight_decay)
        parameter.grad = decayed
        self._gradients.append((parameter, decayed, gradient))

    def _after_step(self, *_: Any) -> None:
        for group, weight_decay in self._decays:
            group["weight_decay"] = weight_decay
        for parameter, decayed, gradient in self._gradients:
            if parameter.grad is decayed:
                parameter.grad = gradient
        self._decays, self._gradients = [], []

    def _spared(self, name: str) -> Tensor:
        """Which entries of the layer's parameter are spared in this step."""
        layer = self.layers[name]
        return layer.spread((self._spared_to[name] >= self.steps).to(torch.uint8)).bool()


def _never(count: int, device: torch.device) -> Tensor:
    return torch.zeros(count, dtype=torch.int32, device=device)
