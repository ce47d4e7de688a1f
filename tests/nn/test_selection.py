"""What sparsify leaves dense is refused all at once, or told: modules of other kinds, attention, a first layer."""

import ast
import copy
import re

import pytest
import torch
from torch import nn

from truesparse import SparseLinear, Uniform, densify, sparsify, summary
from truesparse.nn import topology_layers


class Projection(nn.Module):
    """A matrix that is no `nn.Linear`: y = x W + b, as GPT-2 of transformers has it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) / 8), nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.weight + self.bias


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down, self.mixed = Projection(8, 32), Projection(32, 8), nn.Linear(8, 8)

    def forward(self, x):
        return x + self.mixed(self.down(torch.relu(self.up(x))))


class Mixed(nn.Module):
    """Holds a matrix beside a linear layer: excluding the module would exclude both."""

    def __init__(self, size=64):
        super().__init__()
        self.mixing, self.linear = nn.Parameter(torch.randn(8, size)), nn.Linear(8, 8)


class OwnAttention(nn.MultiheadAttention):
    """Whose behaviour nobody knows."""


def advice(message):
    """The tuple that a message says to pass as `exclude`."""
    return ast.literal_eval(re.search(r"exclude=(\(.*?\))", str(message))[1])


def test_matrices_in_modules_of_other_kinds_are_told_with_their_share():
    model = nn.Sequential(Residual(), Residual(), nn.Linear(8, 8))
    says = r"1,024 of 1,216 matrix weights \(84%\) stay dense: they are in Projection, and sparsify replaces nn.Linear and convolutions"
    with pytest.warns(UserWarning, match=says) as told:
        sparsify(model, 0.5)
    assert told[0].filename == __file__
    assert advice(told[0].message) == ("*.up", "*.down")
    assert set(topology_layers(model)) == {"0.mixed", "1.mixed", "2"}
    sparsify(nn.Sequential(Residual(), Residual(), nn.Linear(8, 8)), 0.5, exclude=advice(told[0].message))


def test_a_warning_turned_into_an_error_leaves_the_model_as_it_is():
    model = nn.Sequential(Residual())
    with pytest.raises(UserWarning, match="stay dense"):
        sparsify(model, 0.5)
    assert not topology_layers(model)


def test_a_matrix_beside_a_linear_layer_is_excluded_by_its_own_name():
    with pytest.warns(UserWarning, match=r"512 of 576 .* in Mixed, .* pass exclude=\('0.mixing',\)"):
        sparsify(nn.Sequential(Mixed()), 0.5)
    model = sparsify(nn.Sequential(Mixed()), 0.5, exclude=("0.mixing",))
    assert set(topology_layers(model)) == {"0.linear"}


def test_what_is_small_or_takes_part_in_no_product_is_not_told():
    small = nn.Sequential(Mixed(size=1), nn.Linear(8, 100))  # 8 of 872 weights
    lookups = nn.Sequential(nn.Embedding(100, 8), nn.EmbeddingBag(100, 8), nn.LayerNorm([8, 8]), nn.Linear(8, 4))
    already = nn.Sequential(SparseLinear(64, 64), nn.Linear(8, 4))
    for model in (small, lookups, already):
        sparsify(model, 0.5)


def test_a_model_of_other_kinds_only_says_which():
    with pytest.raises(ValueError, match=r"the model has none \(its matrices are in Projection: replace those by nn.Linear\)"):
        sparsify(nn.Sequential(Projection(4, 4)), 0.5)


def test_all_refusals_come_in_one_message_whose_advice_works():
    def model():
        blocks = nn.Sequential(*(nn.ModuleDict({"attend": OwnAttention(8, 2), "mix": nn.Linear(8, 8)}) for _ in range(12)))
        tied = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        tied[1].weight = tied[0].weight
        return nn.ModuleDict({"blocks": blocks, "tied": tied, "memory": nn.Bilinear(8, 8, 8), "0": nn.Bilinear(2, 2, 3)})

    with pytest.raises(TypeError) as refused:
        sparsify(model(), 0.5)
    said = str(refused.value)
    assert "layers 'blocks.0.attend', 'blocks.1.attend', " in said
    assert (
        " and 6 more (OwnAttention) cannot be made sparse: each is a subclass of MultiheadAttention whose own behaviour would be lost; "
        in said
    )
    assert "layers 'tied.0', 'tied.1' (Linear) cannot be made sparse: each shares" in said
    assert "layers 'memory', '0' (Bilinear) cannot be made sparse: each has no sparse counterpart" in said
    assert advice(said) == ("blocks.*.attend", "tied.*", "memory", "0")
    assert set(topology_layers(sparsify(model(), 0.5, exclude=advice(said)))) == {f"blocks.{index}.mix" for index in range(12)}


def test_a_pattern_of_names_is_advised_only_where_it_meets_nothing_else():
    model = nn.Sequential(nn.Bilinear(2, 2, 3), nn.Linear(4, 4), nn.Bilinear(2, 2, 3))
    with pytest.raises(TypeError, match=r"pass exclude=\('0', '2'\) to leave them dense"):
        sparsify(model, 0.5)


def test_a_model_that_is_itself_such_a_layer_gets_no_advice_that_cannot_work():
    with pytest.raises(
        TypeError, match=r"the model is itself a layer \(OwnAttention\) that cannot be made sparse: it is a subclass of MultiheadAttention"
    ) as said:
        sparsify(OwnAttention(8, 2), 0.5)
    assert "exclude" not in str(said.value)


def transformer(layers, **settings):
    options = {"dim_feedforward": 32, "dropout": 0.0, "batch_first": True, **settings}
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, **options), layers, enable_nested_tensor=not settings)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("settings", [{}, {"activation": "gelu"}, {"norm_first": True}], ids=str)
def test_the_linear_layers_of_an_encoder_become_sparse_beside_dense_attention(masked, settings, monkeypatch):
    model = transformer(2, **settings).eval()
    dense, x, padding = copy.deepcopy(model), torch.randn(3, 5, 16), torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    sparsify(model, 0.75, exclude=("layers.*.self_attn",), masked=masked, from_weights=True)
    assert set(topology_layers(model)) == {f"layers.{layer}.linear{place}" for layer in (0, 1) for place in (1, 2)}
    for name, layer in topology_layers(model).items():
        dense.get_submodule(name).weight.data = layer.to_dense().detach()
    for mask in (None, padding):
        expected = dense.train()(x, src_key_padding_mask=mask).detach()  # dropout is 0, and training takes no fast path
        for context in (torch.no_grad, torch.inference_mode, torch.enable_grad):
            with context():
                found = model(x, src_key_padding_mask=mask)
                torch.testing.assert_close(found[~padding], expected[~padding])
    kind, called = type(model.layers[0].linear1), []
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda layer, y: called.append(layer) or forward(layer, y))
    with torch.no_grad():
        model(x)
    assert called == list(topology_layers(model).values()), "torch's fast path would have read dense weights instead"
    assert all(type(layer.self_attn) is nn.MultiheadAttention for layer in model.layers)
    torch.testing.assert_close(densify(model)(x), dense(x))


def test_decoders_and_whole_transformers_too():
    model = nn.Transformer(8, 2, 1, 1, 16, batch_first=True).eval()
    sparsify(model, 0.5, exclude=(nn.MultiheadAttention,))
    assert all("attn" not in name for name in topology_layers(model))
    source, target = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
    with torch.no_grad():
        found = model(source, target)
        torch.testing.assert_close(found, densify(copy.deepcopy(model))(source, target))


def test_uniform_by_name_says_that_the_first_layer_stays_dense():
    def model():
        return nn.Sequential(nn.Linear(784, 300), nn.Linear(300, 100), nn.Linear(100, 10))

    says = (
        r"sparsity 80.0% was asked for and these layers have 9.3%: budget='uniform' keeps the first layer, '0', dense; budget=ts.Uniform\("
    )
    with pytest.warns(UserWarning, match=says) as told:
        sparsify(model(), 0.8, "uniform")
    assert told[0].filename == __file__
    assert "in all" not in str(told[0].message), "no share of the others gives 80 %"
    assert summary(sparsify(model(), 0.8, Uniform())).sparsity == pytest.approx(0.093, abs=1e-3)
    sparsify(model(), 0.8, Uniform(dense_first=False))
    sparsify(model()[2:], 0.8, "uniform")
    sparsify(nn.Sequential(nn.Linear(8, 8), nn.Linear(800, 10)), 0.8, "uniform")  # 64 of 8064: within a point
    with pytest.warns(UserWarning, match=r"sparsity=0.857 gives 80.0% in all") as told:
        sparsify(nn.Sequential(nn.Linear(10, 10), nn.Linear(100, 14)), 0.8, "uniform")
    assert summary(sparsify(nn.Sequential(nn.Linear(10, 10), nn.Linear(100, 14)), 0.857, Uniform())).sparsity == pytest.approx(
        0.8, abs=1e-3
    )
