"""Models of transformers: each of their matrices can be sparse, and trains, is written, packed and made dense again."""

import copy

import pytest
import torch
from torch import nn
from wholes import check_files, check_packing, check_twins

import truesparse as ts
from truesparse.nn import OpenedConv1D, topology_layers

transformers = pytest.importorskip("transformers")

VOCABULARY = 40
HEAD = {"exclude": ("lm_head",)}


def bert():
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return transformers.BertForSequenceClassification(config)


def gpt2(**settings):
    sizes = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **off, **settings))


def llama():
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, **sizes, tie_word_embeddings=False)
    return transformers.LlamaForCausalLM(config)


def t5():
    sizes = {"d_model": 16, "d_ff": 32, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=VOCABULARY, **sizes, dropout_rate=0.0))


def vit():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, **off, image_size=8, patch_size=4))


def words():
    return torch.randint(VOCABULARY, (2, 6), generator=torch.Generator().manual_seed(3))


PACKED = ("GPT-2", "ViT")  # torch.export takes seconds for each model
MODELS = {
    "BERT": (bert, lambda: {"input_ids": words()}, {}),
    "GPT-2": (gpt2, lambda: {"input_ids": words()}, HEAD),
    "Llama": (llama, lambda: {"input_ids": words()}, {}),
    "T5": (t5, lambda: {"input_ids": words(), "decoder_input_ids": words().flip(1)}, HEAD),
    "ViT": (vit, lambda: {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))}, {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_they_train_as_their_masked_twins(name):
    make, example, settings = MODELS[name]
    check_twins(make(), example(), lambda model: torch.optim.AdamW(model.parameters(), 1e-3), **settings)


@pytest.mark.parametrize("name", MODELS)
def test_files_packing_and_the_way_back(name, tmp_path):
    make, example, settings = MODELS[name]
    model, expected = check_files(make(), example(), tmp_path, **settings)
    if name in PACKED:
        check_packing(model, example(), expected)


@pytest.mark.parametrize("pattern", ["nm:2:4", "fan-in"])
def test_gpt2_in_patterns(pattern, tmp_path):
    check_files(gpt2(), {"input_ids": words()}, tmp_path, sparsity=0.5, pattern=pattern, **HEAD)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_both_kinds_of_attention_train_the_same(attention):
    model = gpt2(attn_implementation=attention)
    check_twins(model, {"input_ids": words()}, lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), **HEAD)


def test_a_conv1d_is_a_linear_layer_with_its_weight_transposed():
    conv1d = transformers.pytorch_utils.Conv1D(12, 5)
    nn.init.normal_(conv1d.bias)
    conv1d.bias.requires_grad_(False)
    dense, x = copy.deepcopy(conv1d), torch.randn(2, 3, 5)
    opened = ts.sparsify(conv1d, 0.5, from_weights=True)
    assert isinstance(opened, OpenedConv1D)
    assert opened.linear.geometry.shape == (12, 5)
    assert (opened.nf, opened.nx) == (12, 5)
    assert opened.weight.shape == (5, 12)
    kept = dense.weight.detach().abs() > dense.weight.detach().abs().flatten().kthvalue(30).values
    torch.testing.assert_close(opened(x), x @ (dense.weight * kept) + dense.bias)
    torch.testing.assert_close(opened.weight.detach() + 0, dense.weight.detach() * kept)
    closed = ts.densify(opened)
    assert type(closed) is type(dense)
    assert (closed.nf, closed.nx) == (12, 5)
    assert [one.requires_grad for one in closed.parameters()] == [True, False]
    torch.testing.assert_close(closed(x), opened(x))


def test_all_matrices_of_gpt2_are_sparse_and_named_as_in_the_model():
    model = ts.sparsify(gpt2(), 0.8, sparsities={"*.c_attn": 0.5}, **HEAD)
    layers = topology_layers(model)
    inside = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert set(layers) == {f"transformer.h.0.{name}.linear" for name in inside}
    assert layers["transformer.h.0.attn.c_attn.linear"].topology.sparsity == 0.5


def test_subclasses_of_conv1d_are_refused():
    class Own(transformers.pytorch_utils.Conv1D):
        pass

    with pytest.raises(TypeError, match=r"layer '0' \(Own\) cannot be made sparse: it is a subclass of Conv1D whose own behaviour"):
        ts.sparsify(nn.Sequential(Own(4, 4), nn.Linear(4, 4)), 0.5)
