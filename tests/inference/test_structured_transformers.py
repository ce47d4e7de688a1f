"""A language model of transformers with grouped queries and tied embeddings loses groups of heads and hidden neurons, and generates."""

import copy

import pytest
import torch

import truesparse as ts

transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")


def test_a_llama_loses_groups_of_heads():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=40, initializer_range=0.5, tie_word_embeddings=True, **sizes)).double().eval()
    x = {"input_ids": torch.randint(0, 40, (2, 5))}
    pruned = ts.prune(copy.deepcopy(model), 0.5, example=x, exclude=["*.o_proj", "*.down_proj", "lm_head"])
    assert pruned.config.use_cache
    small = ts.shrink(pruned, x)
    assert small.config.use_cache
    for layer in small.model.layers:
        shapes = {name: tuple(one.weight.shape) for name, one in layer.named_modules() if isinstance(one, torch.nn.Linear)}
        attention = {"q_proj": (8, 16), "k_proj": (4, 16), "v_proj": (4, 16), "o_proj": (16, 8)}
        perceptron = {"gate_proj": (12, 16), "up_proj": (12, 16), "down_proj": (16, 12)}
        assert shapes == {f"self_attn.{k}": v for k, v in attention.items()} | {f"mlp.{k}": v for k, v in perceptron.items()}
    y, smaller = pruned(**x).logits, small(**x).logits
    assert not torch.allclose(y, model(**x).logits, atol=1e-2)
    torch.testing.assert_close(smaller, y, rtol=1e-10, atol=1e-10)
    y.square().mean().backward()
    smaller.square().mean().backward()
    embedding = small.model.embed_tokens.weight
    assert embedding is small.lm_head.weight
    torch.testing.assert_close(embedding.grad, pruned.model.embed_tokens.weight.grad, rtol=1e-10, atol=1e-10)
    new = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(small.generate(**x, **new), pruned.generate(**x, **new))
