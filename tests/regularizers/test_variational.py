"""VariationalDropout: its divergence against numerical integration, its noise against the variance, and what is left in the end."""

from math import log, pi

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.regularizers import VariationalDropout, divergence


def integrated(log_alpha):
    """KL of N(1, alpha) from the log-uniform prior, up to its constant: the mean of log |1 + sqrt(alpha) e| - log(alpha) / 2."""
    sigma = torch.tensor(log_alpha, dtype=torch.float64).exp().sqrt()
    e = torch.linspace(-12, 12, 400_001, dtype=torch.float64) + 1.234e-7  # not at the singularity itself
    density = (-e.square() / 2).exp() / (2 * pi) ** 0.5
    return float(((1 + sigma * e).abs().log() * density).sum() * (e[1] - e[0])) - 0.5 * log_alpha


@pytest.mark.parametrize("log_alpha", [-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
def test_the_divergence_against_integration(log_alpha):
    constant = integrated(10.0)  # 0 for large alpha
    found = float(divergence(torch.tensor(log_alpha, dtype=torch.float64)))
    assert found == pytest.approx(integrated(log_alpha) - constant, abs=0.02)


def test_the_divergence_falls_to_zero_and_has_the_gradient_of_its_equation():
    at = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    found = divergence(at)
    assert (found[1:] < found[:-1]).all()
    assert float(found[-1].detach()) == pytest.approx(0.0, abs=1e-3)
    alpha = at.detach().exp()
    sigmoid = 1 / (1 + (-(1.8732 + 1.48695 * at.detach())).exp())
    expected = 0.63576 - 0.63576 * sigmoid + 0.5 * (1 + 1 / alpha).log()
    torch.testing.assert_close(found.detach(), expected)
    found.sum().backward()
    torch.testing.assert_close(at.grad, -0.63576 * 1.48695 * sigmoid * (1 - sigmoid) - 0.5 / (1 + alpha))


@pytest.mark.parametrize("kind", ["dense", "sparse", "masked"])
@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_noise_has_the_mean_and_variance_of_the_weights(kind, layer):
    torch.manual_seed(0)
    model = nn.Linear(6, 4) if layer == "linear" else nn.Conv2d(4, 6, 3, groups=2, stride=2)
    if kind != "dense":
        model = ts.sparsify(model, 0.5, masked=kind == "masked")
    x = torch.randn(3, 6) if layer == "linear" else torch.randn(2, 4, 5, 5)
    expected = model(x).detach()
    dropout = VariationalDropout(model, 0.1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.eval()(x), expected)
    variances = torch.rand(model.log_variance.shape)
    model.log_variance.data = variances.log()
    model.train()
    draws = model(x.expand(4000, *x.shape).flatten(0, 1)).detach().view(4000, *expected.shape)
    if kind == "dense":
        whole = variances
    else:
        whole = model.topology.scatter(model.of_connections(variances)).view(model.geometry.weight_shape)
    if layer == "linear":
        variance = x.square() @ whole.T
    else:
        variance = nn.functional.conv2d(x.square(), whole, groups=2, stride=2)
    torch.testing.assert_close(draws.mean(0), expected, atol=0.2, rtol=0)
    torch.testing.assert_close(draws.var(0), variance, atol=0, rtol=0.15)
    (model(x).square().mean() + dropout.loss()).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_what_is_noise_goes_and_what_matters_stays():
    torch.manual_seed(0)
    x = torch.randn(200, 8)
    y = x[:, :2] @ torch.tensor([2.0, -3.0])
    model = nn.Linear(8, 1, bias=False)
    dropout = VariationalDropout(model, 0.02)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        ((model(x)[:, 0] - y).square().mean() + dropout.loss()).backward()
        optimizer.step()
    log_alpha = dropout.log_alpha(model).detach()
    dropout.finish()
    assert (model.weight[0] != 0).tolist() == [True] * 2 + [False] * 6
    assert torch.equal(model.weight == 0, log_alpha > 3)
    assert [name for name, _ in model.named_parameters()] == ["weight"]
    assert not model._forward_hooks
    sparse = ts.sparsify(model, None, from_weights=True)
    assert sparse.topology.indices.tolist() == [0, 1]


def test_the_loss_is_the_sum_over_weights():
    model = ts.sparsify(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), 0.5, exclude=["1"])
    dropout = VariationalDropout(model, 0.25, exclude=["1"])
    assert list(dropout.held) == ["0"]
    log_alpha = [max(-8.0, min(8.0, -10.0 - log(float(value) ** 2))) for value in model[0].values]
    expected = sum(float(divergence(torch.tensor(one))) for one in log_alpha)
    assert float(dropout.loss()) == pytest.approx(0.25 * expected, rel=1e-4)
