"""Dynamic sparse reparameterization (Mostafa & Wang 2019, algorithm 1) on dense arrays and masks: all of it but the random draws."""

import numpy as np

from oracles.gmp import apportioned


def updated(network, budgets, threshold, fraction, tolerance):
    """(masks of what survives, how many each layer has after growth, the next threshold)."""
    survivors = []
    for layer in network:
        kept = layer["mask"].copy()
        for place in np.argwhere(kept):
            if abs(layer["weight"][tuple(place)]) < threshold:
                kept[tuple(place)] = False
        if layer["mask"].any() and not kept.any():  # all were under it: the largest stays, the first of equals
            magnitudes = np.where(layer["mask"], np.abs(layer["weight"]), -1.0)
            kept.flat[magnitudes.argmax()] = True
        survivors.append(kept)
    surviving = [int(kept.sum()) for kept in survivors]
    dropped = sum(int(layer["mask"].sum()) for layer in network) - sum(surviving)
    vacant = [layer["mask"].size - count for layer, count in zip(network, surviving, strict=True)]
    grown = apportioned(sum(budgets) - sum(surviving), surviving, vacant)
    wanted = fraction * sum(budgets)
    if dropped < (1 - tolerance) * wanted:
        threshold = 2 * threshold
    elif dropped > (1 + tolerance) * wanted:
        threshold = threshold / 2
    return survivors, [count + more for count, more in zip(surviving, grown, strict=True)], threshold
