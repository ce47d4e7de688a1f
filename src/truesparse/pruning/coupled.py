"""Which neurons, channels and heads go? Those that can only go together are scored together, over all layers that write them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..common.shown import listed
from ..inference.coupled import OUTPUT, STAYS, Coupled, coupled, gone
from ..inference.graph.example import Example
from ..topology import Topology
from ..topology.budgets import kept
from ..topology.patterns import Unstructured
from .base import Chosen, Criterion
from .candidates import Candidate, candidate_of, whole
from .choose import checked, mended, scores_of
from .compete import Across, Sparsity
from .evidence import evidence_of, needs_of
from .probe import Probe


def units_gone(found: Coupled, scores: Mapping[str, Tensor], sparsity: Sparsity, across: Across) -> Tensor:
    """Which units go, [units] bool. One of each family stays at least.

    Args:
        found: what is coupled.
        scores: [rows, columns] of each layer that may lose rows, minus infinity where there is no connection.
        sparsity: share of the units to remove: of each family ("layer"), or of the weights of all ("network", "normalised"); or of
            single layers by name.
        across: who competes. A family is all units that the same layers write.

    Raises:
        ValueError: if layers that lose the same units have different sparsities, or no unit can go.
    """
    score, size, may = _of_units(found, scores)
    families = found.families
    asked = list(sparsity) if isinstance(sparsity, Mapping) else list(found.rows)
    if not any(bool(may[units[units != STAYS]].any()) for name, units in found.rows.items() if name in asked):
        said = "; ".join(f"{listed(names)} ({why})" for why, names in _by_reason(found, asked).items())
        raise ValueError(f"found nothing to prune: no neuron, channel or head can go of {said}")
    if across != "layer":
        if isinstance(sparsity, Mapping):
            raise ValueError(f"across={across!r} shares one sparsity among all layers: pass a number, got {sparsity}")
        return _lowest_of_all(score, size, families, may, sparsity, across == "normalised")
    removed = torch.zeros_like(may)
    for family, share in _shares(found, families, sparsity).items():
        units = ((families == family) & may).nonzero().flatten()
        count = len(units) - max(kept(len(units), share), 1) if len(units) else 0
        removed[units[score[units].argsort(stable=True)[:count]]] = True
    return removed


def left(topology: Topology, source: Tensor, rows: Tensor, inputs: Tensor) -> Topology:
    """The connections to other rows and from other inputs than these (bool); `source` is the input of each connection."""
    device = topology.device
    return topology.keep(~(rows.to(device)[topology.rows] | inputs.to(device)[source]))


def lost(found: Coupled, removed: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (rows, inputs) that it loses, bool} of the layers that lose any."""
    parts = {name: (gone(found.rows[name], removed), gone(found.inputs[name], removed)) for name in found.rows}
    return {name: (rows, inputs) for name, (rows, inputs) in parts.items() if bool(rows.any()) or bool(inputs.any())}


def warn_of_what_stays(found: Coupled, asked: Sequence[str], spelled: Collection[str], stacklevel: int) -> None:
    """Say so of layers that keep all of their neurons though they were meant; of those that give the outputs where they are `spelled`."""
    meant = [name for name in asked if name in spelled or found.stays.get(name) != OUTPUT]
    by_reason = _by_reason(found, [name for name in meant if name in found.stays or name not in found.rows])
    if by_reason:
        said = "; ".join(f"{listed(names)} ({reason})" for reason, names in by_reason.items())
        warnings.warn(f"some layers keep all of their neurons: {said}. exclude=[...] says that this is meant", stacklevel=stacklevel + 1)


def _by_reason(found: Coupled, names: Sequence[str]) -> dict[str, list[str]]:
    by_reason: dict[str, list[str]] = {}
    for name in names:
        tied = "it is excluded, or they can only go with those of a layer that is"
        why = found.stays.get(name, tied if name in found.rows else "the graph of the model does not have it as a layer of its own")
        by_reason.setdefault(why, []).append(name)
    return by_reason


