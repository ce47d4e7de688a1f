"""Whole blocks go that change least of what goes through them; the others are as they were, in their order."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.pruning import block_influence


class Scaled(nn.Module):
    """x + scale * W x"""

    def __init__(self, scale, place):
        super().__init__()
        self.linear, self.scale, self.layer_idx = nn.Linear(6, 6), scale, place

    def forward(self, x, note=None):
        return x + self.scale * self.linear(x), note


class Stack(nn.Module):
    def __init__(self, scales):
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=len(scales), layer_types=[f"kind {place}" for place in range(len(scales))])
        self.blocks, self.head = nn.ModuleList(Scaled(scale, place) for place, scale in enumerate(scales)), nn.Linear(6, 2)

    def forward(self, x):
        for block in self.blocks:
            x, _ = block(x, note="kept")
        return self.head(x)


def stack(*scales):
    torch.manual_seed(0)
    return Stack(scales).double(), [torch.randn(4, 3, 6).double(), torch.randn(2, 3, 6).double()]


def test_influence_is_one_minus_the_mean_cosine():
    model, data = stack(0.5, 2.0)
    expected, rows = [], torch.cat([batch.flatten(0, 1) for batch in data])
    for block in model.blocks:
        after = block(rows)[0].detach()
        cosine = (rows * after).sum(1) / (rows.norm(dim=1) * after.norm(dim=1))
        expected.append(1 - float(cosine.mean()))
        rows = after
    torch.testing.assert_close(block_influence(model, "blocks", data), torch.tensor(expected).double())


def test_the_channels_of_images_are_compared():
    model, x = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1))).double(), torch.randn(2, 3, 4, 5).double()
    y = model(x)
    cosine = (x * y).sum(1) / (x.square().sum(1) * y.square().sum(1)).sqrt()
    torch.testing.assert_close(block_influence(model, "0", x), 1 - cosine.mean().detach()[None])


def test_blocks_of_least_influence_go_and_the_others_compute_what_they_did():
    model, data = stack(1.0, 0.01, 2.0, 0.02)
    before = copy.deepcopy(model)
    assert ts.drop_blocks(model, 2, "blocks", data) is model
    assert [block.scale for block in model.blocks] == [1.0, 2.0]
    assert [block.layer_idx for block in model.blocks] == [0, 1]
    assert model.config == SimpleNamespace(num_hidden_layers=2, layer_types=["kind 0", "kind 2"])
    x = data[0]
    torch.testing.assert_close(model(x), before.head(before.blocks[2](before.blocks[0](x)[0])[0]))
    assert not any(block._forward_hooks for block in model.blocks)


def test_what_cannot_be_is_refused_and_nothing_changes():
    model, data = stack(1.0, 2.0)
    for settings, message in (
        ((1, "layers", data), r"'layers' is no list of blocks; there are: 'blocks'"),
        ((2, "blocks", data), r"'blocks' has 2 blocks, of which one must stay: count is at most 1, got 2"),
        ((1, "blocks", []), r"no data reached block 0 of 'blocks'"),
    ):
        with pytest.raises(ValueError, match=message):
            ts.drop_blocks(model, *settings)
    narrow = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4))
    with pytest.raises(
        ValueError, match=r"block 1 of '' cannot be left out: expected an output of the shape of its input, got \(5, 6\), \(5, 4\)"
    ):
        ts.drop_blocks(narrow, 1, "", torch.randn(5, 6))
    assert len(model.blocks) == len(narrow) == 2
    assert not any(module._forward_hooks for one in (model, narrow) for module in one.modules())
