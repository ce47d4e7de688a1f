"""Encoders, decoders and whole transformers of torch with sparse attention: no fast path of torch reads what is not there."""

import copy

import pytest
import torch
from torch import nn
from wholes import check_files, check_packing, check_twins, outputs, seeded

import truesparse as ts
from truesparse.nn import OpenedAttention, topology_layers

SIZES = {"dim_feedforward": 32, "dropout": 0.0}


def encoder(**settings):
    options = {**SIZES, "batch_first": True, **settings}
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, **options), 2, enable_nested_tensor=options["batch_first"])


def drawn(*shape):
    return torch.randn(*shape, generator=seeded(3))


PACKED = ("encoder", "transformer")  # torch.export takes seconds for each model
MODELS = {
    "encoder": (lambda: encoder(), lambda: (drawn(3, 5, 16),)),
    "encoder, places first, norm first": (lambda: encoder(batch_first=False, norm_first=True), lambda: (drawn(5, 3, 16),)),
    "decoder": (lambda: nn.TransformerDecoderLayer(16, 2, **SIZES, batch_first=True), lambda: (drawn(3, 4, 16), drawn(3, 5, 16))),
    "transformer": (lambda: nn.Transformer(16, 2, 1, 1, 32, 0.0, bias=False, batch_first=True), lambda: (drawn(3, 5, 16), drawn(3, 4, 16))),
}


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        lambda model: torch.optim.AdamW(model.parameters(), 1e-2),
    ],
    ids=["SGD", "AdamW"],
)
def test_they_train_as_their_masked_twins(name, optimizer):
    make, example = MODELS[name]
    check_twins(make(), example(), optimizer)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("name", MODELS)
def test_files_packing_and_the_way_back(name, tmp_path):
    make, example = MODELS[name]
    model, expected = check_files(make(), example(), tmp_path)
    if name not in PACKED:
        return
    packed = check_packing(model, example(), expected)
    joined = [row.layer for row in packed.explain().rows if "q_proj" in row.layer and " + " in row.layer]
    assert joined, "query, key and value of self-attention read one tensor"


@pytest.mark.parametrize("pattern", ["nm:2:4", "fan-in"])
def test_patterns(pattern, tmp_path):
    check_files(encoder(), (drawn(3, 5, 16),), tmp_path, sparsity=0.5, pattern=pattern)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", [{}, {"activation": "gelu"}, {"norm_first": True}, {"batch_first": False}], ids=str)
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_an_encoder_gives_what_the_dense_one_with_the_same_zeros_gives(masked, settings, monkeypatch):
    model = encoder(**settings).eval()
    dense = copy.deepcopy(model)
    ts.sparsify(model, 0.75, masked=masked, generator=seeded())
    for name, attention in model.named_modules():
        if isinstance(attention, OpenedAttention):
            parts = [getattr(attention, part) for part in ("q_proj", "k_proj", "v_proj")]
            own = dense.get_submodule(name)
            own.in_proj_weight.data = torch.cat([part.to_dense().detach() for part in parts])
            own.out_proj.weight.data = attention.out_proj.to_dense().detach()
    for layer in (f"layers.{index}.linear{place}" for index in (0, 1) for place in (1, 2)):
        dense.get_submodule(layer).weight.data = model.get_submodule(layer).to_dense().detach()
    x, padding = drawn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    x = x if model.layers[0].self_attn.batch_first else x.transpose(0, 1)
    padding[1, 3:] = True
    seen = ~padding if model.layers[0].self_attn.batch_first else ~padding.t()
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    for call in ({}, {"src_key_padding_mask": padding}, {"mask": causal, "is_causal": True}, {"mask": causal}):
        expected = dense.train()(x, **call).detach()  # dropout is 0, and training takes no fast path
        for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with context():
                torch.testing.assert_close(model(x, **call)[seen], expected[seen])
    kind, called = type(model.layers[0].linear1), []
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda layer, y: called.append(layer) or forward(layer, y))
    with torch.no_grad():
        model(x)
    assert set(called) == set(topology_layers(model).values()), "torch's fast path would have read dense weights instead"
    assert len(called) == 2 * 6


def test_a_compiled_encoder_has_one_graph_and_gives_the_same_gradients():
    model, x = ts.sparsify(encoder(), 0.8), drawn(3, 5, 16)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for one in (model, compiled):
        model.zero_grad()
        output = one(x)
        output.square().mean().backward()
        found.append([output.detach(), *(parameter.grad for parameter in model.parameters())])
    torch.testing.assert_close(*found)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_is_dense_again_takes_the_fast_path_again():
    model, x = encoder().eval(), drawn(3, 5, 16)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True

    def taken():
        return [layer.activation_relu_or_gelu for layer in model.layers], model.use_nested_tensor

    before = taken()
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)  # the fast path gives zeros for what is padded
        assert not expected[padding].any()
        ts.sparsify(ts.sparsify(model, 0.0, exclude=("layers.1",)), 0.0)
        assert taken() == ([0, 0], False)
        assert model(x, src_key_padding_mask=padding)[padding].any()
        ts.densify(model)
        assert taken() == before == ([1, 1], True)
        torch.testing.assert_close(model(x, src_key_padding_mask=padding), expected)


def test_state_dicts_go_from_one_sparse_model_to_another():
    one, other = ts.sparsify(encoder(), 0.8), ts.sparsify(encoder(), 0.8)
    other.load_state_dict(one.state_dict())
    x = drawn(3, 5, 16)
    torch.testing.assert_close(other(x), one(x), rtol=0, atol=0)


def test_a_file_of_a_dense_model_fits_the_dense_model_only(tmp_path):
    dense = encoder()
    ts.save(dense, tmp_path / "dense.safetensors")
    with pytest.raises(ts.export.FileError, match=r"the model has layers.0.linear1.indices, .*, the file has not"):
        ts.load(tmp_path / "dense.safetensors", ts.sparsify(encoder(), 0.8))
    ts.save(ts.sparsify(encoder(), 0.8), tmp_path / "sparse.safetensors")
    other = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, **{**SIZES, "dim_feedforward": 8}, batch_first=True), 2)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ts.export.FileError, match=r"layers.0.linear1' is Linear\(.*out_features=32.* in the file, .*nothing was loaded"):
        ts.load(tmp_path / "sparse.safetensors", other)
    torch.testing.assert_close(other.state_dict(), before, rtol=0, atol=0)


def test_the_network_shrinks_and_is_written_as_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnx.reference")
    layer = nn.TransformerEncoderLayer(16, 2, **SIZES, batch_first=True)
    model, x = ts.sparsify(nn.Sequential(layer, nn.Linear(16, 4)).eval(), 0.8), drawn(2, 5, 16)
    expected = model(x).detach()
    with pytest.warns(UserWarning, match="neurons without connections stay"):  # a head's share of queries may have none
        torch.testing.assert_close(ts.shrink(model, x)(x), expected)
    ts.export_onnx(model, tmp_path / "model.onnx", x)
    (found,) = runtime.ReferenceEvaluator(str(tmp_path / "model.onnx")).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected)


def test_mixed_precision_as_in_dense_attention():
    dense = encoder()
    x, sparse = drawn(3, 5, 16), ts.sparsify(copy.deepcopy(dense), 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = dense(x), sparse(x)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert len(outputs(sparse, (x,))) == 1
