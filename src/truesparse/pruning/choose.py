"""What stays of each layer? As the criterion scores it, among those that compete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ..topology import Topology
from ..topology.budgets import Budget, Uniform, kept
from ..topology.budgets import budget as named_budget
from ..topology.patterns import Pattern
from .base import Chosen, Criterion, Evidence
from .candidates import Candidate
from .compete import (
    TOGETHER,
    Across,
    EvidenceBudget,
    Sparsity,
    counts_by_budget,
    counts_by_scores,
    on_the_way,
    strongest,
    warn_of_starved_layers,
)
from .evidence import evidence_of, needs_of
from .probe import Probe

EVEN = Uniform(dense_first=False)


def choose(
    candidates: Mapping[str, Candidate],
    sparsity: Sparsity,
    criterion: Criterion,
    across: Across,
    budget: str | Budget | EvidenceBudget | None,
    probe: Probe,
) -> dict[str, Chosen]:
    """What stays of each layer. Nothing changes."""
    if across in TOGETHER and (isinstance(sparsity, Mapping) or budget is not None):
        what = "a budget" if budget is not None else "sparsities by name"
        raise ValueError(f"across={across!r} shares one sparsity among all layers, and so would {what}: pass one of them, got {sparsity}")
    rounds = 1 if all(one.pattern.fixes_count for one in candidates.values()) else getattr(criterion, "rounds", 1)
    chosen: dict[str, Chosen] = {}
    for done in range(1, rounds + 1):
        evidence = evidence_of(candidates, probe, (*needs_of(criterion), *needs_of(budget)))
        counts, scores = _counts(candidates, evidence, on_the_way(sparsity, done / rounds), criterion, across, budget)
        if done == rounds:
            _check_counts(counts, candidates)
            if across in TOGETHER:
                warn_of_starved_layers(counts, {name: one.geometry.weight_shape for name, one in candidates.items()})
        for name, one in candidates.items():
            count = min(counts[name], one.connections)
            chosen[name] = checked(name, criterion, _chosen(criterion, evidence[name], one, count, across, scores.get(name)))
        candidates = {name: replace(one, kept=chosen[name].topology) for name, one in candidates.items()}
    return chosen


def _counts(
    candidates: Mapping[str, Candidate],
    evidence: Mapping[str, Sequence[Evidence]],
    sparsity: Sparsity,
    criterion: Criterion,
    across: Across,
    budget: str | Budget | EvidenceBudget | None,
) -> tuple[dict[str, int], dict[str, Tensor]]:
    """(how many connections each layer keeps, the scores [rows, columns] of each if they had to be known for that).

    Raises:
        ValueError: if sparsities by name are given together with a budget.
    """
    patterns = {name: one.pattern for name, one in candidates.items()}
    shapes = {name: one.geometry.weight_shape for name, one in candidates.items()}
    if across in TOGETHER:
        scores = {name: scores_of(criterion, evidence[name]) for name in candidates}
        assert not isinstance(sparsity, Mapping)
        total = kept(sum(prod(shape) for shape in shapes.values()), sparsity)
        present = {name: one.connections for name, one in candidates.items()}
        return counts_by_scores(scores, patterns, present, total, across == "normalised"), scores
    if budget is not None and isinstance(sparsity, Mapping):
        raise ValueError("a budget shares one sparsity among the layers: pass a number, or sparsities by name and no budget")
    if isinstance(budget, EvidenceBudget):
        assert not isinstance(sparsity, Mapping)
        return counts_by_budget(shapes, patterns, budget.sparsities(evidence, sparsity), EVEN), {}
    return counts_by_budget(shapes, patterns, sparsity, EVEN if budget is None else named_budget(budget)), {}


def scores_of(criterion: Criterion, groups: Sequence[Evidence]) -> Tensor:
    """[rows, columns] of all groups, lowest where there is no connection.

    Raises:
        ValueError: if they are not of that shape, or not finite.
    """
    parts: list[Tensor] = []
    for evidence in groups:
        part = criterion.scores(evidence)
        if part.shape != evidence.weight.shape:
            kind = type(criterion).__name__
            raise ValueError(f"{kind}.scores must be of shape {tuple(evidence.weight.shape)}, got {tuple(part.shape)}")
        if not bool(part.isfinite().all()):
            raise ValueError(
                f"layer {evidence.name!r}: the scores of {type(criterion).__name__} are not finite: its weights may be NaN or infinite"
            )
        parts.append(part if evidence.present is None else part.masked_fill(~evidence.present, -torch.inf))
    return torch.cat(parts)


def _check_counts(counts: Mapping[str, int], candidates: Mapping[str, Candidate]) -> None:
    """
    Raises:
        ValueError: if a layer has fewer connections than are to stay.
    """
    for name, one in candidates.items():
        if counts[name] > one.connections:
            raise ValueError(
                f"layer {name!r} has {one.connections} connections, fewer than the {counts[name]} that this sparsity leaves: "
                "ask for a higher one, or exclude it"
            )


def _chosen(criterion: Criterion, groups: Sequence[Evidence], one: Candidate, count: int, across: Across, scores: Tensor | None) -> Chosen:
    choose = getattr(criterion, "choose", None)
    if choose is not None and across not in TOGETHER:
        return _joined([choose(group, one.pattern, part) for group, part in zip(groups, _parts(count, groups, one.pattern), strict=True)])
    found = scores_of(criterion, groups) if scores is None else scores
    topology = strongest(found, one.pattern, count, across, one.topology, groups[0].generator)
    return Chosen(topology, mended(criterion, groups, topology))


def mended(criterion: Criterion, groups: Sequence[Evidence], topology: Topology) -> Tensor:
    """[rows, columns] the weights of a layer of which this topology is left, as the criterion mends them if it does."""
    mend = getattr(criterion, "mend", None)
    if mend is None:
        return torch.cat([one.weight for one in groups])
    parts = topology.mask().chunk(len(groups))
    return torch.cat([mend(one, Topology.from_mask(part)) for one, part in zip(groups, parts, strict=True)])


def checked(name: str, criterion: Criterion, chosen: Chosen) -> Chosen:
    """
    Raises:
        ValueError: if the weights of what stays are not of the shape of the layer, or not finite.
    """
    topology, weight = chosen
    if weight.shape != topology.shape or not bool(weight.flatten()[topology.keys].isfinite().all()):
        raise ValueError(
            f"layer {name!r}: {type(criterion).__name__} gives weights of shape {tuple(weight.shape)} for {topology}, which must be of its "
            "shape and finite: its weights or the data may be NaN or infinite"
        )
    return chosen


def _parts(count: int, groups: Sequence[Evidence], pattern: Pattern) -> list[int]:
    """`count` connections for groups of equal size."""
    share, more = divmod(count, len(groups))
    shape = groups[0].weight.shape[0], groups[0].weight.shape[1]
    return [pattern.round(shape, share + (place < more)) for place in range(len(groups))]


def _joined(parts: Sequence[Chosen]) -> Chosen:
    if len(parts) == 1:
        return parts[0]
    return Chosen(Topology.from_mask(torch.cat([part.topology.mask() for part in parts])), torch.cat([part.weight for part in parts]))
