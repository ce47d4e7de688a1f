"""Language models of transformers lose heads and hidden neurons: the smaller ones are the pruned ones, train on, and generate."""

import copy

import pytest
import torch

import truesparse as ts

transformers = pytest.importorskip("transformers", reason="the extra transformers is not installed")

VOCABULARY = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**VOCABULARY, initializer_range=0.5, tie_word_embeddings=True, **sizes))


def qwen3():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.Qwen3Config(**VOCABULARY, initializer_range=0.5, head_dim=8, tie_word_embeddings=True, **sizes)
    model = transformers.Qwen3ForCausalLM(config)
    for layer in model.model.layers:  # norms of queries and keys that do something
        for norm in (layer.self_attn.q_norm, layer.self_attn.k_norm):
            torch.nn.init.normal_(norm.weight)
    return model


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**VOCABULARY, n_positions=16, n_embd=16, n_layer=2, n_head=4, initializer_range=0.5)
    )


def t5(**settings):
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(**VOCABULARY, decoder_start_token_id=0, **sizes, **settings)
    return transformers.T5ForConditionalGeneration(config)


def gated_t5():
    return t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False)


# What is left of each kind of layer, outputs first, and of the layers that stay because norms look at what they write.
HALVED = {
    llama: {"q_proj": (8, 16), "k_proj": (4, 16), "v_proj": (4, 16), "gate_proj": (12, 16), "up_proj": (12, 16)},
    qwen3: {"q_proj": (16, 16), "k_proj": (8, 16), "v_proj": (8, 16), "gate_proj": (12, 16), "up_proj": (12, 16)},
    gpt2: {"c_attn": (24, 16), "c_fc": (32, 16)},
    t5: {"q": (8, 16), "k": (8, 16), "v": (8, 16), "wi": (12, 16), "relative_attention_bias": (2, 32)},
    gated_t5: {"q": (8, 16), "k": (8, 16), "v": (8, 16), "wi_0": (12, 16), "wi_1": (12, 16), "relative_attention_bias": (2, 32)},
}
STREAM = {
    llama: {"o_proj": (16, 8), "down_proj": (16, 12)},
    qwen3: {"o_proj": (16, 16), "down_proj": (16, 12)},
    gpt2: {"attn.c_proj": (16, 8), "mlp.c_proj": (16, 32)},
    t5: {"o": (16, 8), "wo": (16, 12)},
    gated_t5: {"o": (16, 8), "wo": (16, 12)},
}


def inputs(make):
    ids = torch.randint(2, 40, (2, 5), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids} | ({"decoder_input_ids": ids[:, :3].flip(1)} if make in (t5, gated_t5) else {})


def shape(module):
    rows, columns = module.weight.shape
    return (columns, rows) if type(module).__name__ in ("Conv1D", "Embedding") else (rows, columns)


@pytest.fixture(scope="module", params=HALVED, ids=lambda make: make.__name__)
def made(request):
    """(how, the model, pruned, shrunk)"""
    make = request.param
    torch.manual_seed(0)
    model, x = make().double().eval(), inputs(make)
    pruned = ts.prune(copy.deepcopy(model), 0.5, example=x, exclude=[*(f"*.{name}" for name in STREAM[make]), "lm_head"])
    assert pruned.config.use_cache
    small = ts.shrink(pruned, x)
    assert small.config.use_cache
    return make, model, pruned, small


def test_half_of_the_heads_and_of_the_hidden_neurons_are_gone(made):
    make, model, _, small = made
    for name, one in small.named_modules():
        for end, expected in (HALVED[make] | STREAM[make]).items():
            if name.endswith(f".{end}"):
                assert (name, shape(one)) == (name, expected)
    assert sum(one.numel() for one in small.parameters()) < 0.75 * sum(one.numel() for one in model.parameters())
    assert [(name, type(one)) for name, one in small.named_modules()] == [(name, type(one)) for name, one in model.named_modules()]


def test_the_small_model_is_the_pruned_one_and_trains_on(made):
    make, model, pruned, small = made
    for x in (inputs(make), {name: ids[:1].repeat(3, 2) for name, ids in inputs(make).items()}):
        y, smaller = pruned(**x).logits, small(**x).logits
        assert not torch.allclose(y, model(**x).logits, atol=1e-2)
        torch.testing.assert_close(smaller, y, rtol=1e-10, atol=1e-10)
    one, other, x = copy.deepcopy(pruned), copy.deepcopy(small), inputs(make)
    for network in (one, other):
        optimizer = torch.optim.SGD(network.parameters(), 0.01)
        for _ in range(2):
            optimizer.zero_grad()
            network(**x).logits.square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(other(**x).logits, one(**x).logits, rtol=1e-8, atol=1e-8)
    assert not torch.allclose(other(**x).logits, small(**x).logits, atol=1e-4)


def test_the_small_model_generates_the_same(made):
    make, _, pruned, small = made
    new = {"max_new_tokens": 4, "do_sample": False}
    x = {"input_ids": inputs(make)["input_ids"]}
    assert torch.equal(small.generate(**x, **new), pruned.generate(**x, **new))


def test_tied_embeddings_stay_tied():
    torch.manual_seed(0)
    model, x = llama().double().eval(), inputs(llama)
    small = ts.shrink(ts.prune(model, 0.5, example=x, exclude=["*.o_proj", "*.down_proj", "lm_head"]), x)
    assert small.model.embed_tokens.weight is small.lm_head.weight


def test_a_relative_position_keeps_the_columns_of_the_heads_that_stay(made):
    make, model, pruned, small = made
    if make not in (t5, gated_t5):
        pytest.skip("has no relative positions")
    for stack in ("encoder", "decoder"):
        before, left, after = (getattr(one, stack).block[0].layer[0].SelfAttention for one in (model, pruned, small))
        heads = (left.q.to_dense() != 0).any(1).view(4, 4).any(1)
        assert torch.equal(after.relative_attention_bias.weight, before.relative_attention_bias.weight[:, heads])
        assert after.relative_attention_bias.weight.requires_grad


def test_the_reason_why_the_stream_stays_names_the_norm():
    reasons = {gpt2: r"c_proj\.linear' \(LayerNorm looks", qwen3: r"down_proj' \(mean\(\) of Qwen3RMSNorm looks"}
    for make, reason in reasons.items():
        with pytest.warns(UserWarning, match=reason + r" at all of them together\); 'lm_head' \(it shares its weight with '"):
            ts.prune(make(), 0.5, example=inputs(make))
