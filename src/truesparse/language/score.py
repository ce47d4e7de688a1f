"""How well does a language model go on with a text? By the probability of what follows, and by what it writes itself."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def perplexity(model: nn.Module, windows: Iterable[Tensor]) -> float:
    """exp of the mean negative log-likelihood of each token after the first, mean over windows.

    Products are of float32 whatever `torch.set_float32_matmul_precision` says. The model is in eval mode afterwards.

    Args:
        model: of transformers.
        windows: [1, tokens] int64, all of one length.

    Raises:
        ValueError: if there is no window, or one of a single token.
    """
    model.eval()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    losses: list[float] = []
    try:
        for window in windows:
            if window.shape[-1] < 2:
                raise ValueError(f"a window needs two tokens or more, got {tuple(window.shape)}")
            losses.append(float(F.cross_entropy(model(input_ids=window, use_cache=False).logits[0, :-1], window[0, 1:])))
    finally:
        torch.set_float32_matmul_precision(before)
    if not losses:
        raise ValueError("there are no windows to score")
    return exp(sum(losses) / len(losses))


def generated(model: nn.Module, tokenizer: Any, prompt: str, tokens: int = 32) -> str:
    """The prompt and how the model goes on from it, by its likeliest tokens."""
    given = tokenizer(prompt, return_tensors="pt")
    found = model.generate(**given, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)  # type: ignore[operator]
    return tokenizer.decode(found[0], skip_special_tokens=True)