def _of_units(found: Coupled, scores: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """(mean score of its weights, number of its weights, whether it may go) of each unit."""
    total, size = torch.zeros(found.count, dtype=torch.float64, device="cpu"), torch.zeros(found.count, dtype=torch.float64, device="cpu")
    may = torch.ones(found.count, dtype=torch.bool, device="cpu")
    for name, units in found.rows.items():
        here = units != STAYS
        if name not in scores:
            may[units[here]] = False
            continue
        there = scores[name].isfinite().cpu()
        total.index_add_(0, units[here], scores[name].cpu().double().masked_fill(~there, 0.0).sum(1)[here])
        size.index_add_(0, units[here], there.sum(1).double()[here])
    return total / size.clamp(min=1), size, may


def _lowest_of_all(score: Tensor, size: Tensor, families: Tensor, may: Tensor, sparsity: float, normalised: bool) -> Tensor:
    if normalised:
        squares, counts = torch.zeros_like(score), torch.zeros_like(score)
        squares.index_add_(0, families, score.square())
        counts.index_add_(0, families, torch.ones_like(score))
        score = score / (squares / counts.clamp(min=1)).sqrt()[families].clamp(min=torch.finfo(score.dtype).tiny)
    best = torch.zeros_like(may)
    for family in families[may].unique().tolist():
        own = (families == family).nonzero().flatten()
        best[own[score[own].argmax()]] = True
    order = (may & ~best).nonzero().flatten()
    order = order[score[order].argsort(stable=True)]
    removed = torch.zeros_like(may)
    removed[order[size[order].cumsum(0) <= sparsity * float(size[may].sum())]] = True
    return removed


def _shares(found: Coupled, families: Tensor, sparsity: Sparsity) -> dict[int, float]:
    """The share of its units that each family loses; families of layers that nobody named are not there."""
    if not isinstance(sparsity, Mapping):
        return dict.fromkeys(families.unique().tolist(), sparsity)
    shares: dict[int, float] = {}
    by: dict[int, str] = {}
    for name, value in sparsity.items():
        units = found.rows[name][found.rows[name] != STAYS] if name in found.rows else torch.empty(0, dtype=torch.int64, device="cpu")
        for family in families[units].unique().tolist():
            if shares.setdefault(family, value) != value:
                raise ValueError(
                    f"{by[family]!r} and {name!r} can only lose neurons together, and sparsity says {shares[family]} and {value}: "
                    "name one of them, or both alike"
                )
            by.setdefault(family, name)
    return shares


def choose_coupled(
    candidates: Mapping[str, Candidate],
    sparsity: Sparsity,
    spelled: Collection[str],
    criterion: Criterion,
    across: Across,
    probe: Probe,
    example: Example,
) -> tuple[dict[str, Candidate], dict[str, Chosen]]:
    """The layers that lose rows or inputs, candidates or not, and what stays of each. Nothing changes.

    Args:
        spelled: the layers that the user named one by one.
    """
    found = coupled(probe.model, example)
    free = {name: one for name, one in candidates.items() if name in found.rows and name not in found.stays}
    evidence = evidence_of(free, probe, needs_of(criterion))
    removed = units_gone(found, {name: scores_of(criterion, evidence[name]) for name in free}, sparsity, across)
    changed: dict[str, Candidate] = {}
    chosen: dict[str, Chosen] = {}
    for name, (rows, inputs) in lost(found, removed).items():
        module = probe.model.get_submodule(name)
        one = candidates.get(name) or candidate_of(module, Unstructured())
        present = whole(one.geometry) if one.topology is None else one.topology
        topology = left(present, one.geometry.input_of_each(present), rows, inputs)
        weight = mended(criterion, evidence[name], topology) if name in evidence else one.weight
        changed[name] = replace(one, pattern=Unstructured())
        chosen[name] = checked(name, criterion, Chosen(topology, weight))
    warn_of_what_stays(found, [name for name in candidates if not isinstance(sparsity, Mapping) or name in sparsity], spelled, stacklevel=3)
    return changed, chosen
