"""Where do the outputs of a layer go? What each operation of a graph does with the channels of its inputs.

A tensor that is understood has a channel axis: the features of a linear layer, the channels of a convolution. Each place on it
belongs to an *atom*, a number. Layers make new atoms; what works channel by channel hands them on; an addition ties the atoms that
meet, because they can only be removed together; a concatenation puts them side by side, flattening repeats them. What is not
understood pins the atoms that it reads: those stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .trace import shape_of

OUTPUT = "the output of the model"


@dataclass(frozen=True)
class Constants:
    """Which places of a channel axis hold one number, for every input and at every position, and which number.

    Args:
        known: [extent] bool.
        value: [extent] float64; anything where not known.
    """

    known: Tensor
    value: Tensor

    @classmethod
    def none(cls, extent: int) -> Constants:
        return cls(torch.zeros(extent, dtype=torch.bool, device="cpu"), torch.zeros(extent, dtype=torch.float64, device="cpu"))


@dataclass(frozen=True)
class Axis:
    """The channel axis of a tensor.

    Args:
        dimension: which it is.
        atoms: of each place, [extent] int64.
        heads: whether its places are heads of several channels.
    """

    dimension: int
    atoms: Tensor
    heads: bool = False


@dataclass(frozen=True)
class Resized:
    """A size of channels that stands in the arguments of a call, and so perhaps in the Python of the model.

    Args:
        atoms: of the channels before.
        size: before.
        repeats: places that each of the atoms takes.
    """

    atoms: Tensor
    size: int
    repeats: int

    def left(self, kept: Tensor) -> int:
        """The size where only the `kept` atoms (bool) are left."""
        return int(kept[self.atoms].sum()) * self.repeats


class Operation:
    """What a node does with channels. This one is not understood: it reads everything, and nothing is known of what it gives."""

    def __init__(self, node: fx.Node, inputs: Iterable[fx.Node]) -> None:
        self.node, self.inputs = node, tuple(inputs)

    def constants(self, given: list[Constants], extent: int) -> Constants:
        """What is known of the output, from what is known of each input."""
        return Constants.none(extent)

    def wanted(self, wanted: Tensor) -> list[Tensor | bool]:
        """Which places of each input matter, from those of the output that do; True means all."""
        return [True] * len(self.inputs)

    def written(self) -> Tensor:
        """Atoms whose number stands in the arguments, which only `rewire` changes."""
        return torch.empty(0, dtype=torch.int64, device="cpu")

    def follows(self) -> list[Resized]:
        """Sizes of heads in the arguments: attributes of a module, mostly, which can follow."""
        return []

    def rewire(self, node: fx.Node, kept: Tensor) -> None:
        """Change the arguments of `node`, this node's copy, to a graph in which only the `kept` atoms (bool) are left."""


class Channels:
    """The channel axes of a graph, and which atoms can only be removed together or not at all."""

    def __init__(self) -> None:
        self.axes: dict[fx.Node, Axis] = {}
        self._count = 0
        self._pinned: list[tuple[Tensor, str]] = []
        self._met: list[tuple[Tensor, str]] = []  # pinned too, but where there is another reason, that says more
        self._tied: list[tuple[Tensor, Tensor]] = []

    def fresh(self, extent: int) -> Tensor:
        """New atoms, [extent]."""
        self._count += extent
        return torch.arange(self._count - extent, self._count, device="cpu")

    def pin(self, atoms: Tensor, reason: str = "") -> None:
        """These atoms stay, because of this."""
        self._pinned.append((atoms, reason))

    def pin_other(self, source: fx.Node, node: fx.Node) -> None:
        """What `node` reads for all of its channels alike keeps its own."""
        if source in self.axes:
            self.pin(self.axes[source].atoms, OUTPUT if (what := described(node)) == OUTPUT else f"{what} looks at all of them together")

    def tie(self, atoms: Tensor, others: Tensor) -> None:
        """Each of `atoms` can only be removed together with the one at the same place in `others`."""
        if atoms is not others:
            self._tied.append((atoms, others))

    def axis(self, node: fx.Node, dimension: int) -> Axis | None:
        """The channel axis of a node, if it is or can be that dimension. One that had none gets one that stays as it is."""
        shape = shape_of(node)
        if shape is None or not 0 <= dimension < len(shape):
            return None
        if node not in self.axes:
            self.axes[node] = Axis(dimension, self.fresh(shape[dimension]))
            self._met.append((self.axes[node].atoms, f"they meet what {described(node)} gives"))
        axis = self.axes[node]
        return axis if axis.dimension == dimension else None

    def kept(self, wanted: dict[fx.Node, Tensor]) -> Tensor:
        """Which atoms stay, [atoms] bool: those pinned or wanted somewhere, all that are tied to one of them, and one of each tensor.

        Args:
            wanted: which places matter, of each node with a channel axis.
        """
        kept = torch.zeros(self._count, dtype=torch.bool, device="cpu")
        for atoms, _ in (*self._pinned, *self._met):
            kept[atoms] = True
        for node, places in wanted.items():
            kept[self.axes[node].atoms[places]] = True
        group = self.groups()
        kept = _any_of_group(group, kept)
        for axis in self.axes.values():
            if axis.atoms.numel() and not bool(kept[axis.atoms].any()):  # few operations of torch work on no channels
                kept |= group == group[axis.atoms[0]]
        return kept

    def reasons(self) -> dict[int, str]:
        """{group of atoms that stay: why}"""
        group, found = self.groups(), dict[int, str]()
        for atoms, reason in (*self._pinned, *self._met):
            for one in group[atoms].unique().tolist():
                found[one] = found.get(one) or reason
        return found

    def groups(self) -> Tensor:
        """A number for each atom, the same for all that are tied."""
        group = torch.arange(self._count, device="cpu")
        if not self._tied:
            return group
        one, other = (torch.cat(side) for side in zip(*self._tied, strict=True))
        while True:
            lowest = torch.minimum(group[one], group[other])
            lower = group.scatter_reduce(0, torch.cat([one, other]), torch.cat([lowest, lowest]), "amin")
            lower = lower[lower]
            if torch.equal(lower, group):
                return group
            group = lower


def described(node: fx.Node) -> str:
    """What a node is, in the words of whoever wrote the model."""
    if node.op == "output" or node.target == "structure":
        return OUTPUT
    root = node.graph.owning_module
    if node.op == "call_module" and root is not None:
        return type(root.get_submodule(str(node.target))).__name__
    if node.op in ("placeholder", "get_attr"):
        return f"{node.target!r}"
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    _, *inside = (kind for _, kind in node.meta.get("nn_module_stack", {"": ("", "")}).values())  # torch notes the modules that call it
    return f"{called}() of {str(getattr(inside[-1], '__name__', inside[-1])).rpartition('.')[2]}" if inside else f"{called}()"


def _any_of_group(group: Tensor, flags: Tensor) -> Tensor:
    return torch.zeros_like(flags).index_fill(0, group[flags], True)[group]
