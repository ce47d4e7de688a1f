"""A sparse network and its dense twin in float64, and one look at both whenever the sparse one rewires.

What a training script does is played on the two alike (events.py). The twin's `weight.grad` then is, by torch's own autograd, the
dense gradient whose entries at the connections are `values.grad`: what an algorithm must be shown.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from truesparse import MaskedConv2d, MaskedLinear, Rewirer, SparseConv2d, SparseLinear, Topology

INPUT = (4, 3, 3)
LAYERS = ("convolution", "enter", "hidden", "full")


class Network(nn.Module):
    """A grouped convolution, a layer with an empty row, one that runs as often as asked, and one with all connections."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution: nn.Module = nn.Conv2d(4, 6, (3, 2), stride=2, padding=1, groups=2)
        self.enter: nn.Module = nn.Linear(24, 7)
        self.hidden: nn.Module = nn.Linear(7, 7)
        self.full: nn.Module = nn.Linear(7, 3)

    def forward(self, x: Tensor, hidden: int = 1) -> Tensor:
        h = torch.tanh(self.convolution(x))
        h = torch.tanh(self.enter(h.flatten(1)))
        for _ in range(hidden):
            h = h + torch.tanh(self.hidden(h))
        return self.full(h)


def loss_of(y: Tensor) -> Tensor:
    return 0.1 * (y * torch.arange(1, 4, dtype=y.dtype)).pow(2).sum() + y.sum()


@dataclass
class Side:
    """One of the two networks, and what a script keeps beside it.

    Attributes:
        weights: by layer, what stands for its connections: `values`, the masked weight, or the twin's whole weight.
        mask: by layer, 1 at the connections in the shape of its weight.
        pending: losses whose backward pass is still to come.
        hooks: that events have registered.
    """

    model: Network
    weights: dict[str, nn.Parameter]
    optimizer: SGD
    mask: Callable[[str], Tensor | float]
    seed: int = 0
    pending: list[Tensor] = field(default_factory=list)
    hooks: list[Any] = field(default_factory=list)

    def batch(self, size: int = 3) -> Tensor:
        return torch.randn(size, *INPUT, generator=torch.Generator().manual_seed(self.seed), dtype=torch.float64)

    def loss(self, x: Tensor | None = None, hidden: int = 1) -> Tensor:
        return loss_of(self.model(self.batch() if x is None else x, hidden))

    def trained(self) -> dict[str, nn.Parameter]:
        return {name: weight for name, weight in self.weights.items() if weight.requires_grad}

    def gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.model.parameters() if parameter.grad is not None]


@dataclass
class Shown:
    """What an algorithm was shown of one layer: a tensor, or the error that it got in its place."""

    topology: Topology
    gradients: Tensor | RuntimeError
    absent: dict[str, Tensor | RuntimeError]


class Spy:
    """Notes what it is shown; if it `moves`, drops one connection of each layer and grows another."""

    def __init__(self, moves: bool, replaces_step: bool) -> None:
        self.moves, self.replaces_step = moves, replaces_step
        self.shown: dict[str, Shown] = {}

    def update(self, topology: Topology, signals: Any) -> Topology:
        rows = topology.shape[0]
        everywhere = Topology.from_mask(torch.ones(topology.shape, dtype=torch.bool))
        self.shown[signals.name] = Shown(
            topology,
            tried(lambda: signals.gradients.clone()),
            {
                "rows": tried(lambda: signals.absent.rows(0, rows).clone()),
                "parts": tried(lambda: torch.cat([signals.absent.rows(row, row + 1) for row in range(rows)])),
                "at": tried(lambda: signals.absent.at(everywhere).view(topology.shape)),
            },
        )
        if not self.moves or topology.nnz in (0, topology.size):
            return topology
        return signals.pattern.grow_random(topology.drop(torch.tensor([0])), topology.nnz, signals.generator)


def tried(read: Callable[[], Tensor]) -> Tensor | RuntimeError:
    try:
        return read()
    except RuntimeError as error:
        return error


NOTHING = "took part in no backward pass since the last step()"


