"""Perplexity against its definition in float64, and how a model goes on."""

from math import exp

import pytest
import torch
from tiny import model, tokenizer

from truesparse.language import generated, perplexity


def test_perplexity_is_by_definition():
    own = model()
    windows = [torch.randint(61, (1, 9), generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    exact = model().double()
    logarithms = [
        float(exact(input_ids=window).logits[0, place].log_softmax(0)[window[0, place + 1]].detach())
        for window in windows
        for place in range(8)
    ]
    torch.set_float32_matmul_precision("medium")
    try:
        assert perplexity(own.train(), windows) == pytest.approx(exp(-sum(logarithms) / len(logarithms)), rel=1e-5)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert not own.training


@pytest.mark.parametrize(("windows", "said"), [([], "no windows to score"), ([torch.zeros(1, 1, dtype=torch.long)], "two tokens or more")])
def test_nothing_to_score_is_refused(windows, said):
    with pytest.raises(ValueError, match=said):
        perplexity(model(), windows)


def test_a_model_goes_on_by_its_likeliest_tokens():
    own, words = model(), tokenizer()
    tokens = words("w3 w5", return_tensors="pt").input_ids
    for _ in range(4):
        tokens = torch.cat([tokens, own(input_ids=tokens).logits[:, -1:].argmax(-1)], 1)
    assert generated(own, words, "w3 w5", tokens=4) == words.decode(tokens[0], skip_special_tokens=True)
