"""Embeddings whose table is a sparse layer, alone or as one with the output layer: torch's own in value and gradient, no dense table."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training import topologies

import truesparse as ts
from truesparse.nn import topology_layers
from truesparse.nn.opened import OpenedEmbedding, OpenedEmbeddingBag
from truesparse.rewiring.outputs import output_layer

UNIFORM = ts.Uniform(dense_first=False)


def sparse_and_dense(module, masked=False):
    """An embedding with a sparse table, and the dense one that has the same."""
    nn.init.normal_(module.weight)
    sparse = ts.sparsify(module.double(), 0.6, UNIFORM, include=[type(module)], masked=masked)
    return sparse, ts.densify(copy.deepcopy(sparse))


def assert_gradients_are_the_same(sparse, dense):
    table = sparse.table
    torch.testing.assert_close(table.of_connections(table.parameter.grad), dense.weight.grad.flatten()[table.topology.keys])


@settings(max_examples=30)
@given(
    masked=st.booleans(),
    padding=st.sampled_from([None, 0, -1]),
    by_frequency=st.booleans(),
    shape=st.sampled_from([(), (1,), (5,), (3, 4), (2, 2, 3), (0,)]),
    dtype=st.sampled_from([torch.int64, torch.int32]),
)
def test_rows_and_gradients_are_those_of_torch(masked, padding, by_frequency, shape, dtype):
    sparse, dense = sparse_and_dense(nn.Embedding(9, 6, padding, scale_grad_by_freq=by_frequency), masked)
    assert type(sparse) is OpenedEmbedding
    assert repr(dense) == repr(nn.Embedding(9, 6, padding, scale_grad_by_freq=by_frequency))
    index, weights = torch.randint(9, shape, dtype=dtype), torch.randn(*shape, 6).double()
    for model in (sparse, dense):
        (model(index).sin() * weights).sum().backward()
    assert torch.equal(sparse(index), dense(index))
    assert_gradients_are_the_same(sparse, dense)


@settings(max_examples=30)
@given(
    mode=st.sampled_from(["sum", "mean", "max"]),
    padding=st.sampled_from([None, 2]),
    last=st.booleans(),
    form=st.sampled_from(["bags", "offsets", "weighted"]),
    masked=st.booleans(),
)
def test_bags_are_those_of_torch(mode, padding, last, form, masked):
    mode = "sum" if form == "weighted" else mode
    sparse, dense = sparse_and_dense(nn.EmbeddingBag(9, 6, mode=mode, padding_idx=padding, include_last_offset=last), masked)
    assert type(sparse) is OpenedEmbeddingBag
    assert repr(dense) == repr(nn.EmbeddingBag(9, 6, mode=mode, padding_idx=padding, include_last_offset=last))
    index = torch.randint(9, (3, 4)) if form == "bags" else torch.randint(9, (8,))
    offsets = None if form == "bags" else torch.tensor([0, 3, 3, *([8] if last else [])])
    shares = torch.rand(8).double().requires_grad_() if form == "weighted" else None
    found = []
    for model in (sparse, dense):
        y = model(index, offsets, shares)
        y.sin().sum().backward()
        found.append((y, None if shares is None else shares.grad.clone()))
        if shares is not None:
            shares.grad = None
    torch.testing.assert_close(*found)
    assert_gradients_are_the_same(sparse, dense)


def test_gradients_of_gradients():
    sparse, dense = sparse_and_dense(nn.Embedding(9, 6))
    index = torch.randint(9, (3, 4))
    for model in (sparse, dense):
        weight = model.table.values if model is sparse else model.weight
        (slope,) = torch.autograd.grad(model(index).pow(3).sum(), weight, create_graph=True)
        slope.pow(2).sum().backward()
    assert_gradients_are_the_same(sparse, dense)


def test_nothing_of_the_size_of_the_table_is_made():
    embedding = OpenedEmbedding(ts.SparseLinear(1000, 100_000, bias=False, sparsity=0.9999))
    sizes = []

    class Watched(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(one.numel() for one in torch.utils._pytree.tree_leaves(result) if isinstance(one, torch.Tensor))
            return result

    with Watched():
        embedding(torch.tensor([[5, 7], [5, 99_999]])).sum().backward()
    assert max(sizes) <= 100_001  # row lengths


def test_embeddings_stay_dense_until_they_are_asked_for():
    def model():
        return nn.ModuleDict(
            {"words": nn.Embedding(20, 8), "places": nn.Embedding(5, 8), "bags": nn.EmbeddingBag(7, 4), "out": nn.Linear(8, 8)}
        )

    assert list(topology_layers(ts.sparsify(model(), 0.5))) == ["out"]
    some = ts.sparsify(model(), 0.5, include=("words",), sparsities={"words": 0.75})
    assert list(topology_layers(some)) == ["words.table", "out"]
    assert some["words"].table.topology.sparsity == 0.75
    every = ts.sparsify(model(), 0.5, include=[nn.Embedding, nn.EmbeddingBag], exclude=("places",))
    assert list(topology_layers(every)) == ["words.table", "bags.table", "out"]
    with pytest.raises(ValueError, match=r"include names 'out', which matches no nn.Embedding or nn.EmbeddingBag; there are: 'words', 'pl"):
        ts.sparsify(model(), 0.5, include=("out",))


def test_whole_rows_may_be_what_is_kept():
    model = ts.sparsify(nn.ModuleList([nn.Embedding(20, 8)]), 0.5, UNIFORM, "neurons", include=[nn.Embedding])
    lengths = model[0].table.topology.fan_in
    assert set(lengths.tolist()) == {0, 8}
    rows = model[0](torch.arange(20))
    assert torch.equal((rows != 0).all(1), lengths == 8)


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (
            nn.Embedding(9, 6, max_norm=1.0),
            r"layer '0' \(Embedding\) .* it writes to its weight at every call \(make it without max_norm\)",
        ),
        (nn.Embedding(9, 6, sparse=True), r"layer '0' \(Embedding\) .* gradients of torch's sparse layout.*without sparse=True"),
        (nn.EmbeddingBag(9, 6, max_norm=1.0), r"layer '0' \(EmbeddingBag\) .* without max_norm"),
        (type("Own", (nn.Embedding,), {})(9, 6), r"layer '0' \(Own\) .* a subclass of Embedding whose own behaviour would be lost"),
    ],
)
def test_what_no_sparse_table_can_do_is_refused(module, says):
    model = nn.ModuleList([module, nn.Linear(6, 6)])
    with pytest.raises(TypeError, match=says):
        ts.sparsify(model, 0.5, include=("0",))
    assert model[0] is module
    ts.sparsify(model, 0.5)


def test_indices_that_are_none_of_the_table_are_refused():
    embedding, _ = sparse_and_dense(nn.Embedding(9, 6))
    for wrong in (-1, 9):
        with pytest.raises(IndexError, match=f"expected indices from 0 to 8, got {min(wrong, 3)} to {max(wrong, 3)}"):
            embedding(torch.tensor([3, wrong]))
    with pytest.raises(TypeError, match=r"expected indices of int64 or int32, got torch.float64"):
        embedding(torch.rand(3).double())


class LanguageModel(nn.Module):
    """LSTM language model: embedding, LSTM, output layer, whose weight is the embedding's or its own."""

    def __init__(self, tied=True, bias=True):
        super().__init__()
        self.words, self.memory, self.dropout = nn.Embedding(30, 8, padding_idx=0), nn.LSTM(8, 8, 2, dropout=0.1), nn.Dropout(0.1)
        self.head = nn.Linear(8, 30, bias)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens):
        return self.head(self.dropout(self.memory(self.words(tokens))[0]))