class Trial:
    """A sparse network with a Rewirer, its twin, and what has happened to both.

    Args:
        masked: take masked layers.
        every: steps between two rewirings.
        moves: whether rewirings change the topologies.
        replaces_step: whether they take the place of the optimizer's step.
        attached: whether the optimizer's own hooks call `rewirer.step()`.

    Attributes:
        excused: layers whose gradient holds what cannot be known of absent connections: the user's own numbers, say. An error is right.
        lasting: layers with hooks that excuse them as long as they are there.
        compared: looks at a layer that were equal.
        refused: looks at a layer, or whole steps, that ended in an error that was excused.
        over: such an error has ended the trial.
    """

    def __init__(
        self, masked: bool = False, every: int = 1, moves: bool = False, replaces_step: bool = False, attached: bool = False
    ) -> None:
        torch.manual_seed(0)
        dense = Network().double()
        model = copy.deepcopy(dense)
        linear, convolution = (MaskedLinear, MaskedConv2d) if masked else (SparseLinear, SparseConv2d)
        for name in LAYERS:
            layer: Any = dense.get_submodule(name)
            mask = torch.rand(layer.weight.flatten(1).shape) < (1.1 if name == "full" else 0.4)
            if name == "enter":
                mask[2] = False
            setattr(model, name, (convolution if name == "convolution" else linear).from_dense(layer, Topology.from_mask(mask)))
        self.layers: dict[str, Any] = {name: model.get_submodule(name) for name in LAYERS}
        values = {name: layer.parameter for name, layer in self.layers.items()}
        whole: dict[str, Any] = {name: dense.get_submodule(name).weight for name in LAYERS}
        self.sparse = Side(model, values, SGD(model.parameters(), 0.01), lambda name: 1.0)
        self.dense = Side(dense, whole, SGD(dense.parameters(), 0.0), lambda name: self.layers[name].topology.mask().view_as(whole[name]))
        self.spy, self.attached = Spy(moves, replaces_step), attached
        self.rewirer = Rewirer(model, self.sparse.optimizer, self.spy, every, generator=torch.Generator().manual_seed(1))
        if attached:
            self.rewirer.attach()
        self.excused: set[str] = set()
        self.lasting: set[str] = set()
        self.compared = self.refused = 0
        self.over = False
        self.synchronise()

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.sparse, self.dense

    @torch.no_grad()
    def synchronise(self) -> None:
        """Give the twin the weights that the sparse network has now. Graphs of before are of no use on either side."""
        for name, layer in self.layers.items():
            self.dense.weights[name].copy_(layer.to_dense())
            self.dense.model.get_submodule(name).bias.copy_(layer.bias)
        for side in self.sides:
            side.pending = []

    def play(self, event: Any) -> None:
        """One event on both sides."""
        if self.over:
            return
        for side in self.sides:
            side.seed += 1
        try:
            event.play(self)
        except RuntimeError as error:
            if not event.excuses or not any(repr(name) in str(error) for name in LAYERS):
                raise
            self.refused += 1
            self.over = True
        held = {name for name, weight in self.dense.weights.items() if _something(weight.grad)}
        self.lasting |= set(event.lasting)
        self.excused = (self.excused | set(event.excuses) | self.lasting) & held

    def step(self, closure: Callable[[Side], Tensor] | None = None) -> None:
        """One step of rewirer and optimizer; where it rewires, what was shown is compared."""
        self.spy.shown = {}
        before = self.rewirer.rewirings
        if closure is not None:
            closure(self.dense)
        expected = {
            name: None if weight.grad is None else weight.grad.detach().flatten(1).clone() for name, weight in self.dense.weights.items()
        }
        trained = self.sparse.trained()
        try:
            if self.attached:
                self.sparse.optimizer.step(None if closure is None else lambda: float(closure(self.sparse).detach()))
            else:
                if closure is not None:
                    closure(self.sparse)
                if self.rewirer.step():
                    self.sparse.optimizer.step()
        except RuntimeError as error:
            self._refused(error, [name for name in trained if _something(expected[name])])
            self.over = True
            return
        if self.rewirer.rewirings > before:
            for name in trained:
                self._compare(name, expected[name])
        self.synchronise()

    def _refused(self, error: RuntimeError, with_gradient: list[str]) -> None:
        if not with_gradient and NOTHING in str(error):
            return  # zeros everywhere, which no topology should be made of
        excused = any(name in self.excused and repr(name) in str(error) for name in with_gradient)
        assert excused or not with_gradient, f"refused without need: {error}"
        self.refused += 1

    def _compare(self, name: str, expected: Tensor | None) -> None:
        shown = self.spy.shown.get(name)
        if not _something(expected):  # the layer may be left out, refuse, or say that there is nothing
            answers = [] if shown is None else [shown.gradients, *shown.absent.values()]
            wrong = [answer for answer in answers if isinstance(answer, Tensor) and bool(answer.count_nonzero())]
            assert not wrong, f"layer {name!r} has no gradient, and was shown one"
            return
        assert shown is not None, f"layer {name!r} has a gradient and was left out"
        assert isinstance(shown.gradients, Tensor), f"layer {name!r} has a gradient: {shown.gradients}"
        torch.testing.assert_close(
            shown.gradients, expected.flatten()[shown.topology.keys], rtol=1e-8, atol=1e-10, msg=f"the twin itself: {name}"
        )
        exists = shown.topology.mask()
        for what, found in shown.absent.items():
            if isinstance(found, RuntimeError):
                self._refused(found, [name] if _something(expected) else [])
                continue
            for where, here in (("absent", ~exists), ("present", exists)):
                wrong = ~torch.isclose(found[here], expected[here], rtol=1e-8, atol=1e-10, equal_nan=True)
                assert not wrong.any(), (
                    f"layer {name!r}, {what}: {int(wrong.sum())} of {wrong.numel()} {where} positions are not the dense gradient, "
                    f"{found[here][wrong][0]} in place of {expected[here][wrong][0]}"
                )
            self.compared += 1


def _something(gradient: Tensor | None) -> bool:
    return gradient is not None and bool(gradient.count_nonzero())
