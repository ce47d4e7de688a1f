"""Which connections are the lowest, the highest, or drawn at random, and how many of them in which layer? Pure functions.

Ties go to the earlier position.

Positions are grouped in runs of equal size: positions `g * size` to `(g + 1) * size` compete with one another.
One group is a whole layer, a row, or a window of a row; no function here needs to know which.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import isfinite

import torch
from torch import Tensor

from . import merge

DRAWN_AT_ONCE = 2**20  # so that uniform numbers take no more memory than a few megabytes


def highest(scores: Tensor, counts: Tensor) -> Tensor:
    """Where the `counts[g]` highest scores of each group stand.

    Args:
        scores: [groups, size]; -inf marks what may not be chosen, NaN is chosen after every number.
        counts: [groups] integers, at most the number of scores above -inf. On the CPU, whatever holds the scores, the largest is known.

    Returns:
        [groups, size] bool, with `counts[g]` true entries in row `g`.
    """
    scores = scores.nan_to_num(nan=torch.finfo(scores.dtype).min, posinf=torch.inf, neginf=-torch.inf)
    most = scores.shape[1] if not merge.here(counts) else int(counts.max()) if counts.numel() else 0
    if most == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    counts = merge.sent(counts, scores.device)
    ranked = scores.topk(most, 1).values
    last = ranked.gather(1, (counts - 1).clamp(min=0)[:, None])
    last = last.masked_fill(counts[:, None] == 0, torch.inf)
    above = scores > last
    level = scores == last
    missing = counts - above.sum(1)
    if not merge.here(scores) or bool((level.sum(1) > missing).any()):
        level &= level.cumsum(1) <= missing[:, None]
    return (above | level) & (counts[:, None] > 0)


def lowest(scores: Tensor, count: int) -> Tensor:
    """Ascending indices of the `count` lowest of `scores` [n]."""
    found = merge.lowest(scores, count)
    if found is not None:
        return found
    return _numbers(scores).sort(stable=True).indices[:count].sort().values


def _numbers(scores: Tensor) -> Tensor:
    """`scores` with NaN after every number: it is the last to be the lowest."""
    return (
        scores.nan_to_num(nan=torch.finfo(scores.dtype).max, posinf=torch.inf, neginf=-torch.inf) if scores.is_floating_point() else scores
    )


def weighted(weights: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Positions drawn with replacement in proportion to `weights` [n], all alike where no weight is above 0; [count] int64.

    Args:
        weights: at least 0; NaN counts as 0.
        count: how many to draw.
        generator: CPU generator; None means torch's global one.
    """
    # By where a uniform number falls in the running sum: torch.multinomial takes no more than 2^24 weights.
    running = weights.cpu().double().nan_to_num(nan=0.0).cumsum(0)
    if not running[-1] > 0:
        running = torch.arange(1.0, weights.numel() + 1, dtype=torch.float64, device="cpu")
    places = torch.empty(count, dtype=torch.int64, device="cpu")
    for part in places.split(DRAWN_AT_ONCE):
        uniform = torch.rand(part.numel(), dtype=torch.float64, generator=generator, device="cpu")
        part.copy_(merge.placed(running, uniform.mul_(running[-1])))
    return places


def lowest_of_each(scores: Tensor, groups: Tensor, counts: Tensor, total: int | None = None) -> Tensor:
    """Ascending indices of the `counts[g]` lowest of those `scores` [n] that belong to group g.

    Args:
        scores: [n].
        groups: [n] integers, the group of each score.
        counts: [number of groups] integers, at most the size of the group.
        total: their sum, where it is known.
    """
    if counts.numel() == 1:
        return lowest(scores, int(counts) if total is None else total)
    return merge.places(are_lowest_of_each(scores, groups, counts), total)


def are_lowest_of_each(scores: Tensor, groups: Tensor, counts: Tensor) -> Tensor:
    """Which they are, [n] bool: how many there are together need not be known."""
    order = _numbers(scores).argsort(stable=True)
    groups, within = groups[order].sort(stable=True)
    order, counts = order[within], merge.sent(counts, scores.device)
    starts = torch.searchsorted(groups, torch.arange(counts.numel(), device=groups.device))
    rank = torch.arange(order.numel(), device=order.device) - starts[groups]
    return torch.empty_like(order, dtype=torch.bool).scatter_(0, order, rank < counts[groups])


def highest_of_all(scores: Sequence[Tensor], count: int, least: Sequence[int]) -> list[int]:
    """How many of the `count` highest of all `scores` each of them holds. Of equal ones the earlier are lower, as in `lowest`.

    Args:
        scores: magnitudes, [n] each.
        count: of all together, at least the sum of `least`.
        least: how many of its own highest each holds, whatever the others have.
    """
    sizes = [one.numel() for one in scores]
    own = [highest(one[None], torch.tensor([few], device="cpu"))[0] for one, few in zip(scores, least, strict=True)]
    ranked = torch.cat([one.masked_fill(held, torch.inf) for one, held in zip(scores, own, strict=True)])
    dropped = lowest(ranked, sum(sizes) - count)
    ends = merge.sent(torch.tensor(sizes, device="cpu").cumsum(0), dropped.device)
    lost = merge.counted(torch.bucketize(dropped, ends, right=True), len(sizes))
    return [size - less for size, less in zip(sizes, lost.tolist(), strict=True)]


