"""The estimate, by hand from the figures that it states."""

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.metrics import Energy

MULTIPLY, ADD, MULTIPLY8, ADD32 = 3.7, 0.9, 0.2, 0.1
DRAM, CACHE = 1300 / 8, 10 / 8


def test_a_dense_layer_by_hand():
    estimate = ts.metrics.energy(nn.Linear(10, 4), torch.zeros(3, 10))
    products = 40
    expected = Energy(products * (MULTIPLY + ADD), 40 * 4 * DRAM, (products + 4) * 4 * CACHE)
    assert same(estimate.layers[""], expected)
    assert estimate.sparse.total == pytest.approx(expected.arithmetic + expected.weights + expected.activations)
    assert same(estimate.dense, expected)


def same(one, other):
    return all(getattr(one, part) == pytest.approx(getattr(other, part)) for part in ("arithmetic", "weights", "activations"))


def test_a_sparse_convolution_by_hand():
    layer = ts.SparseConv2d(2, 3, 3, padding=1, sparsity=0.5)
    connections, places = layer.topology.nnz, 5 * 6
    estimate = ts.metrics.energy(layer, torch.zeros(2, 2, 5, 6), batch=4)
    products = connections * places
    expected = Energy(products * (MULTIPLY + ADD), connections * (4 + 4) * DRAM / 4, (products + 3 * places) * 4 * CACHE)
    assert same(estimate.sparse, expected)
    whole = 54 * places
    assert same(estimate.dense, Energy(whole * (MULTIPLY + ADD), 54 * 4 * DRAM / 4, (whole + 3 * places) * 4 * CACHE))


def test_a_training_step_by_hand():
    layer, x = ts.SparseLinear(20, 10, sparsity=0.75), torch.zeros(1, 20)
    estimate = ts.metrics.energy(layer, x, training=True)
    # forward, gradient of inputs, gradient of weights; values read twice, written once, and their gradient; columns read twice
    expected = Energy(3 * 50 * (MULTIPLY + ADD), 50 * (4 * 4 + 2 * 4) * DRAM, (3 * 50 + 3 * 10) * 4 * CACHE)
    assert same(estimate.sparse, expected)
    rigl = ts.metrics.energy(layer, x, training=True, every=1)  # every second step needs the dense gradient
    assert rigl.sparse.arithmetic == pytest.approx((3 * 50 + 2 * 50 + 200) / 2 * (MULTIPLY + ADD))
    assert rigl.dense == estimate.dense


def test_quantised_layers_by_hand():
    x = torch.randn(3, 20)

    def made(**settings):
        torch.manual_seed(0)
        return ts.metrics.energy(ts.quantize(ts.SparseLinear(20, 10, sparsity=0.75), **settings), x).sparse

    whole_numbers = Energy(50 * (MULTIPLY8 + ADD32), 50 * (4 / 8 + 4) * DRAM, (50 + 10) * 1 * CACHE)
    assert same(made(bits=4, data=x), whole_numbers)
    weights_only = Energy(50 * (MULTIPLY + ADD), 50 * (4 / 8 + 4) * DRAM, (50 + 10) * 4 * CACHE)
    assert same(made(bits=4), weights_only)
    assert same(made(bits=4, by="codebook", data=x), weights_only)
    layer = ts.quantize(ts.SparseLinear(20, 10, sparsity=0.75), 8, data=x)
    plain = ts.metrics.energy(ts.dequantize(layer), x, training=True)
    assert same(ts.metrics.energy(ts.quantize(layer, 8, data=x), x, training=True).sparse, plain.sparse), "trained in floats"


def test_networks_are_the_sums_of_their_layers_and_what_is_not_called_costs_nothing():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.never = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            return self.twice(self.twice(x))

    estimate = ts.metrics.energy(Half(), torch.zeros(2, 6))
    assert estimate.layers["never"] == Energy(0.0, 0.0, 0.0)
    assert estimate.sparse == estimate.layers["twice"]
    assert estimate.sparse.arithmetic == pytest.approx(2 * 36 * (MULTIPLY + ADD))
    assert ts.metrics.energy(nn.ReLU(), torch.zeros(2, 6)).sparse.total == 0.0


def test_a_tracker_reports_it():
    model = ts.sparsify(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), 0.5)
    report = ts.metrics.Tracker(model, example=torch.zeros(1, 8)).report()
    estimate = ts.metrics.energy(model, torch.zeros(1, 8))
    assert report["energy"]["inference"] == pytest.approx(estimate.sparse.total, rel=1e-5)
    assert report["energy"]["dense_inference"] == pytest.approx(estimate.dense.total, rel=1e-5)
    assert "energy" not in ts.metrics.Tracker(model).report()


def test_what_is_refused():
    with pytest.raises(ValueError, match="batch is a number of samples, at least 1, got 0"):
        ts.metrics.energy(nn.Linear(2, 2), torch.zeros(1, 2), batch=0)
    with pytest.raises(ValueError, match="every is about the dense gradient of training steps: pass training=True, got every=3"):
        ts.metrics.energy(nn.Linear(2, 2), torch.zeros(1, 2), every=3)
    with pytest.raises(TypeError, match="say how many samples it has"):
        ts.metrics.energy(nn.Linear(2, 2), (torch.zeros(1, 2),))
