"""How does a trained network become sparse? What is known of its layers is measured, scored, and the lowest weights are gone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..nn import TopologyLayer
from ..nn.convert import replaced
from ..nn.kinds import Dense, kind_of
from ..nn.selection import Excluded, select
from ..rewiring import rewire
from ..rewiring.optimizers import following
from ..topology import Move, Topology
from ..topology.budgets import Budget, Uniform, kept
from ..topology.budgets import budget as named_budget
from ..topology.patterns import Pattern, Unstructured
from ..topology.patterns import pattern as named_pattern
from .base import Chosen, Criterion, Evidence
from .base import criterion as named_criterion
from .compete import (
    TOGETHER,
    Across,
    EvidenceBudget,
    Sparsity,
    check_sparsity,
    checked_across,
    counts_by_budget,
    counts_by_scores,
    of_layer,
    on_the_way,
    sparsities_by_name,
    strongest,
    usual_across,
    warn_of_starved_layers,
)
from .probe import Batch, Forward, Loss, Probe, Probed, called
from .statistics import STATISTICS

Model = TypeVar("Model", bound=nn.Module)
Need = str | Callable[[Probe], Mapping[str, Tensor]]
EVEN = Uniform(dense_first=False)


@dataclass(frozen=True)
class Candidate(Probed):
    """A layer that may lose weights.

    Attributes:
        pattern: the rule of its topology, fitted.
    """

    pattern: Pattern

    @property
    def weight(self) -> Tensor:
        """[rows, columns], zero where there is no connection."""
        return self.matrix(self.pruned(self.parameter.detach()))

    @property
    def connections(self) -> int:
        """How many there are."""
        return self.parameter.numel() if self.topology is None else self.topology.nnz

    def evidence(self, name: str, statistics: Mapping[str, Tensor], generator: torch.Generator | None) -> list[Evidence]:
        """One for each group, whose rows follow on one another."""
        groups, weight, bias = self.geometry.groups, self.weight, self.module.bias
        masks = [None] * groups if self.topology is None else self.topology.mask().chunk(groups)
        biases = bias.detach().chunk(groups) if isinstance(bias, Tensor) and len(bias) == len(weight) else [None] * groups
        return [
            Evidence(
                name=name,
                weight=part,
                taps=self.geometry.taps,
                present=masks[group],
                bias=biases[group],
                whole=weight,
                statistics={statistic: tensor[group] for statistic, tensor in statistics.items()},
                generator=generator,
            )
            for group, part in enumerate(weight.chunk(groups))
        ]


def prune(
    model: Model,
    sparsity: Sparsity | None = 0.5,
    criterion: str | Criterion = "magnitude",
    data: Iterable[Batch] | None = None,
    *,
    loss: Loss | None = None,
    forward: Forward = called,
    across: Across | None = None,
    budget: str | Budget | EvidenceBudget | None = None,
    pattern: str | Pattern | None = None,
    exclude: Iterable[Excluded] = (),
    include: Iterable[Excluded] = (),
    optimizer: Any = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Make a trained network sparse, in place: weights that matter least are gone, and their memory with them.

        ts.prune(model, 0.5, "sparsegpt", data=batches)
        ts.prune(model, {"encoder.*": 0.7, "*": 0.5}, ts.criteria.Wanda(), data=batches, exclude=["lm_head"])

    Dense linear layers and convolutions become sparse layers, as by `sparsify`; layers that are sparse already lose more. Fine-tune what
    comes out, `ts.save` it, `ts.pack` it. On any error the model is as it was.

    Args:
        model: any model; its layers are found as `sparsify` finds them.
        sparsity: share of the weights to leave out, in [0, 1): of all layers together, or by name pattern, the first that matches
            counting and layers that none matches staying as they are. None where the pattern fixes it.
        criterion: what matters: a name ("magnitude", "wanda", "sparsegpt", ...; see `ts.criteria`) or an object.
        data: batches to measure on, for criteria that want some: tensors, (input, target), or dicts of arguments. Held while this runs.
            The model runs in eval mode, but for batch norms that have seen no data yet, which normalise by the batch.
        loss: of (output, target), a mean over the batch as `F.cross_entropy`, for criteria that want gradients. The target is the second
            of a tuple, "labels" of a dict, otherwise the batch. Without a loss the output itself is taken if it is one number, or its own
            `loss`, as models of transformers give it.
        forward: calls the model on a batch: `forward(model, batch)`. By default a dict is arguments by name, of a tuple the first
            is the input.
        across: who competes: "row" the weights of one output, "layer", "network" all of them, "normalised" all of them with the
            scores of each layer over their root mean square. None is the criterion's own way, mostly "layer", which it is too where a
            pattern, sparsities by name or a budget leave no other.
        budget: how layers share the sparsity unless they compete: "erk", "er", an object; None: all have the same.
        pattern: as in `sparsify`. Layers that are sparse already keep theirs.
        exclude, include: as in `sparsify`.
        optimizer: that of layers which are sparse already, whose state follows. Dense layers get new parameters: build it after this.
        generator: CPU generator of random choices; None is torch's global one.

    Returns:
        The same model (or, if it is itself a layer, the layer that replaces it).

    Raises:
        ValueError: if there is nothing to prune, data or loss are missing, no data reaches a layer, a measurement or a score is not
            finite, or the sparsity or pattern does not fit.
        TypeError: if the model holds layers that cannot be made sparse and are not excluded, which are all named; if the optimizer
            keeps state that cannot follow.

    Warns:
        UserWarning: if competition leaves a layer nearly without connections.
    """
    rule, chosen_by = named_pattern(pattern or Unstructured()), named_criterion(criterion)
    selection = select(model, exclude, include)
    candidates = {name: _dense(layer, rule) for name, layer in selection.layers.items()}
    candidates |= {name: Candidate(layer, layer.geometry, layer.pattern) for name, layer in selection.sparse.items()}
    if not candidates:
        raise ValueError("found nothing to prune: the model has no linear layer or convolution, or all of them are excluded")
    wanted = _wanted(sparsity, candidates, rule)
    if isinstance(wanted, Mapping):
        candidates = {name: candidate for name, candidate in candidates.items() if name in wanted}
    competition = _competition(across, chosen_by, candidates, isinstance(wanted, Mapping) or budget is not None)
    with _opened(model, selection.opened) as running:
        probe = Probe(running, {}, _held(data), forward, loss, generator)
        chosen = choose(candidates, wanted, chosen_by, competition, budget, probe)
    return apply(model, selection.opened, candidates, chosen, optimizer)


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
        evidence = _evidence(candidates, probe, (*_needs(criterion), *_needs(budget)))
        counts, scores = _counts(candidates, evidence, on_the_way(sparsity, done / rounds), criterion, across, budget)
        if done == rounds:
            _check_counts(counts, candidates)
            if across in TOGETHER:
                warn_of_starved_layers(counts, {name: one.geometry.weight_shape for name, one in candidates.items()})
        for name, one in candidates.items():
            count = min(counts[name], one.connections)
            chosen[name] = _checked(name, criterion, _chosen(criterion, evidence[name], one, count, across, scores.get(name)))
        candidates = {name: replace(one, kept=chosen[name].topology) for name, one in candidates.items()}
    return chosen


