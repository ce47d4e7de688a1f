"""Coupled neurons pruned, then shrunk: the smaller dense network is the pruned one, in outputs, gradients and a step of training."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.nn import TopologyLayer


class Residual(nn.Module):
    """Two convolutions around a sum, as in ResNet."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.a, self.b = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.n, self.m = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        same = inputs == outputs and stride == 1
        self.down = nn.Identity() if same else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = F.relu(self.n(self.a(x)))
        y = self.m(self.b(y))
        y += self.down(x)
        return F.relu(y)


class Inverted(nn.Module):
    """Expand, depthwise, squeeze and excite, project: as in MobileNet."""

    def __init__(self, width, hidden):
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.deep = nn.Sequential(nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False), nn.BatchNorm2d(hidden), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(hidden, hidden // 2, 1), nn.Conv2d(hidden // 2, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.deep(self.expand(x))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y)


class Grouped(nn.Module):
    """A convolution in groups between two of 1 x 1, as in ResNeXt."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(6, 16, 1), nn.Conv2d(16, 8, 3, 2, 1, groups=4), nn.Conv2d(8, 6, 1)

    def forward(self, x):
        return self.c(torch.tanh(self.b(F.gelu(self.a(x)))))


class Joined(nn.Module):
    """Each layer reads what all before it gave, side by side, as in DenseNet; flattened at the end, as in VGG."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(7, 4, 3, 1, 1), nn.Conv2d(11, 6, 3, 2, 1)
        self.norm, self.d, self.e = nn.BatchNorm2d(7), nn.Linear(6 * 9, 8), nn.Linear(8, 5)

    def forward(self, x):
        y = torch.cat([x, F.elu(self.a(x))], 1)
        y = torch.cat([y, F.elu(self.b(self.norm(y)))], 1)
        return self.e(F.silu(self.d(self.c(y).flatten(1))))


class Shuffled(nn.Module):
    """Groups of channels are shuffled, as in ShuffleNet, and half of the channels are a gate of the others."""

    def __init__(self):
        super().__init__()
        self.groups, self.a, self.b, self.c = 4, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3), nn.Conv2d(6, 4, 1)

    def forward(self, x):
        y = self.a(x)
        y = F.relu(y).unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        one, other = self.b(y).chunk(2, 1)
        return self.c(one * other.sigmoid())


class Fused(nn.Module):
    """Queries, keys and values of one matrix, and the number of heads in an attribute, as timm has it."""

    def __init__(self, width, heads, head=4):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, head, heads * head
        self.qkv, self.proj = nn.Linear(width, 3 * heads * head), nn.Linear(heads * head, width)

    def forward(self, x):
        batch, places, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, places, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, places, self.attn_dim))