def shared_out(
    total: int,
    weights: Sequence[float],
    least: Sequence[int],
    most: Sequence[int],
    steps: Sequence[int],
    spared: Sequence[int] | None = None,
) -> list[int]:
    """Whole numbers with a given sum: `least`, and what remains in proportion to `weights`.

    What an entry cannot take, because it reaches its `most`, passes to the others in equal parts. Then each is rounded down to a
    multiple of its step, and what that sets free goes out in steps, largest fraction of a step first; equal ones in order.

    Args:
        total: the sum.
        weights: not negative; if all are zero, equal parts.
        least: where each entry begins.
        most: what each entry can hold, a multiple of its step.
        steps: whole numbers, at least 1. With steps of different sizes the sum may be smaller than `total`, by less than the
            smallest step of an entry that has room for it.
        spared: what an entry has that would have less; the others share the rest. None: 0.

    Raises:
        ValueError: if `total` is less than the sum of `least` or more than that of `most`, or a weight is negative or not finite.
    """
    if not sum(least) <= total <= sum(most):
        raise ValueError(f"{total} cannot be shared out among entries that begin at {list(least)} and hold at most {list(most)}")
    if not all(isfinite(weight) and weight >= 0 for weight in weights):
        raise ValueError(f"weights are finite and not negative, got {list(weights)}")
    # Fractions: rounding must not decide what is a whole number.
    exact, whole = [Fraction(weight) for weight in weights], Fraction(total - sum(least))
    if not any(exact):
        exact = [Fraction(1)] * len(exact)
    shares = [begin + whole * weight / sum(exact) for begin, weight in zip(least, exact, strict=True)]
    while surplus := sum(max(share - bound, Fraction(0)) for share, bound in zip(shares, most, strict=True)):
        room = sum(share < bound for share, bound in zip(shares, most, strict=True))
        shares = [share + surplus / room if share < bound else Fraction(bound) for share, bound in zip(shares, most, strict=True)]
    counts = [int(share) // step * step for share, step in zip(shares, steps, strict=True)]
    order = sorted(range(len(counts)), key=lambda entry: (counts[entry] - shares[entry]) / steps[entry])
    while fitting := [entry for entry in order if counts[entry] + steps[entry] <= min(most[entry], counts[entry] + total - sum(counts))]:
        for entry in fitting:
            if steps[entry] <= total - sum(counts):
                counts[entry] += steps[entry]
    if spared is not None and any(count < few for count, few in zip(counts, spared, strict=True)):
        raised = [max(begin, few) if count < few else begin for begin, count, few in zip(least, counts, spared, strict=True)]
        return shared_out(total, weights, raised, most, steps, spared)
    return counts


def random_absent(present: Tensor, size: int, counts: Tensor, generator: torch.Generator | None) -> Tensor:
    """Positions drawn uniformly, without repeats, among those that are not present.

    Costs time and memory in proportion to what is present and drawn, never to the number of positions
    (a layer with few empty positions is listed: there the positions are hardly more than the connections).

    Args:
        present: [n] int64, ascending occupied positions.
        size: positions in each group.
        counts: [groups] how many to draw in each group.
        generator: CPU generator; None means torch's global one.

    Returns:
        Ascending int64 positions, `counts.sum()` of them.
    """
    total = counts.numel() * size
    wanted = torch.repeat_interleave(torch.arange(counts.numel(), device="cpu"), counts.cpu())
    if total - present.numel() < 4 * wanted.numel() or 2 * present.numel() > total:
        return merge.sent(_drawn_from_list(present.cpu(), total, size, counts.cpu(), generator), present.device)
    return merge.sent(_drawn_by_rejection(present.cpu(), size, wanted, generator), present.device)


def _drawn_from_list(present: Tensor, total: int, size: int, counts: Tensor, generator: torch.Generator | None) -> Tensor:
    free = torch.ones(total, dtype=torch.bool, device="cpu")
    free[present] = False
    absent = free.nonzero().squeeze(1)
    shuffled = absent[torch.randperm(absent.numel(), generator=generator, device="cpu")]
    group, order = (shuffled // max(size, 1)).sort(stable=True)
    starts = torch.searchsorted(group, torch.arange(counts.numel(), device="cpu"))
    rank = torch.arange(group.numel(), device="cpu") - starts[group]
    return shuffled[order][rank < counts[group]].sort().values


def _drawn_by_rejection(present: Tensor, size: int, wanted: Tensor, generator: torch.Generator | None) -> Tensor:
    drawn = torch.empty(0, dtype=torch.int64, device="cpu")
    while wanted.numel():
        keys = torch.randint(size, (wanted.numel(),), generator=generator, device="cpu").add_(wanted, alpha=size)
        drawn, refused = merge.accepted(present, drawn, merge.sort_(keys))
        wanted = refused.div_(size, rounding_mode="floor")
    return drawn