def language_model(tied=True, masked=False, sparsity=0.7):
    torch.manual_seed(0)
    include = () if tied else [nn.Embedding]
    generator = torch.Generator().manual_seed(1)
    return ts.sparsify(LanguageModel(tied).double(), sparsity, masked=masked, include=include, generator=generator)


MEMORY = [f"memory.{part}_l{layer}" for layer in (0, 1) for part in ("ih", "hh")]


@pytest.mark.parametrize("masked", [False, True], ids=["sparse", "masked"])
def test_tied_weights_are_one_layer_under_the_name_of_the_output(masked):
    model = language_model(masked=masked)
    assert model.words.table is model.head
    assert list(topology_layers(model)) == [*MEMORY, "head"]
    assert output_layer(model) == "head"
    assert [layer.name for layer in ts.summary(model).layers] == [*MEMORY, "head"]
    assert sum(parameter is model.head.parameter for parameter in model.parameters()) == 1
    closed = ts.densify(copy.deepcopy(model))
    assert closed.head.weight is closed.words.weight
    assert closed.state_dict().keys() == LanguageModel().state_dict().keys()
    tokens = torch.randint(30, (5, 3))
    torch.testing.assert_close(closed.eval()(tokens), model.eval()(tokens))
    closed(tokens).pow(2).sum().backward()
    model(tokens).pow(2).sum().backward()
    head = model.head
    torch.testing.assert_close(head.of_connections(head.parameter.grad), closed.head.weight.grad.flatten()[head.topology.keys])


