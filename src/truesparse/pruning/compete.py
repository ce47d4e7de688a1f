"""Who competes with whom? The weights of an output, of a layer or of the whole network; and so how many stay in each layer."""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from math import prod
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from ..topology import Topology
from ..topology.budgets import Budget, kept
from ..topology.patterns import FanIn, Pattern, Unstructured
from ..topology.select import highest, highest_of_all, shared_out
from .base import Criterion, Evidence

Across = Literal["row", "layer", "network", "normalised"]
TOGETHER = ("network", "normalised")
Sparsity = float | Mapping[str, float]


@runtime_checkable
class EvidenceBudget(Protocol):
    """A budget that looks at the layers: how much each can spare. Optional: `needs`, as a criterion has it."""

    def sparsities(self, layers: Mapping[str, Sequence[Evidence]], sparsity: float) -> Mapping[str, float]:
        """The sparsity of each layer, all together `sparsity`.

        Args:
            layers: what is known of each group of each layer.
            sparsity: share of the weights of all layers to leave out.
        """
        ...


def checked_across(across: str, pattern: Pattern) -> Across:
    """
    Raises:
        ValueError: if there is no such competition, or the pattern has one of its own.
    """
    if across not in get_args(Across):
        raise ValueError(f"across is one of {', '.join(map(repr, get_args(Across)))}, got {across!r}")
    by_row = isinstance(pattern, (Unstructured, FanIn)) and not pattern.couples
    if across == "row" and not by_row and not pattern.fixes_count:
        raise ValueError(f"across='row' lets the weights of one output compete, and {pattern} decides otherwise: pass across='layer'")
    if across in TOGETHER and pattern.fixes_count:
        raise ValueError(f"{pattern} gives each layer its number of connections, so that layers cannot compete: pass across='layer'")
    return across  # type: ignore[return-value]


def usual_across(criterion: Criterion, patterns: Sequence[Pattern], shared: bool) -> Across:
    """How weights compete if nobody says: the criterion's own way, or within each layer where that is decided otherwise.

    Args:
        criterion: what matters.
        patterns: of the layers. Some have a competition of their own.
        shared: whether sparsities by name, or a budget, say how much each layer keeps.
    """
    own = getattr(criterion, "across", "layer")
    if shared and own in TOGETHER:
        return "layer"
    usual = checked_across(own, Unstructured())
    try:
        for pattern in patterns:
            checked_across(usual, pattern)
    except ValueError:
        return "layer"
    return usual


def sparsities_by_name(names: Sequence[str], wanted: Mapping[str, float]) -> dict[str, float]:
    """What the first matching name pattern says of each layer; layers that none matches are not there.

    Raises:
        ValueError: if a pattern matches nothing, or a sparsity is outside [0, 1).
    """
    for glob, value in wanted.items():
        check_sparsity(value, f"the sparsity of {glob!r}")
        if not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(f"sparsity names {glob!r}, which matches no layer; there are: {', '.join(names)}")
    found = {name: next((glob for glob in wanted if fnmatchcase(name, glob)), None) for name in names}
    return {name: wanted[glob] for name, glob in found.items() if glob is not None}


def check_sparsity(value: float, what: str = "sparsity") -> None:
    """
    Raises:
        ValueError: if it is no share of the weights, or all of them.
    """
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{what} is the share of the weights to leave out and lies in [0, 1), got {value}")


def on_the_way(sparsity: Sparsity, progress: float) -> Sparsity:
    """The sparsity at a share of the way there, along which what is left falls by a constant factor."""
    if progress == 1:
        return sparsity
    if isinstance(sparsity, Mapping):
        return {name: 1 - (1 - value) ** progress for name, value in sparsity.items()}
    return 1 - (1 - sparsity) ** progress


def counts_by_budget(
    shapes: Mapping[str, tuple[int, ...]], patterns: Mapping[str, Pattern], sparsity: Sparsity, budget: Budget
) -> dict[str, int]:
    """How many connections each layer keeps when each competes for itself.

    Args:
        shapes: of the dense weights.
        patterns: fitted to the layers.
        sparsity: of all together, shared by the budget; or that of each layer.
        budget: of those that share one sparsity.
    """
    given = (
        {name: kept(prod(shapes[name]), sparsity[name]) for name in shapes}
        if isinstance(sparsity, Mapping)
        else budget.counts(shapes, sparsity)
    )
    return {name: rounded(name, patterns[name], shapes[name], given[name]) for name in shapes}


