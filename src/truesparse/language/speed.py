"""How fast does a language model read a prompt, and how fast does it write what follows?"""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from time import perf_counter

import torch
from torch import nn

PROMPT, GENERATED, ROUNDS = 128, 32, 3  # tokens, tokens, turns


def tokens_a_second(models: Mapping[str, nn.Module]) -> dict[str, tuple[float, float]]:
    """By model: tokens a second of a prompt of 128, and of 32 that its `generate` appends one by one; medians of three turns.

    Args:
        models: of transformers, by name; each in turn, so that a machine that is busy for a while is busy for all.
    """
    vocabulary = min(int(model.config.vocab_size) for model in models.values())  # type: ignore[union-attr, arg-type]
    prompt = torch.randint(vocabulary, (1, PROMPT), generator=torch.Generator().manual_seed(0), device="cpu")

    def seconds(model: nn.Module, tokens: int) -> float:
        start = perf_counter()
        lengths = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        model.generate(prompt, attention_mask=torch.ones_like(prompt), **lengths, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        return perf_counter() - start

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for _ in range(1 + ROUNDS):  # the first warms caches
        for name, model in models.items():
            first = seconds(model, 1)
            times[name].append((PROMPT / first, GENERATED / max(seconds(model, 1 + GENERATED) - first, 1e-9)))
    return {name: (median(one for one, _ in own[1:]), median(other for _, other in own[1:])) for name, own in times.items()}
