"""How sparse after each round, where pruning and fine-tuning take turns?"""

from __future__ import annotations

from typing import Literal, get_args

from .compete import check_sparsity

Spacing = Literal["exponential", "linear", "polynomial"]


def rounds(
    sparsity: float, count: int = 8, spacing: Spacing = "exponential", *, start: float = 0.0, power: float = 3.0
) -> tuple[float, ...]:
    """The sparsity after each round of pruning, the last one `sparsity`: for a loop with one's own fine-tuning in it.

        ts.prune(model, 0.0)                       # sparse layers with all connections: what the optimizer holds stays
        optimizer = torch.optim.Adam(model.parameters())
        for sparsity in ts.pruning.rounds(0.95, 8):
            ts.prune(model, sparsity, optimizer=optimizer)
            fine_tune(model, optimizer)

    Args:
        sparsity: in the end, in [0, 1).
        count: rounds, at least 1.
        spacing: "exponential": each round takes the same share of what is left, as lottery tickets are found (Frankle and Carbin 2019,
            https://arxiv.org/abs/1803.03635); "linear": each takes the same number; "polynomial": fewer and fewer, along equation 1 of
            Zhu and Gupta 2017 (https://arxiv.org/abs/1710.01878), whose power is 3.
        start: sparsity before the first round, at most `sparsity`.
        power: of "polynomial".

    Raises:
        ValueError: if an argument is out of its range.
    """
    check_sparsity(sparsity)
    check_sparsity(start, "start")
    if start > sparsity:
        raise ValueError(f"pruning goes from start up to sparsity, got {start} and {sparsity}")
    if count < 1:
        raise ValueError(f"count is the number of rounds, at least 1, got {count}")
    if spacing not in get_args(Spacing):
        raise ValueError(f"spacing is one of {', '.join(map(repr, get_args(Spacing)))}, got {spacing!r}")
    if not power > 0:
        raise ValueError(f"power must be greater than 0, got {power}")
    way = [number / count for number in range(1, count)]
    if spacing == "exponential":
        between = [1 - (1 - start) * ((1 - sparsity) / (1 - start)) ** share for share in way]
    else:
        between = [sparsity + (start - sparsity) * (1 - share) ** (1 if spacing == "linear" else power) for share in way]
    return (*between, sparsity)