@pytest.mark.parametrize("algorithm", [ts.RigL(0.3), ts.SET(0.3), ts.GMP(0.8), ts.GSE()], ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_training_a_language_model_equals_that_of_its_masked_twin(algorithm, tied):
    losses, made = {}, {}
    for masked in (False, True):
        model = made[masked] = language_model(tied, masked)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        rewirer = ts.Rewirer(model, optimizer, algorithm, every=3, until=10, generator=torch.Generator().manual_seed(2))
        generator, losses[masked] = torch.Generator().manual_seed(3), []
        torch.manual_seed(4)
        for _ in range(10):
            for part in range(2):  # as accumulation does
                tokens = torch.randint(30, (5, 3 + part), generator=generator)
                loss = nn.functional.cross_entropy(model(tokens[:-1]).flatten(0, 1), tokens[1:].flatten())
                loss.backward()
            losses[masked].append(loss.item())
            if rewirer.step():
                optimizer.step()
            optimizer.zero_grad()
        assert rewirer.rewirings >= 3
    torch.testing.assert_close(losses[False], losses[True], rtol=1e-8, atol=0)
    for ours, theirs in zip(topologies(made[False]).values(), topologies(made[True]).values(), strict=True):
        assert ours.equal(theirs)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_language_model_is_copied_saved_loaded_packed_and_shrunk(tied, tmp_path):
    model, tokens = language_model(tied).eval(), torch.randint(30, (5, 3))
    y = model(tokens)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(copied(tokens), y)
        assert (copied.words.table is copied.head) == tied
    other = language_model(tied, sparsity=0.4).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(tokens), y)
    ts.save(model, tmp_path / "model.ts")
    assert torch.equal(ts.load(tmp_path / "model.ts", language_model(tied, sparsity=0.4).eval())(tokens), y)
    masked = ts.load(tmp_path / "model.ts", language_model(tied, masked=True, sparsity=0.4).eval())
    dense = ts.load(tmp_path / "model.ts", LanguageModel(tied).double().eval())
    assert isinstance(dense.words, nn.Embedding)
    assert (dense.words.weight is dense.head.weight) == tied
    for loaded in (masked, dense):
        torch.testing.assert_close(loaded(tokens), y)
    single = model.float()
    packed = ts.pack(single, tokens, tune=False)
    assert {row.layer for row in packed.explain().rows} == {*MEMORY, "head"}
    for other in (tokens, torch.randint(30, (9, 2))):
        torch.testing.assert_close(packed(other), single(other))
    small = ts.shrink(single, tokens)
    assert (small.words.table is small.head) == tied
    torch.testing.assert_close(small(tokens), single(tokens))


