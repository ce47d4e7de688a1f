"""Layers of a model packed in place: the model keeps its methods and computes the same."""

import copy

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.inference import laying_out
from truesparse.inference.choice import Memory
from truesparse.inference.packed import PackedLayer


class Chat(nn.Module):
    """Python of one's own around layers: a state that is kept, a method beside forward, attention of torch.nn."""

    def __init__(self, width=24, blocks=4):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(width, width, bias=place % 2 == 0) for place in range(blocks))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.image = nn.Conv1d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 7)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, kept=None):
        kept = [] if kept is None else kept
        for block in self.blocks:
            x = x + torch.relu(block(x))
            kept.append(x.mean())
        x = x + self.attention(x, x, x)[0] + self.image(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.dropout(x)), kept

    def generate(self, x, steps):
        kept = []
        for _ in range(steps):
            y, kept = self(x, kept)
            x = torch.cat([x, x[:, -1:] * y.sum()], 1)
        return x, len(kept)


def chat(sparsity=0.7):
    torch.manual_seed(0)
    model = Chat()
    ts.sparsify(model, sparsity, pattern="fan-in", exclude=["attention", "image"])
    return model


@pytest.fixture
def memory(tmp_path):
    return Memory(tmp_path / "layouts.json")


@pytest.mark.parametrize("tune", [False, True])
def test_a_model_keeps_its_methods_and_computes_the_same(memory, tune):
    model = chat()
    exact = ts.densify(copy.deepcopy(model)).double().eval()
    told = ts.pack_layers(model.train(), tune=tune, memory=memory)
    x = torch.randn(2, 5, 24)
    with torch.inference_mode():
        (grown, kept), (expected, _) = model.generate(x, 3), exact.generate(x.double(), 3)
    assert kept == 12
    assert not model.training
    torch.testing.assert_close(grown, expected.float(), rtol=1e-4, atol=1e-5)
    assert [row.layer for row in told.rows] == [*(f"blocks.{place}" for place in range(4)), "head"]
    assert all(isinstance(model.get_submodule(row.layer), PackedLayer) for row in told.rows)
    assert told.whole == ("attention.out_proj", "image")
    assert "left as they were: attention.out_proj, image" in str(told)


def test_layers_that_are_alike_are_measured_once(memory, monkeypatch):
    asked, measure = [], laying_out.measure
    monkeypatch.setattr(laying_out, "measure", lambda weights, *given: asked.append(weights.bias is None) or measure(weights, *given))
    told = ts.pack_layers(chat(), memory=memory)
    assert asked == [False, True, False]  # a block with and one without a bias, the head
    assert told.rows[0].seconds == told.rows[2].seconds


def test_layers_of_another_density_are_measured_by_themselves(memory, monkeypatch):
    model, asked, measure = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24)), [], laying_out.measure
    ts.sparsify(model, sparsities={"0": 0.5, "1": 0.9})
    monkeypatch.setattr(laying_out, "measure", lambda weights, *given: asked.append(weights) or measure(weights, *given))
    ts.pack_layers(model, memory=memory)
    assert len(asked) == 2


def test_rows_and_layers_without_connections(memory):
    model = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4))
    with torch.no_grad():
        model[0].weight[1:] = 0
        model[1].weight.zero_()
    x = torch.randn(2, 5)
    expected = model(x).detach()
    ts.pack_layers(model, memory=memory)
    torch.testing.assert_close(model(x).detach(), expected)


def test_a_shared_layer_is_packed_once_and_stays_shared(memory):
    model = nn.Sequential(chat().blocks[0], nn.ReLU(), nn.Sequential(nn.Linear(24, 24)))
    model.append(model[0])
    x = torch.randn(3, 24)
    expected = model(x).detach()
    told = ts.pack_layers(model, memory=memory)
    assert [row.layer for row in told.rows] == ["0", "2.0"]
    assert model[0] is model[3]
    assert told.whole == ()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)


def test_a_layer_with_a_hook_of_ones_own_stays(memory):
    model, heard = chat(), []
    model.blocks[1].register_forward_hook(lambda *given: heard.append(1))
    told = ts.pack_layers(model, memory=memory)
    assert "blocks.1" in told.whole
    assert told.hooked == {"blocks.1": "forward hook"}
    with torch.inference_mode():
        model(torch.randn(1, 2, 24))
    assert heard == [1]


def test_it_is_told_by_shape_and_layout():
    told = ts.pack_layers(chat(), tune=False)
    table = told.by_layout()
    assert sum(int(row[2]) for row in table.rows) == 5
    assert table.total[2] == "5"
    assert {row[0] for row in table.rows} == {"24 to 24", "24 to 7"}


@pytest.mark.parametrize(
    ("model", "options", "error", "said"),
    [
        (nn.Linear(3, 3), {}, TypeError, "the model is itself a layer, Linear, and nothing can take its place: use pack"),
        (nn.Sequential(nn.Conv1d(3, 3, 1)), {}, ValueError, "found no linear layer to pack"),
        (nn.Sequential(nn.Linear(3, 3).double()), {}, TypeError, "'0.weight' is torch.float64"),
        (nn.Sequential(nn.Linear(3, 3)), {"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        (nn.Sequential(nn.Linear(3, 3)), {"values": "int4"}, ValueError, "values is one of"),
        (nn.Sequential(nn.Linear(3, 3)), {"threads": 0}, ValueError, "threads must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_and_the_model_is_as_it_was(model, options, error, said):
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(error, match=said):
        ts.pack_layers(model, **options)
    assert [type(module) for module in model.modules()] == kinds
    assert model.training
