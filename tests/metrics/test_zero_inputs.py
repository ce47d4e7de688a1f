"""The zeros that layers read are those that one counts by hand, and counting leaves no trace."""

import copy

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.metrics import InputZeros, activations


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.twice = nn.Linear(6, 8), nn.BatchNorm1d(8), ts.SparseLinear(8, 8, sparsity=0.5)
        self.image, self.never = nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2, 2)

    def forward(self, x, image=None):
        y = self.norm(self.first(x)).relu()
        y = self.twice(input=self.twice(y).relu())
        return y if image is None else (y, self.image(image))


def test_by_hand():
    torch.manual_seed(0)
    model = Branches().eval()
    x, image = torch.tensor([[0.0, -0.0, 1.0, 2.0, float("nan"), 3.0]] * 4), torch.eye(5)[None, None]
    with torch.no_grad():
        given = model.norm(model.first(x.nan_to_num(1.0))).relu()
        again = model.twice(given).relu()
    found = activations(model, (x.nan_to_num(1.0), image))
    assert found.layers["first"] == InputZeros(8, 24)
    assert found.layers["twice"] == InputZeros(int((given == 0).sum() + (again == 0).sum()), 64)
    assert found.layers["image"] == InputZeros(20, 25)
    assert found.layers["never"].share is None
    assert activations(model, x).layers["first"] == InputZeros(8, 24), "NaN is no zero"
    assert found.share == sum(one.zeros for one in found.layers.values()) / sum(one.numbers for one in found.layers.values())
    lines = str(found).splitlines()
    assert lines[0].split() == ["first", "33.3%", "zeros"]
    assert lines[-1].split() == ["never", "not", "called"]


def test_batches_are_added_up():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    batches = [torch.randn(size, 4) for size in (3, 5)]
    together = activations(model, torch.cat(batches))
    assert activations(model, batches) == together
    assert activations(model, ((x,) for x in batches)) == together
    assert activations(model, [{"input": x} for x in batches]) == together


def test_it_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), ts.nn.TopK(2, boost=1.0, units=4), nn.Linear(4, 2)).train()
    model[1].eval()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    for data in (torch.randn(3, 4), torch.randn(3, 5)):
        try:
            activations(model, data)
        except RuntimeError:
            assert data.shape[1] == 5
        assert [module.training for module in model] == [True, False, True, True, True]
        assert all(torch.equal(model.state_dict()[name], array) for name, array in before.items())
        assert not any(module._forward_pre_hooks for module in model)
        assert all(parameter.grad is None for parameter in model.parameters())
    torch.randn(2, 3, 4)
    torch.set_rng_state(random)


def test_what_is_no_batch():
    model = nn.Linear(4, 2)
    with pytest.raises(TypeError, match=r"got list: of a loader that gives \[inputs, targets\] pass \(inputs for inputs, _ in loader\)"):
        activations(model, [[torch.zeros(1, 4), torch.zeros(1)]])
    with pytest.raises(ValueError, match="expected an input or batches of inputs, got no batch"):
        activations(model, [])


def test_a_tracker_reports_them():
    model = nn.Sequential(ts.SparseLinear(8, 16, sparsity=0.5), nn.ReLU(), ts.SparseLinear(16, 4, sparsity=0.5))
    x = torch.randn(10, 8)
    layers = ts.metrics.Tracker(model, example=x).report()["layers"]
    assert layers["0"]["zero_inputs"] == 0
    assert layers["2"]["zero_inputs"] == pytest.approx(activations(model, x).layers["2"].share, rel=1e-5)
    assert "zero_inputs" not in ts.metrics.Tracker(model).report()["layers"]["2"]
