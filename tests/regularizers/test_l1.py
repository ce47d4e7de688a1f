"""L1, its smooth versions and FISTA: the lasso path of scikit-learn, stationarity, and what is spared."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.regularizers import L1, SmoothL1, drop_zeros, fista, soft_threshold

SAMPLES, COLUMNS = 30, 8
# What scikit-learn 1.9.1 finds for `problem`: Lasso(alpha, fit_intercept=False, tol=1e-14).coef_.
PATH = {
    0.5: [1.145293268, 0.0, -0.690937478, 0.0, 0.0, 0.0, 0.0, 0.0],
    0.2: [1.66416907, 0.0, -1.189176399, 0.0, 0.357611063, 0.0, 0.0, 0.0],
    0.05: [1.914856052, 0.0, -1.414576497, 0.0, 0.614213785, 0.0, 0.0, 0.20558873],
    0.01: [1.980744627, 0.0, -1.470655308, 0.038858508, 0.681623274, 0.0, 8.8387e-05, 0.27472846],
}


def problem():
    """(x [30, 8], y [30]) in float64, made by formulas: a few columns matter, some are alike."""
    row, column = torch.meshgrid(torch.arange(SAMPLES), torch.arange(COLUMNS), indexing="ij")
    x = torch.cos((1.3 + 0.7 * column) * row.double()) + 0.3 * torch.sin(0.5 * row * column)
    truth = torch.tensor([2.0, 0.0, -1.5, 0.0, 0.7, 0.0, 0.0, 0.3], dtype=torch.float64)
    return x, x @ truth + 0.1 * torch.sin(3.0 * torch.arange(SAMPLES).double())


def largest_curvature(x):
    return float(torch.linalg.eigvalsh(x.T @ x / len(x)).max())


def trained(model, optimizer, steps):
    x, y = problem()
    for _ in range(steps):
        optimizer.zero_grad()
        ((model(x)[:, 0] - y).square().mean() / 2).backward()
        optimizer.step()


@pytest.mark.parametrize("alpha", PATH)
def test_the_lasso_path_of_scikit_learn(alpha):
    x, _ = problem()
    model = nn.Linear(COLUMNS, 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / largest_curvature(x))
    L1(model, optimizer, alpha)
    trained(model, optimizer, 400)
    expected = torch.tensor(PATH[alpha], dtype=torch.float64)
    torch.testing.assert_close(model.weight[0], expected, atol=1e-6, rtol=0)
    assert torch.equal(model.weight[0] != 0, expected != 0), "zeros are exact"


def test_the_lasso_path_by_scikit_learn_itself():
    lasso = pytest.importorskip("sklearn.linear_model").Lasso
    x, y = problem()
    for alpha, expected in PATH.items():
        found = lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=10**6).fit(x.numpy(), y.numpy()).coef_
        assert found == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("accelerated", [False, True])
def test_fista_and_ista(accelerated):
    x, y = problem()
    step = 1 / largest_curvature(x)

    def loss(w):
        return (y - x @ w).square().mean() / 2

    for alpha, expected in PATH.items():

        def proximal(w, step, alpha=alpha):
            return soft_threshold(w, alpha * step)

        start = torch.zeros(COLUMNS, dtype=torch.float64)
        found = fista(loss, start, proximal, step, 400, accelerated)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0)
        assert not start.any()
    with pytest.raises(ValueError, match="no longer finite: step=1000"):
        fista(loss, start, proximal, 1000.0, 400)


def test_fista_takes_fewer_iterations_where_columns_are_alike():
    torch.manual_seed(0)
    x = torch.randn(40, 10, dtype=torch.float64) @ torch.diag(torch.logspace(0, -1.5, 10, dtype=torch.float64))
    y, step = x.sum(1), 1 / largest_curvature(x)

    def objective(w):
        return (y - x @ w).square().mean() / 2

    def proximal(w, step):
        return soft_threshold(w, 1e-4 * step)

    def whole(w):
        return float(objective(w) + 1e-4 * w.abs().sum())

    start = torch.zeros(10, dtype=torch.float64)
    best = whole(fista(objective, start, proximal, step, 3000))
    slow, fast = (whole(fista(objective, start, proximal, step, 100, accelerated)) - best for accelerated in (False, True))
    assert 0 <= fast < slow / 5


def test_one_step_of_any_optimizer_is_its_own_and_then_the_proximal_one():
    for make in (
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        lambda groups: torch.optim.Adam(groups, lr=0.1),
        lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.3),
    ):
        torch.manual_seed(0)
        plain, penalised = (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in range(2))
        penalised.load_state_dict(plain.state_dict())
        optimizers = [make([{"params": one[0].parameters()}, {"params": one[2].parameters(), "lr": 0.02}]) for one in (plain, penalised)]
        L1(penalised, optimizers[1], 0.5)
        x = torch.randn(7, 5)
        for one, optimizer in zip((plain, penalised), optimizers, strict=True):
            one(x).square().mean().backward()
            optimizer.step()
        for layer, rate in ((0, 0.1), (2, 0.02)):  # the learning rate of the parameter's group
            expected = soft_threshold(plain[layer].weight, 0.5 * rate)
            torch.testing.assert_close(penalised[layer].weight, expected, rtol=0, atol=0)
            assert torch.equal(penalised[layer].bias, plain[layer].bias)


def test_frozen_parameters_steps_without_gradient_and_excluded_layers_are_spared():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    model[0].weight.requires_grad_(False)
    before = [layer.weight.clone() for layer in model]
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[1].parameters(), *model[2].parameters()], lr=1.0)
    penalty = L1(model, optimizer, 100.0, exclude=["2"])
    optimizer.step()
    assert all(torch.equal(layer.weight, old) for layer, old in zip(model, before, strict=True)), "no gradient, no step"
    model(torch.randn(6, 5)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, before[0])
    assert not model[1].weight.any()
    assert model[2].weight.all()
    assert torch.equal(model[3].weight, before[3]), "not in the optimizer"
    penalty.detach()
    model[1].weight.data.fill_(1e-3)
    model(torch.randn(6, 5)).sum().backward()
    optimizer.step()
    assert model[1].weight.all()


@pytest.mark.parametrize("masked", [False, True])
def test_sparse_layers_and_what_drops_their_zeros(masked):
    torch.manual_seed(0)
    model = ts.sparsify(nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5)), 0.5, masked=masked)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    L1(model, optimizer, 3.0)
    x = torch.randn(8, 4, 4, 4)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    layer = model[2]
    values, topology = layer.of_connections(layer.parameter.detach()), layer.topology
    moments = layer.of_connections(optimizer.state[layer.parameter]["exp_avg"]).clone()
    kept = values != 0
    assert 0 < int(kept.sum()) < topology.nnz
    expected = model(x)
    total = sum(one.topology.nnz for one in (model[0], model[2]))
    dropped = drop_zeros(model, optimizer)
    assert dropped == total - model[0].topology.nnz - model[2].topology.nnz
    assert layer.topology.equal(topology.keep(kept))
    assert torch.equal(layer.of_connections(layer.parameter), values[kept])
    assert torch.equal(layer.of_connections(optimizer.state[layer.parameter]["exp_avg"]), moments[kept])
    torch.testing.assert_close(model(x), expected)
    optimizer.step()


def test_zeros_that_a_pattern_needs_are_told():
    model = ts.SparseLinear(8, 4, pattern=ts.NM(2, 4))
    model.values.data[0] = 0.0
    with pytest.raises(ValueError, match=r"layer '': .* set its .pattern to Unstructured"):
        drop_zeros(model)
    assert model.topology.nnz == 16


def test_after_training_sparsify_takes_the_zeros():
    x, _ = problem()
    model = nn.Linear(COLUMNS, 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=1 / largest_curvature(x))
    L1(model, optimizer, 0.2)
    trained(model, optimizer, 400)
    sparse = ts.sparsify(model, None, from_weights=True)
    assert sparse.topology.indices.tolist() == [0, 2, 4]
    assert torch.equal(sparse.to_dense(), model.weight)


@pytest.mark.parametrize("shape", ["root", "huber"])
def test_smooth_versions_and_their_gradients(shape):
    model = ts.sparsify(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), 0.5, exclude=["1"]).double()
    penalty = SmoothL1(model, 0.3, width=0.2, shape=shape)
    weights = torch.cat([model[0].values.detach(), model[1].weight.detach().flatten()]).requires_grad_()
    magnitude = weights.abs()
    if shape == "root":
        expected = (weights**2 + 0.04).sqrt() - 0.2
    else:
        expected = torch.where(magnitude <= 0.2, weights**2 / 0.4, magnitude - 0.1)
    (0.3 * expected.sum()).backward()
    found = penalty.loss()
    found.backward()
    torch.testing.assert_close(found, 0.3 * expected.sum())
    torch.testing.assert_close(torch.cat([model[0].values.grad, model[1].weight.grad.flatten()]), weights.grad)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda model, optimizer: L1(model, optimizer, -1.0), "strength is the factor of the penalty and at least 0, got -1.0"),
        (lambda model, optimizer: L1(model, optimizer, float("nan")), "got nan"),
        (lambda model, optimizer: L1(nn.ReLU(), optimizer, 1.0), "found no linear layer or convolution to regularise"),
        (lambda model, optimizer: L1(model, optimizer, 1.0, exclude=["fc"]), "exclude names 'fc', which match no module"),
        (lambda model, optimizer: L1(nn.Linear(2, 2), optimizer, 1.0), "the optimizer holds none of the weights"),
        (lambda model, optimizer: L1(model, torch.optim.LBFGS(model.parameters()), 1.0), "LBFGS takes many steps in one"),
        (lambda model, optimizer: SmoothL1(model, 1.0, width=0.0), "width must be above 0, got 0.0"),
        (lambda model, optimizer: SmoothL1(model, 1.0, shape="log"), "shape is 'root' or 'huber', got 'log'"),
    ],
)
def test_bad_settings_are_told(make, said):
    model = nn.Linear(3, 2)
    with pytest.raises((ValueError, TypeError), match=said):
        make(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_with_a_rewirer_dropped_first_are_those_at_zero():
    torch.manual_seed(0)
    model = ts.sparsify(nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)), 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    L1(model, optimizer, 0.2)
    zeros = []
    optimizer.register_step_post_hook(lambda *_: zeros.append(model[0].topology.keys[model[0].values == 0]))
    rewirer = ts.Rewirer(model, optimizer, ts.SET(0.5), every=3, generator=torch.Generator().manual_seed(0))
    moves = []
    rewirer.register_hook(lambda found: moves.append(found["0"]))
    for _ in range(3):
        F.cross_entropy(model(torch.randn(16, 12)), torch.randint(4, (16,))).backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
    survivors = moves[0].new.keys[~moves[0].grown]
    assert 0 < len(zeros[-1]) < 0.5 * moves[0].old.nnz
    assert not torch.isin(zeros[-1], survivors).any()
