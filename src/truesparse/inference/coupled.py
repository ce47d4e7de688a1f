"""Which neurons can only go together? Those whose outputs are added or multiplied, or are one head, as the graph of a model shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from ..nn.wrapped import unwrapped
from .graph.alias import written_while_read
from .graph.channels import OUTPUT, Channels, Operation
from .graph.example import Example, inputs_of
from .graph.layers import weights_of, with_weights
from .graph.operations import Layer, read_operations
from .graph.prune import pruned
from .graph.trace import replaced, trace
from .shrink import built, held_fast, without_cache

STAYS = -1


@dataclass(frozen=True)
class Coupled:
    """The units of a network: neurons, channels or heads, each with all rows that write it and all inputs that read it.

    Attributes:
        count: of units, numbered from 0.
        rows: {layer: [rows] the unit of each, or -1 where it stays}.
        inputs: {layer: [input features or channels] the unit of each, or -1}.
        stays: {layer, or what else may write channels, of which every row stays: why}.
    """

    count: int
    rows: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]
    stays: Mapping[str, str]

    @property
    def families(self) -> Tensor:
        """[count] a number for each unit, the same for all that the same layers write."""
        family = torch.zeros(self.count, dtype=torch.int64, device="cpu")
        for units in self.rows.values():
            member = torch.zeros(self.count, dtype=torch.int64, device="cpu")
            member[units[units != STAYS]] = 1
            family = (2 * family + member).unique(return_inverse=True)[1]
        return family


def coupled(model: nn.Module, example: Example) -> Coupled:
    """What of a model can only go together, and what cannot go at all.

    Args:
        model: left as it is.
        example: as for `shrink`.

    Raises:
        TypeError: if the model cannot be copied or traced; the message says why.
    """
    inside = unwrapped(model)
    with without_cache(inside):
        traced = trace(inside, example)
        closed = held_fast(traced, inside)
        found, heads = _read(traced, closed, follow=True)
        refusal = _refusal(inside, traced, found, heads, closed, example) if heads else ""
    if refusal:
        fewer, _ = _read(traced, closed, follow=False)
        why = f"the Python of the model holds their number, and with fewer {refusal}"
        return replace(fewer, stays={**fewer.stays, **dict.fromkeys(heads & fewer.stays.keys(), why)})
    return found


def without(module: nn.Module, rows: Tensor, inputs: Tensor) -> nn.Module:
    """A layer of the same shape with no connections to these rows or from these inputs (bool)."""
    weights = weights_of(module, trains=True)
    return with_weights(module, weights.keep(~(rows[weights.topology.rows] | inputs[weights.input_of_each()]), weights.bias))


def gone(units: Tensor, removed: Tensor) -> Tensor:
    """Which places have a unit that is `removed` (bool), of the `units` of each."""
    return (units != STAYS) & removed[units.clamp(min=0)] if removed.numel() else torch.zeros_like(units, dtype=torch.bool)


def _read(traced: fx.GraphModule, closed: Mapping[str, str], follow: bool) -> tuple[Coupled, set[str]]:
    """The units, and the layers whose rows are those of heads with a number in the Python of the model."""
    channels = Channels()
    operations = read_operations(traced, channels, trains=True, closed=closed, follow=follow)
    for node in written_while_read(traced) & channels.axes.keys():
        channels.pin(channels.axes[node].atoms, "what is written in place while something else reads it")
    group, reasons = channels.groups(), channels.reasons()
    layers = {one.name: (channels.axes[node].atoms, one.columns) for node, one in operations.items() if isinstance(one, Layer)}
    written = torch.cat([group[rows] for rows, _ in layers.values()]) if layers else torch.empty(0, dtype=torch.int64, device="cpu")
    free = torch.tensor([one for one in written.unique().tolist() if one not in reasons], dtype=torch.int64, device="cpu")
    number = torch.full_like(group, STAYS).scatter(0, free, torch.arange(len(free), device="cpu"))
    rows = {name: number[group[atoms]] for name, (atoms, _) in layers.items()}
    inputs = {name: number[group[atoms]] for name, (_, atoms) in layers.items()}
    stays = {
        name: next(reasons[one] for one in group[layers[name][0]].tolist()) for name, units in rows.items() if bool((units == STAYS).all())
    }
    stays |= {name: why for name, why in closed.items() if name not in stays or stays[name] != OUTPUT}
    return _without_the_only(Coupled(len(free), rows, inputs, stays)), _of_heads(operations, group, layers)


def _without_the_only(found: Coupled) -> Coupled:
    """Neurons of a layer that can only go all together stay."""
    family, members = found.families, torch.zeros(found.count, dtype=torch.int64, device="cpu")
    members.index_add_(0, family, torch.ones_like(family))
    only = members[family] == 1
    rows, inputs = (
        {name: units.masked_fill(gone(units, only), STAYS) for name, units in one.items()} for one in (found.rows, found.inputs)
    )
    alone = {name for name, units in rows.items() if name not in found.stays and bool((units == STAYS).all())}
    reasons = {name: "they can only go all together" if len(rows[name]) > 1 else OUTPUT for name in alone}
    return replace(found, rows=rows, inputs=inputs, stays={**found.stays, **reasons})


def _of_heads(operations: Mapping[fx.Node, Operation], group: Tensor, layers: Mapping[str, tuple[Tensor, Tensor]]) -> set[str]:
    sized = [group[one.atoms] for operation in operations.values() for one in operation.follows()]
    if not sized:
        return set()
    return {name for name, (atoms, _) in layers.items() if bool(torch.isin(group[atoms], torch.cat(sized)).any())}


def _refusal(
    inside: nn.Module, traced: fx.GraphModule, found: Coupled, heads: set[str], closed: Mapping[str, str], example: Example
) -> str:
    """Why the Python of the model cannot do with fewer heads; nothing where it can. Tried: the last of each layer goes."""
    removed = torch.zeros(found.count, dtype=torch.bool, device="cpu")
    families = found.families
    for name in heads:
        units = found.rows[name]
        units = units[units != STAYS]
        for family in families[units].unique() if len(units) else ():
            members = units[families[units] == family]
            removed[members.max()] = bool((members != members.max()).any())
    if not bool(removed.any()):
        return ""
    fewer = {
        name: without(traced.get_submodule(name), gone(found.rows[name], removed), gone(found.inputs[name], removed))
        for name in found.rows
        if bool(gone(found.rows[name], removed).any() | gone(found.inputs[name], removed).any())
    }
    trial = replaced(traced, fewer)
    for node, old in zip(trial.graph.nodes, traced.graph.nodes, strict=True):
        node.meta = dict(old.meta)
    small, resizes, _ = pruned(trial, example, trains=True, closed=closed, follow=True)
    with torch.no_grad():
        expected = trial(*inputs_of(example))
    return built(inside, trial, small, resizes, example, expected)[1]


__all__ = ["OUTPUT", "STAYS", "Coupled", "coupled", "gone", "without"]