def counts_by_scores(
    scores: Mapping[str, Tensor], patterns: Mapping[str, Pattern], present: Mapping[str, int], total: int, normalised: bool
) -> dict[str, int]:
    """How many connections each layer keeps when the weights of all compete for `total`; no layer loses its last.

    Weights that live and die together have their mean score, so that large units do not win by their size.

    Args:
        scores: [rows, columns] of each layer, -inf where it has no connection.
        patterns: fitted to the layers.
        present: connections that there are now.
        total: of all together.
        normalised: divide the scores of a layer by their root mean square.
    """
    names = list(scores)
    flat = [_unit_means(scores[name], patterns[name], normalised) for name in names]
    steps = [patterns[name].step(_matrix(scores[name])) for name in names]
    least = [min(step, present[name]) for step, name in zip(steps, names, strict=True)]
    most = [present[name] for name in names]
    total = max(min(total, sum(most)), sum(least))
    shares = highest_of_all(flat, total, least)
    above = [max(share - few, 0) for share, few in zip(shares, least, strict=True)]
    return dict(zip(names, shared_out(total, above, least, most, steps), strict=True))


def warn_of_starved_layers(counts: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Say so of layers that competition has nearly pruned away."""
    sizes = {name: (shape[0], prod(shape[1:])) for name, shape in shapes.items()}
    starved = [name for name, count in counts.items() if count < min(sizes[name]) and count < prod(sizes[name])]
    if starved:
        said = ", ".join(f"{name!r} ({counts[name]} of {prod(sizes[name])})" for name in starved)
        warnings.warn(
            f"nearly pruned away, with fewer connections than they have outputs or inputs: {said}. Their scores are small beside those "
            "of other layers: exclude them, pass across='normalised' or across='layer', or ask for less sparsity",
            stacklevel=4,
        )


def strongest(
    scores: Tensor, pattern: Pattern, count: int, across: Across, present: Topology | None, generator: torch.Generator | None
) -> Topology:
    """The `count` connections of highest `scores`, those of a row competing with one another where `across` says so.

    Args:
        scores: [rows, columns], -inf where there is no connection.
        pattern: fitted to the layer.
        count: a legal number of connections, at most as many as there are.
        across: who competes.
        present: which connections there are; None: all.
        generator: decides between equal ones.
    """
    by_row = across == "row" and isinstance(pattern, Unstructured)
    if present is None:
        ranks = pattern.ranks(scores, generator)
        if by_row:
            return Topology.from_mask(highest(ranks, alike(torch.full_like(ranks[:, 0], scores.shape[1], dtype=torch.int64), count)))
        return pattern.strongest(ranks, count)
    keys = present.keys
    ranks = pattern.ranks(scores, generator).flatten()[keys] if pattern.couples else _ranks(scores.flatten()[keys], generator)
    if by_row:
        return present.drop(FanIn().excess(present, ranks, due=alike(present.fan_in.long(), count)))
    return pattern.trim(present, ranks, count)


def alike(held: Tensor, count: int) -> Tensor:
    """[n] whole numbers that sum up to `count`, at most those `held` [n]: each as many as the others, or all it has; the first one more."""
    level = bisect_right(range(int(held.max()) + 1), count, key=lambda most: int(held.clamp(max=most).sum())) - 1
    due = held.clamp(max=level)
    due[(held > level).nonzero().flatten()[: count - int(due.sum())]] += 1
    return due


def rounded(name: str, pattern: Pattern, shape: tuple[int, ...], count: int) -> int:
    """The nearest legal count.

    Raises:
        ValueError: if the pattern does not fit the layer, which is named.
    """
    with of_layer(name):
        return pattern.round((shape[0], prod(shape[1:])), count)


@contextmanager
def of_layer(name: str) -> Iterator[None]:
    """Errors within name the layer."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def _ranks(scores: Tensor, generator: torch.Generator | None) -> Tensor:
    """The rank of each of the scores [n]; equal ones are ranked in random order."""
    return Unstructured().ranks(scores[None], generator)[0]


def _unit_means(scores: Tensor, pattern: Pattern, normalised: bool) -> Tensor:
    """The score of each connection [connections], which is the mean of its unit."""
    rows, columns = _matrix(scores)
    height, width = pattern.unit((rows, columns))
    if (height, width) != (1, 1):
        means = scores.view(rows // height, height, columns // width, width).mean((1, 3))
        scores = means.repeat_interleave(height, 0).repeat_interleave(width, 1)
    scores = scores[scores > -torch.inf]
    return scores / scores.square().mean().sqrt().clamp(min=torch.finfo(scores.dtype).tiny) if normalised else scores


def _matrix(scores: Tensor) -> tuple[int, int]:
    return scores.shape[0], scores.shape[1]
