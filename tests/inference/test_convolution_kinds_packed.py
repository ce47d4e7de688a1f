"""Convolutions of every kind, packed: each computes what it did, in a layout that is measured."""

import copy
import pickle

import pytest
import torch
from oracles.convolutions import NETWORKS
from torch import nn

import truesparse as ts
from truesparse.inference.choice import Memory
from truesparse.nn.kinds import KINDS

OTHERS = [kind for kind in KINDS if kind.dense not in (nn.Linear, nn.Conv2d)]


@pytest.mark.parametrize("masked", [False, True, None])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, masked, tmp_path):
    torch.manual_seed(0)
    model = NETWORKS[name][0]().eval()
    x = torch.randn(2, *NETWORKS[name][1])
    if masked is not None:
        ts.sparsify(model, 0.8, masked=masked)
    packed = ts.pack(model, x, memory=Memory(tmp_path / "layouts.json"))
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    other = torch.randn(3, *x.shape[1:])
    torch.testing.assert_close(pickle.loads(pickle.dumps(packed))(other), model(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", OTHERS, ids=lambda kind: kind.dense.__name__)
@pytest.mark.parametrize("tune", [False, True])
def test_layers(kind, tune, tmp_path):
    n = int(kind.dense.__name__[-2])
    settings = {} if hasattr(kind.sparse, "output_padding") else {"padding_mode": "circular"}
    model = nn.Sequential(kind.sparse(6, 8, 3, padding=1, groups=2, sparsity=0.9, **settings), nn.ReLU(), kind.sparse(8, 4, 1, stride=2))
    x = torch.randn(2, 6, *(6, 5, 4)[:n])
    packed = ts.pack(model, x, tune=tune, memory=Memory(tmp_path / "layouts.json"))
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(packed(x[0]), model(x[0]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(packed)(x[:1]), model(x[:1]), rtol=1e-4, atol=1e-5)
    assert [row.layer for row in packed.explain().rows] == ["0", "2"]
    assert all(row.layout in ("dense", "planes", "kernels") for row in packed.explain().rows)


def test_a_layer_that_is_told_its_output_size_stays_as_it_is():
    torch.manual_seed(0)
    model, x = ts.sparsify(NETWORKS["unet"][0](), 0.8).eval(), torch.randn(1, 2, 7, 6)
    packed = ts.pack(model, x, tune=False)
    assert "up" in packed.explain().whole
    torch.testing.assert_close(packed(x), model(x), rtol=1e-4, atol=1e-5)