def test_an_exported_language_model_computes_the_same(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    model, tokens = language_model().float().eval(), torch.randint(30, (5, 3))
    ts.export_onnx(model, tmp_path / "model.onnx", tokens)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (given,) = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
    torch.testing.assert_close(torch.from_numpy(given), model(tokens), rtol=1e-4, atol=1e-5)


def test_export_would_fix_the_length():
    model = language_model().float()
    with pytest.raises(TypeError, match=r"a sparse LSTM would be exported for the length of the example alone.*densify"):
        torch.export.export(model.memory, (torch.randn(5, 3, 8),))


def test_several_embeddings_may_be_tied_and_a_bias_that_is_shared_stays_so():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.asked, self.answered, self.head = nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 9)
            self.asked.weight = self.answered.weight = self.head.weight
            self.bias = self.head.bias  # as BERT's heads have it

    model = ts.sparsify(Heads(), 0.5)
    assert model.asked.table is model.answered.table is model.head
    assert model.bias is model.head.bias
    assert list(topology_layers(model)) == ["head"]
    dense = ts.densify(model)
    assert dense.asked.weight is dense.answered.weight is dense.head.weight
    assert dense.bias is dense.head.bias


def test_tied_weights_stay_dense_together_or_are_refused():
    model = ts.sparsify(LanguageModel(), 0.5, exclude=("head",))
    assert model.head.weight is model.words.weight
    with pytest.raises(TypeError, match=r"layer 'head' \(Linear\) .* shares its weight with another module \(tied.*exclude=\('head',\)"):
        ts.sparsify(LanguageModel(), 0.5, exclude=("words",))
    hooked = LanguageModel()
    hooked.words.register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match=r"layer 'words' \(Embedding\) .* has hooks"):
        ts.sparsify(hooked, 0.5)
    limited = LanguageModel()
    limited.words.max_norm = 1.0
    with pytest.raises(TypeError, match=r"layer 'head' \(Linear\) .* shares its weight"):
        ts.sparsify(limited, 0.5)
    assert type(limited.words) is nn.Embedding


@pytest.mark.parametrize("masked", [False, True], ids=["sparse", "masked"])
def test_tying_once_more_changes_nothing_and_tying_to_another_is_refused(masked):
    model, tokens = language_model(masked=masked).eval(), torch.randint(30, (5, 3))
    y = model(tokens)
    model.head.weight = model.words.weight
    model.words.weight = model.head.weight
    assert torch.equal(model(tokens), y)
    for layer in (model.words, model.head):
        with pytest.raises((AttributeError, ValueError), match="tied"):
            layer.weight = nn.Embedding(30, 8).weight
    assert torch.equal(model(tokens), y)


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertForMaskedLM", "LlamaForCausalLM"])
def test_tied_language_models_of_transformers(name):
    transformers = pytest.importorskip("transformers")
    kind, sizes = getattr(transformers, name), {"vocab_size": 30, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2}
    sizes |= {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    if name != "GPT2LMHeadModel":
        sizes |= {"intermediate_size": 16}
    model = kind(kind.config_class(**sizes)).double().eval()
    names, tokens = list(model.state_dict()), torch.randint(3, 30, (2, 5))
    ts.sparsify(model, 0.5)
    head = model.get_output_embeddings()
    assert model.get_input_embeddings().table is head
    dense = ts.densify(copy.deepcopy(model))
    assert list(dense.state_dict()) == names
    assert dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    results = [one(input_ids=tokens, labels=tokens) for one in (model, dense)]
    torch.testing.assert_close(results[0].logits, results[1].logits)
    for result in results:
        result.loss.backward()
    torch.testing.assert_close(head.values.grad, dense.get_output_embeddings().weight.grad.flatten()[head.topology.keys])
