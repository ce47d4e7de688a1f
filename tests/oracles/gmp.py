"""Gradual magnitude pruning after equation 1 of Zhu & Gupta 2017, on dense arrays and masks."""

import math
from fractions import Fraction

import numpy as np


def sparsity_at(start, end, progress):
    """Equation 1 with n dt as the whole time and t0 = 0."""
    return end + (start - end) * (1 - progress) ** 3


def left_of_all(network, budgets, sparsity, progress):
    """How many connections the schedule leaves, never more than there are."""
    positions = sum(layer["mask"].size for layer in network)
    start = 1 - sum(budgets) / positions
    now = sum(int(layer["mask"].sum()) for layer in network)
    alive = sum(bool(layer["mask"].any()) for layer in network)
    return max(alive, min(now, round(positions * (1 - sparsity_at(start, sparsity, progress)))))


def pruned_across_network(network, count):
    """Masks that keep the `count` largest weights of all; of equal ones the first go, and the last of a layer never does."""
    ranked = []
    for index, layer in enumerate(network):
        for place in np.argwhere(layer["mask"]):
            ranked.append((abs(layer["weight"][tuple(place)]), index, tuple(place)))
    masks = [layer["mask"].copy() for layer in network]
    surplus = len(ranked) - count
    for _, index, place in sorted(ranked):
        if surplus and masks[index].sum() > 1:
            masks[index][place] = False
            surplus -= 1
    return masks


def apportioned(total, weights, most, slack=1e-9):
    """Hamilton's method, one seat at a time; whoever is full gives what is over to the others in equal parts.

    With fractions as weights nothing is rounded and `slack` may be 0.
    """
    wishes = [total * weight / sum(weights) for weight in weights] if sum(weights) else [Fraction(total, len(weights))] * len(weights)
    while any(wish > bound + slack for wish, bound in zip(wishes, most, strict=True)):
        over = sum(max(wish - bound, 0) for wish, bound in zip(wishes, most, strict=True))
        vacant = [index for index in range(len(wishes)) if wishes[index] < most[index] - slack]
        wishes = [min(wish, bound) for wish, bound in zip(wishes, most, strict=True)]
        for index in vacant:
            wishes[index] += over / len(vacant)
    seats = [math.floor(wish + slack) for wish in wishes]
    while sum(seats) < total:
        owed = [wishes[index] - seats[index] if seats[index] < most[index] else -1 for index in range(len(seats))]
        seats[next(index for index in range(len(seats)) if owed[index] >= max(owed) - slack)] += 1
    return seats


def pruned_layer_by_layer(network, budgets, sparsity, progress, count):
    """Masks that keep the largest weights of each layer, as many as its own schedule leaves."""
    sizes = [layer["mask"].size for layer in network]
    wishes = [size * (1 - sparsity_at(1 - budget / size, sparsity, progress)) for size, budget in zip(sizes, budgets, strict=True)]
    present = [int(layer["mask"].sum()) for layer in network]
    first = [min(held, 1) for held in present]  # one for each, then the rest
    above = [max(wish - held, 0) for wish, held in zip(wishes, first, strict=True)]
    rest = apportioned(count - sum(first), above, [most - held for most, held in zip(present, first, strict=True)])
    counts = [held + more for held, more in zip(first, rest, strict=True)]
    return [pruned_across_network([layer], count)[0] for layer, count in zip(network, counts, strict=True)]