class ByHand(nn.Module):
    """Attention as matrix products, a causal mask, each head normalised by itself."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads, self.query, self.key, self.value, self.out = heads, *(nn.Linear(width, width, bias=one) for one in (1, 0, 1, 1))
        self.norm = nn.LayerNorm(width // heads)

    def forward(self, x):
        q, k, v = (one(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (self.query, self.key, self.value))
        scores = self.norm(q) @ k.transpose(-2, -1) / 2.0
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        return self.out((scores.masked_fill(~mask, -1e9).softmax(-1) @ v).transpose(1, 2).flatten(2))


class GroupedQueries(nn.Module):
    """Two queries share a key and a value, as in Llama; positions turn queries and keys."""

    def __init__(self, width, heads, shared, head=4):
        super().__init__()
        self.head, self.repeats = head, heads // shared
        self.q, self.k, self.v, self.o = (
            *(nn.Linear(width, n * head, bias=False) for n in (heads, shared, shared)),
            nn.Linear(heads * head, width),
        )

    def forward(self, x):
        q, k, v = (one(x).view(*x.shape[:2], -1, self.head).transpose(1, 2) for one in (self.q, self.k, self.v))
        turn = torch.linspace(0.5, 1.5, self.head, dtype=x.dtype)
        q, k = (one * turn.cos() + torch.cat((-one[..., self.head // 2 :], one[..., : self.head // 2]), -1) * turn.sin() for one in (q, k))
        k, v = (one[:, :, None].expand(-1, -1, self.repeats, -1, -1).flatten(1, 2) for one in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(*x.shape[:2], -1))


class Gated(nn.Module):
    """The perceptron of Llama."""

    def __init__(self, width, hidden):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(width, hidden), nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, width, attention, perceptron):
        super().__init__()
        self.n, self.attention, self.m, self.perceptron = nn.LayerNorm(width), attention, nn.RMSNorm(width), perceptron

    def forward(self, x):
        x = x + self.attention(self.n(x))
        return x + self.perceptron(self.m(x))


def residual():
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), Residual(8, 8), Residual(8, 12, 2), Residual(12, 12), *head
    )


def mobile():
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.Hardswish(), Inverted(6, 12), Inverted(6, 18), nn.Conv2d(6, 4, 1))


def transformer(attention):
    return lambda: nn.Sequential(*(Block(16, attention(), Gated(16, 24)) for _ in range(2)), nn.Linear(16, 3))


IMAGES, WORDS = (3, 3, 6, 6), (3, 5, 16)
STREAM = "*.perceptron.down"  # what writes a sum that LayerNorm looks at stays
NETWORKS = {
    "residual": (residual, IMAGES, ()),
    "mobile": (mobile, IMAGES, ()),
    "grouped": (Grouped, (3, 6, 6, 6), ()),
    "joined": (Joined, IMAGES, ()),
    "shuffled": (Shuffled, IMAGES, ()),
    "fused": (transformer(lambda: Fused(16, 4)), WORDS, (STREAM, "*.proj")),
    "by-hand": (transformer(lambda: ByHand(16, 4)), WORDS, (STREAM, "*.out")),
    "grouped-queries": (transformer(lambda: GroupedQueries(16, 8, 4)), WORDS, (STREAM, "*.o")),
    "torch": (lambda: nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True), WORDS, ("*out_proj", "linear2")),
}
# [channels, features or heads * features] that layers have left of half
LEFT = {
    "residual": {"0": 4, "3.a": 4, "3.b": 4, "4.a": 6, "4.b": 6, "4.down.0": 6, "5.a": 6, "5.b": 6, "8": 5},
    "mobile": {"0": 3, "3.expand.0": 6, "3.deep.0": 6, "3.squeeze": 3, "3.excite": 6, "3.project.0": 3, "4.expand.0": 9, "5": 4},
    "grouped": {"a": 8, "b": 4, "c": 6},
    "joined": {"a": 2, "b": 2, "c": 3, "d": 4, "e": 5},
    "shuffled": {"a": 4, "b": 6, "c": 4},
    "fused": {"0.attention.qkv": 24, "0.attention.proj": 16, "1.perceptron.gate": 12, "1.perceptron.up": 12, "2": 3},
    "by-hand": {"0.attention.query": 8, "0.attention.key": 8, "1.attention.value": 8, "1.attention.out": 16},
    "grouped-queries": {"0.attention.q": 16, "0.attention.k": 8, "0.attention.v": 8, "1.attention.o": 16},
    "torch": {"self_attn.q_proj": 8, "self_attn.k_proj": 8, "self_attn.v_proj": 8, "self_attn.out_proj": 16, "linear1": 12},
}


def drawn_network(name):
    """(the network with norms that have seen something, an input)"""
    make, shape, _ = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        model, x = make().double(), torch.randn(shape).double()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for array in (module.running_mean, module.bias.data):
                    array.normal_()
                for array in (module.running_var, module.weight.data):
                    array.uniform_(0.5, 2.0)
    return model.eval(), x


def pruned(name, **settings):
    model, x = drawn_network(name)
    return ts.prune(copy.deepcopy(model), 0.5, pattern="neurons", example=x, exclude=NETWORKS[name][2], **settings), x


def rows(model):
    return {name: one.weight.shape[0] for name, one in model.named_modules() if isinstance(one, (nn.Linear, nn.Conv2d))}


def stepped(model, x):
    """(outputs, gradient of the input, outputs after a step) in the mode that the model is in."""
    given = x.clone().requires_grad_()
    y = model(given + 0.0)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
        return y.detach(), given.grad, model(x)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_smaller_network_is_the_pruned_one(name):
    model, x = pruned(name)
    small = ts.shrink(model, x)
    assert not any(isinstance(module, TopologyLayer) for module in small.modules())
    assert {layer: count for layer, count in rows(small).items() if layer in LEFT[name]} == LEFT[name]
    assert sum(one.numel() for one in small.parameters()) <= sum(one.numel() for one in model.parameters())
    for training in (False, True):
        for one, other in zip(stepped(small.train(training), x), stepped(model.train(training), x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    again = torch.randn_like(x)[:2]
    torch.testing.assert_close(small.eval()(again), model.eval()(again), rtol=1e-10, atol=1e-10)