def apply(
    model: Model,
    opened: Mapping[nn.Module, nn.Module],
    candidates: Mapping[str, Candidate],
    chosen: Mapping[str, Chosen],
    optimizer: Any = None,
) -> Model:
    """Give the layers what was chosen: new sparse ones for the dense, a new topology for the sparse."""
    replacements: dict[nn.Module, nn.Module] = dict(opened)
    moves: list[tuple[TopologyLayer, Pattern, Move, Tensor]] = []
    for name, one in candidates.items():
        topology, values = chosen[name].topology, chosen[name].weight.flatten()[chosen[name].topology.keys]
        if isinstance(one.module, TopologyLayer):
            move = Move.between(one.module.topology, topology.to(one.module.topology.device))
            one.pattern.check(move.new)
            following(one.module, optimizer)  # refuses an optimizer before anything has changed
            moves.append((one.module, one.pattern, move, values))
        else:
            kind = kind_of(one.module)
            assert kind is not None
            new = kind.sparse.from_dense(one.module, topology, pattern=one.pattern, values=values)
            if new.bias is not None:
                new.bias = one.module.bias  # type: ignore[assignment]  # the very one, for those who share it
            replacements[one.module] = new
    for layer, pattern, move, values in moves:
        layer.pattern = pattern
        rewire(layer, optimizer, move)
        with torch.no_grad():
            layer.parameter.copy_(layer.spread(values.to(layer.parameter)))
    return replaced(model, replacements) if replacements else model


