"""GroupLasso: its closed form for orthonormal designs, its operator against loops, groups of convolutions and sparse layers."""

import itertools
from math import sqrt

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.regularizers import GroupLasso
from truesparse.regularizers.base import entries_of


def orthonormal(samples, columns):
    """x with x^T x / samples = 1."""
    return torch.linalg.qr(torch.randn(samples, columns, dtype=torch.float64))[0] * sqrt(samples)


def members(shape, groups):
    """Sets of positions (row, column) of a matrix."""
    rows, columns = shape
    height, width = {"rows": (1, columns), "columns": (rows, 1)}.get(groups, groups)
    for top, left in itertools.product(range(0, rows, height), range(0, columns, width)):
        yield [(top + i, left + j) for i in range(height) for j in range(width)]


@pytest.mark.parametrize("groups", ["rows", "columns", (2, 3)])
@pytest.mark.parametrize("kind", ["dense", "sparse", "masked"])
def test_closed_form_for_orthonormal_designs(groups, kind):
    scale = torch.outer(torch.linspace(0.2, 1.6, 4), torch.linspace(0.2, 1.6, 6)).double()
    x, truth = orthonormal(20, 6), torch.randn(4, 6, dtype=torch.float64) * scale
    y, strength = x @ truth.T + 0.1 * torch.randn(20, 4, dtype=torch.float64), 0.35
    model = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    if kind != "dense":
        model = ts.sparsify(model, 0.3, masked=kind == "masked")
    present = torch.ones(4, 6, dtype=torch.bool) if kind == "dense" else model.topology.mask()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)  # the curvature is 1
    GroupLasso(model, optimizer, strength, groups)
    for _ in range(3):
        optimizer.zero_grad()
        (((model(x) - y).square().sum(1)).mean() / 2).backward()
        optimizer.step()
    least_squares = (y.T @ x / 20) * present
    expected = torch.zeros(4, 6, dtype=torch.float64)
    zeros = 0
    for group in members((4, 6), groups):
        size = sum(bool(present[at]) for at in group)
        length = sqrt(sum(float(least_squares[at]) ** 2 for at in group))
        factor = max(0.0, 1 - strength * sqrt(size) / length) if length else 0.0
        zeros += factor == 0
        for at in group:
            expected[at] = factor * least_squares[at]
    found = model.weight if kind == "dense" else model.to_dense()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert 0 < zeros < len(list(members((4, 6), groups)))
    assert torch.equal(found == 0, expected == 0)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
@pytest.mark.parametrize("groups", ["rows", "columns"])
def test_channels_of_convolutions(groups, kind):
    """With groups of the convolution an input channel is read by the rows of its own group only."""
    model = nn.Conv2d(6, 4, (2, 3), groups=2, dtype=torch.float64)
    if kind == "sparse":
        model = ts.sparsify(model, 0.4)
    before = (model.to_dense() if kind == "sparse" else model.weight).detach().clone()
    present = model.topology.mask().view(4, 3, 2, 3) if kind == "sparse" else torch.ones(4, 3, 2, 3, dtype=torch.bool)
    penalty = GroupLasso(model, torch.optim.SGD(model.parameters(), lr=1.0), 1.0, groups)
    with torch.no_grad():
        penalty.shrink(model, 0.12)
    after = (model.to_dense() if kind == "sparse" else model.weight).detach()
    parts = [(row, slice(None)) for row in range(4)] if groups == "rows" else [(slice(h, h + 2), c) for h in (0, 2) for c in range(3)]
    for part in parts:
        length, size = float(before[part].square().sum().sqrt()), int(present[part].sum())
        torch.testing.assert_close(after[part], before[part] * max(0.0, 1 - 0.12 * sqrt(size) / length))


def test_blocks_become_a_pattern_and_rows_can_be_shrunk():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    GroupLasso(model, optimizer, 0.3, "rows", exclude=["2"])
    x = torch.randn(64, 8)
    for _ in range(40):
        optimizer.zero_grad()
        (model(x) - x[:, :3]).square().mean().backward()
        optimizer.step()
    dead = (model[0].weight == 0).all(1)
    assert 0 < int(dead.sum()) < 12
    assert torch.equal((model[0].weight == 0).any(1), dead)
    expected = model(x)
    sparse = ts.sparsify(model, None, from_weights=True, pattern="neurons", exclude=["2"])
    assert sparse[0].topology.empty_rows == int(dead.sum())
    small = ts.shrink(sparse, x)
    assert small[0].geometry.shape[0] == 12 - int(dead.sum())
    torch.testing.assert_close(small(x), expected)


def test_groups_follow_a_rewiring():
    model = ts.sparsify(nn.Linear(6, 4, bias=False), 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    penalty = GroupLasso(model, optimizer, 1.0)
    ts.rewire(model, optimizer, ts.Move.between(model.topology, ts.Topology.from_mask(torch.eye(4, 6))))
    model.values.data = torch.tensor([0.1, 0.5, -0.2, 1.0])
    with torch.no_grad():
        penalty.shrink(model, 0.3)
    torch.testing.assert_close(entries_of(model).detach(), torch.tensor([0.0, 0.2, 0.0, 0.7]))


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ((3, 2), "layer '': blocks of 3 x 2 do not divide its matrix of 4 x 6; exclude it"),
        ((0, 2), "blocks of 0 x 2"),
        ("neurons", r"groups are 'rows', 'columns' or \(height, width\) of blocks, got 'neurons'"),
    ],
)
def test_groups_that_do_not_fit_are_told(groups, said):
    model = nn.Linear(6, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=said):
        GroupLasso(model, optimizer, 1.0, groups)
    assert not optimizer._optimizer_step_post_hooks
