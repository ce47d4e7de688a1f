"""A packed network computes what the network computes: in every layout, odd shapes, nothing connected, every instruction set, threads."""

import copy
from itertools import count

import pytest
import torch
from torch import nn

from truesparse import NM, SparseConv2d, SparseLinear, Topology, _core, densify, sparsify
from truesparse.inference import laying_out, pack
from truesparse.inference.layouts import candidates, planes, windows
from truesparse.inference.packed import PackedLayer
from truesparse.ops import cpu


@pytest.fixture(params=_core.supported_isas())
def isa(request):
    _core.use_isa(request.param)
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request, monkeypatch):
    """Small layers are shared out among threads too."""
    for module in (cpu, planes, windows):
        monkeypatch.setattr(module, "WORK_OF_A_THREAD", 1)
    torch.set_num_threads(request.param)
    return request.param


def exact(model, x):
    """What the dense network gives in float64."""
    with torch.no_grad():
        return densify(copy.deepcopy(model)).double().eval()(x.double())


def packed_in_every_layout(model, x, threads, monkeypatch):
    """Packed networks in which each layer in turn has every layout that is worth a try."""
    most = 0

    def numbered(number):
        def choose(weights, conditions):
            nonlocal most
            found = candidates(weights, conditions)
            most = max(most, len(found))
            return found[number % len(found)]

        return choose

    for number in count():
        if number and number >= most:
            return
        monkeypatch.setattr(laying_out, "by_rule", numbered(number))
        yield pack(model, x, tune=False, threads=threads)


def hold(model, x, threads, monkeypatch, others=()):
    """Each packed network within 1e-5 of the largest output; the layouts that they had."""
    layouts = set()
    for packed in packed_in_every_layout(model, x, threads, monkeypatch):
        layouts |= {module.layout.name for module in packed.modules() if isinstance(module, PackedLayer)}
        for one in (x, *others):
            wanted = exact(model, one)
            with torch.inference_mode():
                y = packed(one)
            assert y.shape == wanted.shape
            assert y.dtype == torch.float32
            assert float((y - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max()), packed.explain()
    return layouts


def made(seed, *arguments, kind=SparseLinear, **settings):
    return kind(*arguments, generator=torch.Generator().manual_seed(seed), **settings).eval()


def crowded():
    """Rows without connections, a full one, and one that has them all in one place."""
    mask = torch.zeros(41, 131, dtype=torch.bool)
    mask[3, 64:96] = mask[7] = mask[40, 130] = mask[20, :17] = True
    return SparseLinear.from_dense(nn.Linear(131, 41), Topology.from_mask(mask)).eval()


LINEAR = {
    "one column": lambda: made(1, 1, 33, sparsity=0.4),
    "one row": lambda: made(2, 130, 1, sparsity=0.8),
    "odd": lambda: made(3, 37, 53, sparsity=0.6),
    "no bias": lambda: made(4, 100, 17, sparsity=0.95, bias=False),
    "full": lambda: made(5, 33, 18, sparsity=0.0),
    "nothing connected": lambda: made(6, 50, 40, sparsity=1.0),
    "N:M": lambda: made(7, 96, 35, sparsity=0.75, pattern=NM(1, 4)),
    "empty rows": crowded,
    "large": lambda: made(8, 1100, 90, sparsity=0.99),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers(name, isa, threads, monkeypatch):
    layer = LINEAR[name]()
    columns, draw = layer.in_features, torch.Generator().manual_seed(0)
    x = torch.randn(1, columns, generator=draw)
    others = [torch.randn(*shape, columns, generator=draw) for shape in ((3,), (17,), (2, 3), ())]
    assert hold(layer, x, threads, monkeypatch, others) >= ({"dense"} if name == "full" else {"dense", "windows"})
    many = hold(nn.Sequential(layer, nn.ReLU()), others[1], threads, monkeypatch, [x])
    assert many >= ({"dense", "pairs"} if layer.topology.nnz else {"dense"})


CONVOLUTIONS = {
    "plain": (3, 5, 3),
    "padded, in steps": (3, 7, (3, 2), (2, 1), (1, 0)),
    "spread": (4, 6, 3, 1, 2, 2),
    "groups": (6, 8, 3, 1, 1, 1, 2),
    "each channel by itself": (6, 6, 3, 1, 1, 1, 6),
    "one pixel": (5, 9, 1),
    "one pixel, in steps": (5, 9, 1, 2),
    "circular": (3, 5, 3, 1, 1, 1, 1, True, "circular"),
    "reflect": (3, 5, 3, 2, 1, 1, 1, True, "reflect"),
    "same": (3, 5, 3, 1, "same", 1, 1, False),
}


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "nothing connected"])
def test_convolutions(name, isa, threads, monkeypatch):
    arguments = CONVOLUTIONS.get(name, CONVOLUTIONS["groups"])
    layer = made(1, *arguments, kind=SparseConv2d, sparsity=0.6 if name in CONVOLUTIONS else 1.0)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, layer.in_channels, 7, 9, generator=draw)
    other = torch.randn(1, layer.in_channels, 8, 5, generator=draw)
    assert hold(layer, x, threads, monkeypatch, [other, x[0]]) >= {"dense", "planes"}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 9, 3, padding=1, bias=False), nn.BatchNorm2d(9)
        self.inner, self.dead = nn.Conv2d(9, 9, 3, padding=1, groups=3), nn.Conv2d(9, 5, 1)
        self.hidden, self.last = nn.Linear(14, 33), nn.Linear(33, 7)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.cat([x + torch.relu(self.inner(x)), self.dead(x)], 1).amax((2, 3))
        return self.last(torch.relu(self.hidden(x)))


def test_a_network(isa, threads, monkeypatch):
    torch.manual_seed(0)
    model = sparsify(Residual(), 0.6, sparsities={"dead": 1.0, "hidden": 0.95}, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model(torch.randn(8, 2, 6, 7))  # statistics of its own for the norm
    model.eval()
    layouts = hold(model, torch.randn(1, 2, 6, 7), threads, monkeypatch, [torch.randn(5, 2, 6, 7)])
    assert layouts >= {"dense", "planes", "windows"}