def _competition(across: str | None, criterion: Criterion, candidates: Mapping[str, Candidate], shared: bool) -> Across:
    """Who competes, where that and the criterion suit the patterns of all layers.

    Raises:
        ValueError: if they do not.
    """
    patterns = [one.pattern for one in candidates.values()]
    for name, one in candidates.items():
        with of_layer(name):
            getattr(criterion, "check_pattern", lambda pattern: None)(one.pattern)
            if across is not None:
                checked_across(across, one.pattern)
            one.pattern.step(one.geometry.shape)  # refuses a layer that it does not fit
    return usual_across(criterion, patterns, shared) if across is None else across  # type: ignore[return-value]


def _dense(layer: Dense, pattern: Pattern) -> Candidate:
    kind = kind_of(layer)
    assert kind is not None
    geometry = kind.sparse.geometry_of(layer)
    return Candidate(layer, geometry, pattern.fitted(geometry))


def _wanted(sparsity: Sparsity | None, candidates: Mapping[str, Candidate], pattern: Pattern) -> Sparsity:
    if isinstance(sparsity, Mapping):
        return sparsities_by_name(list(candidates), sparsity)
    if sparsity is None and not pattern.fixes_count:
        raise ValueError(f"sparsity=None is for patterns that fix it, as 'nm:2:4' does, and {pattern} does not: pass a share in [0, 1)")
    value = 0.0 if sparsity is None else sparsity
    check_sparsity(value)
    return value


def _held(data: Iterable[Batch] | None) -> Sequence[Batch]:
    if isinstance(data, (Tensor, Mapping)):
        return [data]  # one batch, whose rows are samples, or whose keys are the names of arguments
    return [] if data is None else list(data)


def _needs(one: object) -> tuple[Need, ...]:
    return tuple(getattr(one, "needs", ()))


def _evidence(candidates: Mapping[str, Candidate], probe: Probe, needs: Sequence[Need]) -> dict[str, list[Evidence]]:
    """What is known of each group of each layer.

    Raises:
        ValueError: if there is no data to measure on, none reaches a layer, or what was measured is not finite.
    """
    probe = replace(probe, layers=candidates)
    found: dict[str, dict[str, Tensor]] = {name: {} for name in candidates}
    for need in dict.fromkeys(needs):
        name_of_need, measure = (need, STATISTICS.get(need)) if isinstance(need, str) else (need.__name__, need)
        said = name_of_need.replace("_", " ")
        if measure is None:
            raise ValueError(f"a criterion needs {need!r}, which is no statistic; there are: {', '.join(STATISTICS)}")
        if isinstance(need, str) and not probe.data:
            raise ValueError(f"this criterion looks at {said}: pass data=batches")
        for name, tensor in measure(probe).items():
            if not bool(tensor.isfinite().all()):
                raise ValueError(
                    f"layer {name!r}: {said} on this data is not finite: look for NaN or infinity in the data, or in what the layers "
                    "before it give"
                )
            found[name][name_of_need] = tensor
        missing = [name for name in candidates if name_of_need not in found[name]]
        if missing:
            raise ValueError(
                f"no data reached {', '.join(map(repr, missing))}: pass data that goes through all layers, or exclude those that "
                "it does not"
            )
    return {name: one.evidence(name, found[name], probe.generator) for name, one in candidates.items()}


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
        scores = {name: _scores(criterion, evidence[name]) for name in candidates}
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


def _scores(criterion: Criterion, groups: Sequence[Evidence]) -> Tensor:
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
    found = _scores(criterion, groups) if scores is None else scores
    topology = strongest(found, one.pattern, count, across, one.topology, groups[0].generator)
    return Chosen(topology, mended(criterion, groups, topology))


def mended(criterion: Criterion, groups: Sequence[Evidence], topology: Topology) -> Tensor:
    """[rows, columns] the weights of a layer of which this topology is left, as the criterion mends them if it does."""
    mend = getattr(criterion, "mend", None)
    if mend is None:
        return torch.cat([one.weight for one in groups])
    parts = topology.mask().chunk(len(groups))
    return torch.cat([mend(one, Topology.from_mask(part)) for one, part in zip(groups, parts, strict=True)])


def _checked(name: str, criterion: Criterion, chosen: Chosen) -> Chosen:
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


@contextmanager
def _opened(model: nn.Module, opened: Mapping[nn.Module, nn.Module]) -> Iterator[nn.Module]:
    """The model with these modules opened, so that the layers in them are there to be heard; afterwards it is as it was."""
    if not opened:
        yield model
        return
    holders = [(holder, name, child) for holder in model.modules() for name, child in holder._modules.items() if child in opened]
    for holder, name, child in holders:
        holder._modules[name] = opened[child]  # type: ignore[index]
    try:
        yield opened.get(model, model)
    finally:
        for holder, name, child in holders:
            holder._modules[name] = child
