"""Transformers and other networks as others wrote them: packed, they compute what they computed, or it is said what was left."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from truesparse import sparsify
from truesparse.inference import pack, simplify, trace
from truesparse.inference.graph.attention import added_mask
from truesparse.inference.packed import PackedLayer


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Attention(nn.Module):
    """As transformers write it: sizes are unpacked into a tuple, which a symbolic run cannot do."""

    def __init__(self, width, heads):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.size = width // heads

    def forward(self, x, mask):
        shape = (*x.shape[:-1], -1, self.size)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(*x.shape[:-1], -1))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attention, self.first, self.second = Attention(width, heads), nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down, self.drop = nn.Linear(width, 3 * width), nn.Linear(3 * width, width), nn.Dropout(0.1)

    def forward(self, x, mask):
        x = self.first(x + self.drop(self.attention(x, mask)))
        return self.second(x + self.drop(self.down(F.gelu(self.up(x)))))


class Encoder(nn.Module):
    def __init__(self, width=24, heads=3, longest=20):
        super().__init__()
        self.words, self.places = nn.Embedding(50, width), nn.Embedding(longest, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, ids, mask=None, *, scale=None):
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        allowed = None if mask is None else mask.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, allowed)
        logits = self.head(x[:, 0])
        return {"states": x, "logits": logits if scale is None else logits * scale}


def pruned(model, sparsity=0.7):
    for layer in model.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            magnitude = layer.weight.detach().abs()
            layer.weight.data.mul_(magnitude > magnitude.flatten().kthvalue(int(sparsity * magnitude.numel())).values)
    return model.eval()


def sentences(batch, tokens):
    ids = torch.randint(1, 50, (batch, tokens))
    mask = (torch.arange(tokens) < torch.randint(1, tokens + 1, (batch, 1))).long()
    return {"ids": ids, "mask": mask}


def close(given, expected):
    assert type(given) is type(expected)
    for name in expected:
        torch.testing.assert_close(given[name], expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_transformer_with_inputs_by_name_and_outputs_by_name(sparse, batch):
    model = sparsify(Encoder(), 0.7).eval() if sparse else pruned(Encoder())
    packed = pack(model, sentences(batch, 8), tune=False)
    with torch.inference_mode():
        for shape in ((1, 8), (4, 8), (1, 20), (3, 5)):
            x = sentences(*shape)
            close(packed(**x), model(**x))
            close(packed(**dict(reversed(x.items()))), model(**x))
    assert not packed.explain().untraced
    assert not packed.explain().whole
    assert not any(parameter.requires_grad for parameter in packed.parameters())


def test_layers_that_read_the_same_are_one_row():
    model = pruned(Encoder())
    explanation = pack(model, sentences(1, 8), tune=False).explain()
    first = explanation.rows[0]
    assert first.layer == "blocks.0.attention.query + key + value"
    assert first.change.joined == tuple(f"blocks.0.attention.{name}" for name in ("query", "key", "value"))
    assert first.change.neurons[0] == 3 * 24
    assert first.dense_bytes == 3 * 4 * (24 * 24 + 24)
    assert [row.layer for row in explanation.rows[1:4]] == [f"blocks.0.{name}" for name in ("attention.out", "up", "down")]
    assert explanation.rows[2].change.activation.startswith("GELU")


class Twice(nn.Module):
    """Two layers read x; one of them is called again on something else, or its activation is its own."""

    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.c, self.how = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6, bias=False), how

    def forward(self, x):
        return self.how(self, x)


@pytest.mark.parametrize(
    ("how", "joined"),
    {
        "three, one without a bias": (lambda m, x: m.a(x) * m.b(x) - m.c(x), [("a", "b", "c")]),
        "what reads it insists on memory without gaps": (lambda m, x: m.a(x).view(-1) + m.b(x).transpose(0, 1).reshape(-1), [("a", "b")]),
        "one is called twice": (lambda m, x: m.a(m.a(x)) + m.b(x), []),
        "an activation belongs to one": (lambda m, x: F.relu(m.a(x)) + m.b(x), []),
        "both have activations": (lambda m, x: F.relu(m.a(x)) + F.relu(m.b(x)), []),
        "they read different tensors": (lambda m, x: m.a(x) + m.b(x + 1), []),
        "memory is shared by hand": (lambda m, x: m.a(x).as_strided((3, 3), (6, 1)) + m.b(x)[:3, :3], []),
        "one is written into": (lambda m, x: (y := x + 1, z := m.a(y), y.add_(1), z + m.b(y))[-1], []),
    }.values(),
)
def test_which_layers_are_joined(how, joined):
    model, x = Twice(how).eval(), torch.randn(4, 6)
    for biased in (True, False):
        if not biased:
            model.a.bias = model.b.bias = None
        simplified = simplify(model, x)
        assert [change.joined for change in simplified.layers if change.joined] == joined
        torch.testing.assert_close(simplified.module(x.clone()), model(x.clone()))


def test_masks_are_converted_once():
    x = sentences(2, 8)
    module = simplify(pruned(Encoder()), x).module
    assert sum(node.target is added_mask for node in module.graph.nodes) == 1


def test_what_was_decided_by_sizes_is_checked():
    class Long(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            x = self.layer(x)
            return x.mean(1) if x.shape[1] > 6 else x.sum(1)

    model = Long().eval()
    packed = pack(model, torch.randn(2, 8, 4), tune=False)
    with torch.inference_mode():
        for tokens in (7, 20):
            x = torch.randn(3, tokens, 4)
            torch.testing.assert_close(packed(x), model(x))
        for wrong in (torch.randn(3, 6, 4), torch.randn(3, 4), torch.randn(3, 8, 4).double()):
            with pytest.raises(ValueError, match=r"holds for inputs like its example only: expected .*; pack it with such an example"):
                packed(wrong)


def test_a_batch_of_one_that_is_special():
    class Special(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            shape = (*x.shape[:-1], 2, 2)
            return self.layer(x).view(shape) + (1 if x.shape[0] == 1 else 0)

    model = Special().eval()
    for batch, other in ((1, 3), (3, 1)):
        x = torch.randn(batch, 4)
        packed = pack(model, x, tune=False)
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), model(x))
            with pytest.raises(ValueError, match="holds for inputs like its example only"):
                packed(torch.randn(other, 4))


def test_arguments_by_name():
    model, x = pruned(Encoder()), sentences(2, 8)
    packed = pack(model, {**x, "scale": torch.tensor(2.0)}, tune=False)
    with torch.inference_mode():
        close(packed(**x, scale=torch.tensor(3.0)), model(**x, scale=torch.tensor(3.0)))
    for args, kwargs in (((x["ids"],), {}), ((), x), ((x["ids"], x["mask"]), {"scale": torch.tensor(1.0)})):
        with pytest.raises(TypeError, match=r"packed for the arguments ids, mask, scale by name, got .*; pack it with these"):
            packed(*args, **kwargs)
    with pytest.raises(TypeError, match="an example is a tensor or a tuple of tensors, got Tensor, int; arguments by name are a dict"):
        pack(model, {"ids": x["ids"], "scale": 2})


def test_modules_of_torch_that_have_layers_inside_are_looked_into():
    model = pruned(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu"), 2))
    x = torch.randn(1, 5, 16)
    packed = pack(model, x, tune=False)
    assert len(packed.explain().rows) == 8
    assert not packed.explain().whole
    with torch.inference_mode():
        for y in (x, torch.randn(3, 9, 16)):
            torch.testing.assert_close(packed(y), model(y), rtol=1e-4, atol=1e-5)
    assert simplify(nn.Sequential(model), x, leaves=(nn.TransformerEncoderLayer,)).whole == ("0",)


class Gate(nn.Module):
    """Its operations depend on the values of its input."""

    def __init__(self):
        super().__init__()
        self.often, self.seldom, self.memory = nn.Linear(30, 30), nn.Linear(30, 30), nn.GRU(30, 30)

    def forward(self, x):
        x = torch.relu(self.often(x)) if x.sum() > 0 else self.often(x)
        return self.memory(x if x.max() > -100 else self.seldom(x))[0]


def test_what_cannot_be_traced_has_its_layers_packed_one_by_one():
    model = nn.Sequential(pruned(Gate()), nn.Linear(30, 5)).eval()
    packed = pack(model, torch.ones(2, 30), tune=False)
    with torch.inference_mode():
        for x in (torch.rand(2, 30), -torch.rand(7, 30)):
            torch.testing.assert_close(packed(x), model(x))
    explanation = packed.explain()
    assert [row.layer for row in explanation.rows] == ["0.often", "1"]
    assert explanation.whole == ("0.seldom",)
    assert "cannot trace module '0' (Gate)" in explanation.untraced
    assert "; left as they were: 0.seldom; each layer by itself, nothing folded, removed or joined: cannot trace" in str(explanation)
    assert isinstance(packed.graph[0].often, PackedLayer)
    with pytest.raises(TypeError, match=r"cannot trace module '0' \(Gate\)"):
        trace(model, torch.ones(2, 30))
    with torch.inference_mode():
        assert torch.equal(pickle.loads(pickle.dumps(packed))(x), packed(x))


def test_a_layer_with_a_hook_is_left_where_nothing_is_traced():
    model = Gate().eval()
    model.often.register_forward_hook(lambda layer, given, result: result + 1)
    packed = pack(model, torch.ones(2, 30), tune=False)
    assert packed.explain().rows == ()
    with torch.inference_mode():
        torch.testing.assert_close(packed(torch.ones(2, 30)), model(torch.ones(2, 30)))


def bert(**settings):
    transformers = pytest.importorskip("transformers", reason="the extra pretrained is not installed")
    sizes = {"vocab_size": 60, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    return pruned(transformers.BertModel(transformers.BertConfig(**sizes, max_position_embeddings=32, **settings)))


def texts(batch, tokens):
    x = sentences(batch, tokens)
    return {"input_ids": x["ids"], "attention_mask": x["mask"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:transformers")
def test_a_model_of_transformers():
    model = bert()
    packed = pack(model, texts(1, 9), tune=False)
    assert len(packed.explain().rows) == 2 * 4 + 1
    with torch.inference_mode():
        for other in (packed, copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
            for shape in ((1, 9), (1, 32), (4, 9), (3, 5)):
                x = texts(*shape)
                close(other(**x), model(**x))
        assert packed(**x).last_hidden_state.shape == (3, 5, 24)
        with pytest.raises(ValueError, match=r"expected .*<= 32; pack it with such an example"):
            packed(**texts(1, 33))


@dataclass
class Padded:
    """A convolution that pads on one side more, as networks that came from TensorFlow do."""

    sides: tuple[int, int, int, int]
    kernel: int
    stride: int
    padding: int = 0

    def network(self):
        conv = nn.Conv2d(3, 4, self.kernel, self.stride, self.padding, bias=False)
        return pruned(nn.Sequential(nn.ZeroPad2d(self.sides), conv, nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 2, 1)), 0.3)


@pytest.mark.parametrize(
    "case",
    [
        Padded((0, 1, 0, 1), 3, 2),
        Padded((1, 2, 1, 2), 5, 2),
        Padded((2, 0, 0, 3), 3, 2),
        Padded((0, 5, 1, 1), 4, 3, padding=1),
        Padded((1, 1, 2, 2), 3, 1),
        Padded((0, 1, 0, 1), 2, 1),
    ],
    ids=str,
)
def test_padding_is_left_to_the_convolution(case):
    model = case.network()
    packed = pack(model, torch.randn(1, 3, 12, 12), tune=False)
    symmetric = case.sides[0] == case.sides[1] and case.sides[2] == case.sides[3]
    assert any(isinstance(module, nn.ZeroPad2d) for module in packed.modules()) == (not symmetric and case.stride == 1)
    with torch.inference_mode():
        for size in ((12, 12), (13, 12), (12, 13), (15, 14), (16, 17), (18, 18)):
            x = torch.randn(2, 3, *size)
            torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
