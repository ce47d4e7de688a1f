"""Of what a recurrent layer gives, what does a model read: the states of all steps, or only the last?"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from ..nn.opened.cells import OpenedCell, has_memory
from ..nn.opened.recurrent import OpenedRecurrent
from .errors import NoC
from .network import Cell, Place, Recurrent
from .stated import Told
from .weights import linear_of


@dataclass(frozen=True)
class Given:
    """What a recurrent layer gives, or a part of it, as torch structures it.

    Args:
        part: "all" (the sequence, the last states), "sequence" (only its last step is read), "last" (of an LSTM with the cells), or
            "hidden" (the last state of each layer).
        last: the last state of each layer.
        sequence: the states of all steps, if they are kept.
        has_cells: whether it is an LSTM.
    """

    part: str
    last: tuple[Place, ...]
    sequence: Place | None
    has_cells: bool

    def item(self, index: Any) -> Given | Place | None:
        """What an index of it gives; None if there is no such part here."""
        if self.part == "all" and index == 0:
            return self.sequence or replace(self, part="sequence")
        if self.part == "all" and index in (1, -1):
            return replace(self, part="last" if self.has_cells else "hidden")
        if self.part == "last" and index == 0:
            return replace(self, part="hidden")
        if self.part == "hidden" and isinstance(index, int) and -len(self.last) <= index < len(self.last):
            return self.last[index]
        return self.last[-1] if self.part == "sequence" and takes_last_step(index) else None


def takes_last_step(index: Any) -> bool:
    """Whether it takes of a batch of sequences the last step."""
    return isinstance(index, tuple) and index[:2] == (slice(None), -1) and all(one == slice(None) for one in index[2:])


def reads_sequence(node: fx.Node) -> bool:
    """Whether anything reads more of the sequence that a recurrent layer gives than its last step."""
    sequences = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    others = [user for user in node.users if user.target is not operator.getitem]
    readers = [user for one in sequences for user in one.users]
    return bool(others) or not all(user.target is operator.getitem and takes_last_step(user.args[1]) for user in readers)


def layers_of(name: str, module: nn.RNNBase | OpenedRecurrent, source: Place, every: bool, buffers: int, told: Told) -> list[Recurrent]:
    """A step for each layer.

    Args:
        name: of the module.
        source: [steps, inputs].
        every: whether the states of all steps are kept of the last layer.
        buffers: how many there are already.
        told: how layers were quantised.

    Raises:
        NoC: if samples do not come first, or it has two directions or a projection.
    """
    if not module.batch_first:
        raise NoC("samples must come first: batch_first=True")
    if module.bidirectional or module.proj_size:
        raise NoC("only in one direction and without a projection: bidirectional=False, proj_size=0")
    opened = module if isinstance(module, OpenedRecurrent) else OpenedRecurrent.opening(module)
    made: list[Recurrent] = []
    for number in range(opened.num_layers):
        keeps = every or number < opened.num_layers - 1
        shape = (source.shape[0], opened.hidden_size) if keeps else (opened.hidden_size,)
        target = Place(buffers + number + 1, shape)
        names = (f"{part}_l{number}" for part in ("ih", "hh"))
        matrices = (told.of(f"{name}.{one}", linear_of(getattr(opened, one))) for one in names)
        made.append(Recurrent(f"{name}.l{number}", source, target, opened.mode, *matrices, every=keeps))
        source = target
    return made


def cell_of(name: str, module: nn.RNNCellBase | OpenedCell, source: Place, before: tuple[Place, ...], target: int, told: Told) -> Cell:
    """A step of one cell.

    Args:
        name: of the module.
        source: [inputs].
        before: the state that it is called with, and the cell; nothing: none.
        target: the buffer that it writes.
        told: how layers were quantised.
    """
    opened = module if isinstance(module, OpenedCell) else OpenedCell.opening(module)
    inputs, state = (told.of(f"{name}.{part}", linear_of(getattr(opened, part))) for part in ("ih", "hh"))
    shape = (2, opened.hidden_size) if has_memory(opened.mode) else (opened.hidden_size,)
    return Cell(name, source, before, Place(target, shape), opened.mode, inputs, state)


def given_by(layers: list[Recurrent], every: bool) -> Given:
    """What these layers give together."""
    last = tuple(Place(one.target.buffer, (one.hidden,), (one.steps - 1) * one.hidden) if one.every else one.target for one in layers)
    return Given("all", last, layers[-1].target if every else None, layers[0].mode == "LSTM")
