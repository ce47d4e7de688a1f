"""How does a trained network become sparse? What is known of its layers is measured, scored, and the lowest weights are gone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from ..inference.graph.example import Example
from ..nn.convert import standing_in
from ..nn.opened import OpenedEmbedding
from ..nn.selection import Excluded, also_opened, select
from ..topology.budgets import Budget
from ..topology.patterns import Neurons, Pattern, Unstructured
from ..topology.patterns import pattern as named_pattern
from .base import Criterion
from .base import criterion as named_criterion
from .candidates import Candidate, apply, candidates_of
from .choose import choose
from .compete import (
    Across,
    EvidenceBudget,
    Sparsity,
    check_sparsity,
    checked_across,
    of_layer,
    sparsities_by_name,
    usual_across,
)
from .coupled import choose_coupled
from .evidence import held
from .probe import Batch, Forward, Loss, Probe, called

Model = TypeVar("Model", bound=nn.Module)


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
    example: Example | None = None,
    exclude: Iterable[Excluded] = (),
    include: Iterable[Excluded] = (),
    optimizer: Any = None,
    generator: torch.Generator | None = None,
) -> Model:
    """Make a trained network sparse, in place: weights that matter least are gone, and their memory with them.

        ts.prune(model, 0.5, "sparsegpt", data=batches)
        ts.prune(model, {"encoder.*": 0.7, "*": 0.5}, ts.criteria.Wanda(), data=batches, exclude=["lm_head"])
        ts.prune(model, 0.5, pattern="neurons", example=batch)  # then ts.shrink(model, batch) is smaller, and dense again

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
        example: an input, as for `shrink`, for the pattern "neurons": neurons, channels and attention heads whose outputs are added,
            multiplied or looked at together go together, scored by the mean over the weights of all layers that write them, and the
            layers that read them lose those inputs, so that `shrink` can remove them. `sparsity` is then the share of the neurons, and of
            the heads, of each set of layers that share them.
        exclude, include: as in `sparsify`. With an example, an excluded layer keeps its neurons and loses inputs that are gone.
        optimizer: that of layers which are sparse already, whose state follows. Dense layers get new parameters: build it after this.
        generator: CPU generator of random choices; None is torch's global one.

    Returns:
        The same model (or, if it is itself a layer, the layer that replaces it).

    Raises:
        ValueError: if there is nothing to prune, data or loss are missing, no data reaches a layer, a measurement or a score is not
            finite, the sparsity or pattern does not fit, or the optimizer holds weights of dense layers.
        TypeError: if the model holds layers that cannot be made sparse and are not excluded, which are all named; if the optimizer
            keeps state that cannot follow.

    Warns:
        UserWarning: if competition leaves a layer nearly without connections; with an example, of layers that keep all of their neurons,
            and why, other than those that give the outputs of the model and are not named one by one.
    """
    pattern = Neurons() if pattern is None and example is not None else pattern
    rule, chosen_by = named_pattern(pattern or Unstructured()), named_criterion(criterion)
    if example is not None and (rule != Neurons() or budget is not None):
        raise ValueError(f"an example is for whole neurons: pass pattern='neurons' and no budget, got {rule} and budget={budget!r}")
    selection = select(model, exclude, include)
    candidates = candidates_of(selection, rule)
    if not candidates:
        raise ValueError("found nothing to prune: the model has no linear layer or convolution, or all of them are excluded")
    wanted = wanted_of(sparsity, candidates, rule)
    if isinstance(wanted, Mapping) and example is None:
        candidates = {name: candidate for name, candidate in candidates.items() if name in wanted}
    competition = _competition(across, chosen_by, candidates, isinstance(wanted, Mapping) or budget is not None)
    # Of a table and an output layer that are one, neither can lose anything alone.
    opened = {old: new for old, new in selection.opened.items() if example is None or not isinstance(new, OpenedEmbedding)}
    if example is not None:
        opened |= also_opened(model, selection.opened)  # excluded ones lose inputs
    with standing_in(model, opened) as running:
        probe = Probe(running, {}, held(data), forward, loss, generator)
        if example is None:
            chosen = choose(candidates, wanted, chosen_by, competition, budget, probe)
        else:
            spelled = [name for name in sparsity if name in candidates] if isinstance(sparsity, Mapping) else []
            candidates, chosen = choose_coupled(candidates, wanted, spelled, chosen_by, competition, probe, example)
    changed = {one.module for one in candidates.values()}
    opened = {old: new for old, new in opened.items() if not changed.isdisjoint(new.modules())}
    return apply(model, opened, candidates, chosen, optimizer)


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


def wanted_of(sparsity: Sparsity | None, candidates: Mapping[str, Candidate], pattern: Pattern) -> Sparsity:
    if isinstance(sparsity, Mapping):
        return sparsities_by_name(list(candidates), sparsity)
    if sparsity is None and not pattern.fixes_count:
        raise ValueError(f"sparsity=None is for patterns that fix it, as 'nm:2:4' does, and {pattern} does not: pass a share in [0, 1)")
    value = 0.0 if sparsity is None else sparsity
    check_sparsity(value)
    return value
