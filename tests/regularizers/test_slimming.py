"""Slimming: factors of batch norms become exactly zero, and their channels leave the network without a change."""

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.regularizers import Slimming, drop_zeros, soft_threshold


class Network(nn.Module):
    def __init__(self, after_sum=False):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        # Without a border of zeros, at which the constant that a silent channel gives would be missing: shrink keeps it then.
        self.second, self.other = nn.Conv2d(8, 8, 3, padding=int(after_sum), bias=False), nn.BatchNorm2d(8)
        self.head, self.after_sum = nn.Linear(8, 4), after_sum

    def forward(self, x):
        made = self.first(x)
        x = torch.relu(self.norm(made))
        x = self.other(self.second(x))
        return self.head(torch.relu(x + made if self.after_sum else x).mean((2, 3)))


@pytest.mark.parametrize("sparse", [False, True])
def test_channels_go_and_nothing_changes(sparse):
    torch.manual_seed(0)
    model = Network()
    if sparse:
        model = ts.sparsify(model, 0.3, exclude=["head"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    slimming = Slimming(model, optimizer, 0.5)
    x, y = torch.randn(16, 3, 5, 5), torch.randint(4, (16,))
    for step in range(10):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        before = model.norm.weight.detach() - 0.1 * model.norm.weight.grad
        optimizer.step()
        torch.testing.assert_close(model.norm.weight.detach(), soft_threshold(before, 0.1 * slimming.strength))
        if step == 8:
            slimming.strength = 50.0
    model.norm.weight.data[3:] = model.other.weight.data[:] = 1.0
    assert not model.norm.weight[:3].any()
    assert model.first.bias.any()
    slimming = Slimming(model, optimizer, 0.0)
    zero = sum(int((norm.weight == 0).sum()) for norm in (model.norm, model.other))
    modes = [module.training for module in model.modules()]
    expected = model.eval()(x)
    model.train()
    assert slimming.silence(model, x) == zero
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(model.eval()(x), expected)
    first = model.first.to_dense() if sparse else model.first.weight
    assert not first[:3].any()
    assert first[3:].flatten(1).any(1).all()
    if sparse:  # a connection stays even if it is zero
        assert drop_zeros(model, optimizer)
    small = ts.shrink(model, x)
    assert small.first.geometry.shape[0] == 5 if sparse else small.first.out_channels == 5
    torch.testing.assert_close(small(x), expected)


def test_an_output_that_is_used_twice_is_told_and_left():
    model = Network(after_sum=True)
    slimming = Slimming(model, torch.optim.SGD(model.parameters(), lr=0.1), 1.0)
    model.norm.weight.data[:2] = 0.0
    weight = model.first.weight.clone()
    with pytest.raises(ValueError, match="is used elsewhere too"):
        slimming.silence(model, torch.randn(2, 3, 5, 5))
    assert torch.equal(model.first.weight, weight)
    assert model.training


def test_bad_settings_are_told():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, affine=False))
    with pytest.raises(ValueError, match="found no batch norm with factors"):
        Slimming(model, torch.optim.SGD(model.parameters(), lr=0.1), 1.0)
