"""L0: the expected number of gates against numerical integration and draws, its gradient, and what is left in the end."""

from math import log

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.common.hooks import user_hooks
from truesparse.regularizers import L0, chance_of_a_gate, hard_concrete


def drawn(log_alpha, count=200_001):
    """Gates for uniform numbers on a fine grid: what a mean over draws goes to."""
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return hard_concrete(log_alpha, uniform)


@pytest.mark.parametrize("log_alpha", [-4.0, -1.0, 0.0, 0.7, 3.0])
def test_the_chance_of_a_gate_and_its_gradient(log_alpha):
    at = torch.tensor(log_alpha, dtype=torch.float64, requires_grad=True)
    chance = chance_of_a_gate(at)
    assert float((drawn(at.detach()) > 0).double().mean()) == pytest.approx(float(chance.detach()), abs=1e-5)
    chance.backward()
    p = 1 / (1 + 2.718281828459045 ** -(log_alpha - 2 / 3 * log(0.1 / 1.1)))
    assert float(chance.detach()) == pytest.approx(p, abs=1e-12)
    assert float(at.grad) == pytest.approx(p * (1 - p), abs=1e-12)


def test_gates_against_the_equations_written_out():
    for log_alpha, u in ((0.3, 0.2), (-2.0, 0.9), (1.5, 0.999), (-1.0, 0.01)):
        s = 1 / (1 + 2.718281828459045 ** (-(log(u) - log(1 - u) + log_alpha) / (2 / 3)))
        expected = min(1.0, max(0.0, s * 1.2 - 0.1))
        assert float(hard_concrete(torch.tensor(log_alpha, dtype=torch.float64), torch.tensor(u, dtype=torch.float64))) == pytest.approx(
            expected
        )
    assert float(hard_concrete(torch.tensor(0.0))) == pytest.approx(0.5)
    assert hard_concrete(torch.tensor([-3.0, 3.0])).tolist() == [0.0, 1.0]


def test_the_gradient_of_a_mean_over_draws():
    """Reparametrised: the derivative of the mean gate, against differences of means."""
    at = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    drawn(at).mean().backward()
    difference = (
        drawn(torch.tensor(0.4 + 1e-3, dtype=torch.float64)).mean() - drawn(torch.tensor(0.4 - 1e-3, dtype=torch.float64)).mean()
    ) / 2e-3
    assert float(at.grad) == pytest.approx(float(difference), abs=1e-5)


@pytest.mark.parametrize("groups", [None, "rows", "columns", (2, 2)])
@pytest.mark.parametrize("kind", ["dense", "sparse", "masked"])
def test_expected_number_and_forward_passes(groups, kind):
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    if kind != "dense":
        model = ts.sparsify(model, 0.5, masked=kind == "masked")
    count = sum(layer.weight.numel() if kind == "dense" else layer.topology.nnz for layer in (model[0], model[2]))
    names = [name for name, _ in model.named_parameters()]
    l0 = L0(model, 0.01, groups, chance=0.8, generator=torch.Generator().manual_seed(0))
    assert l0.expected().item() == pytest.approx(0.8 * count, rel=1e-5)
    assert l0.loss().item() == pytest.approx(0.008 * count, rel=1e-5)
    x = torch.randn(5, 6)
    assert not torch.equal(model(x), model(x)), "drawn anew in training"
    (model(x).square().mean() + l0.loss()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    for layer in l0.held.values():
        layer.log_alpha.data = torch.linspace(-4, 4, layer.log_alpha.numel()).view_as(layer.log_alpha)
    model.eval()
    expected, state = model(x), {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert torch.equal(model(x), expected), "no draws in eval mode"
    l0.finish()
    torch.testing.assert_close(model(x), expected)
    assert [name for name, _ in model.named_parameters()] == names
    assert any((model.get_parameter(name) == 0).any() and (state[name] != 0).any() for name in names if "bias" not in name)
    if kind == "dense":
        sparse = ts.sparsify(model, None, from_weights=True)
        torch.testing.assert_close(sparse(x), expected)


def test_groups_share_a_gate():
    model = nn.Conv2d(4, 6, 3, groups=2)
    l0 = L0(model, 1.0, "columns")
    assert model.log_alpha.shape == (2 * 2,), "an input channel of each group"
    model.log_alpha.data = torch.tensor([9.0, -9.0, 9.0, 9.0])
    before = model.weight.detach().clone()
    l0.finish()
    assert torch.equal(model.weight[:3, 0], before[:3, 0])
    assert not model.weight[:3, 1].any()
    assert torch.equal(model.weight[3:], before[3:])


def test_it_finds_the_columns_that_matter():
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    y = x[:, :2] @ torch.tensor([2.0, -3.0])
    model = nn.Linear(8, 1, bias=False)
    l0 = L0(model, 0.05, chance=0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        ((model(x)[:, 0] - y).square().mean() + l0.loss()).backward()
        optimizer.step()
    l0.finish()
    assert (model.weight[0] != 0).tolist() == [True] * 2 + [False] * 6


def test_an_error_in_a_forward_pass_leaves_the_layer_whole():
    model = nn.Linear(3, 2)
    weight = model.weight
    L0(model, 1.0)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 5))
    assert model.weight is weight


def test_gates_are_no_hooks_that_only_watch():
    model = nn.Sequential(nn.Linear(3, 2))
    l0 = L0(model, 1.0)
    assert user_hooks(model)
    with pytest.raises(TypeError, match="has hooks that would be lost"):
        ts.sparsify(model, 0.5)
    l0.finish()
    assert not user_hooks(model)


def test_bad_settings_are_told():
    with pytest.raises(ValueError, match=r"chance lies in \(0, 1\), got 1.0"):
        L0(nn.Linear(2, 2), 1.0, chance=1.0)
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="blocks of 3 x 3"):
        L0(model, 1.0, (3, 3))
    assert not hasattr(model, "log_alpha")
