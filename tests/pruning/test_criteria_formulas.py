"""Each criterion is the formula of its paper: dense, in float64, and by brute force where there is one."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.nn.convert import topology_layers
from truesparse.pruning import Evidence, History
from truesparse.pruning.probe import Probe, Probed, called


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def data():
    return [(drawn(8, 6, seed=seed), torch.arange(8) % 3) for seed in (1, 2)]


def mean_loss(model):
    return torch.stack([F.cross_entropy(model(x), target) for x, target in data()]).mean()


LAYERS = ("0", "2", "4")


def weights_of(model):
    return {name: model.get_submodule(name).weight for name in LAYERS}


class Seen:
    """A criterion that keeps the scores it gives, by layer."""

    def __init__(self, criterion):
        self.criterion, self.found = criterion, {}

    def __getattr__(self, name):
        return getattr(self.criterion, name)

    def scores(self, evidence):
        return self.found.setdefault(evidence.name, self.criterion.scores(evidence))


def scores_of(criterion, model, **arguments):
    seen = Seen(criterion)
    ts.prune(model, 0.2, seen, **{"data": data(), "loss": F.cross_entropy, **arguments})
    return seen.found


@pytest.mark.parametrize(("power", "norm"), [(1, lambda row: row.abs().sum()), (2, lambda row: row.square().sum().sqrt())])
def test_magnitude_of_filters_is_their_norm(power, norm):
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.ReLU(), nn.Conv2d(7, 4, 1)).double()
    dense = copy.deepcopy(model)
    ts.prune(model, 0.5, ts.criteria.Magnitude(power), pattern="neurons", exclude=["2"])
    norms = torch.stack([norm(filter) for filter in dense[0].weight])
    kept = set(model[0].topology.rows.tolist())
    assert kept == set(norms.topk(len(kept)).indices.tolist())
    assert len(kept) == 4


def test_l1_and_l2_norms_keep_different_filters():
    weight = torch.tensor([[1.0, 1, 1, 1], [2.5, 0, 0, 0], [0.1, 0.1, 0.1, 0.1]])
    found = {power: ts.criteria.Magnitude(power).scores(Evidence("", weight)).sum(1) for power in (1, 2)}
    assert found[1].argmax() == 0
    assert found[2].argmax() == 1


def test_lamp_is_its_share_of_what_is_at_least_as_large():
    weight = torch.tensor([[0.5, -2.0, 0.0], [1.0, -0.5, 3.0]], dtype=torch.float64)
    squares = weight.square().flatten()
    expected = [float(one / squares[squares >= one].sum()) for one in squares]
    torch.testing.assert_close(ts.criteria.LAMP().scores(Evidence("", weight)).flatten(), torch.tensor(expected, dtype=torch.float64))


def test_lamp_of_zeros_is_zero():
    assert not ts.criteria.LAMP().scores(Evidence("", torch.zeros(2, 3))).any()


def test_lamp_looks_at_all_groups_of_a_convolution():
    model = nn.Sequential(nn.Conv1d(4, 4, 3, groups=4))
    weight = model[0].weight.detach().double().flatten(1)
    seen = []

    class Spy(ts.criteria.LAMP):
        def scores(self, evidence):
            seen.append(super().scores(evidence))
            return seen[-1]

    ts.prune(model, 0.5, Spy())
    torch.testing.assert_close(torch.cat(seen), ts.criteria.LAMP().scores(Evidence("", weight)))


def test_lamp_shares_out_among_layers_and_keeps_the_largest_of_each():
    model = network()
    weights = {name: weight.detach().flatten() for name, weight in weights_of(model).items()}
    with torch.no_grad():
        model[0].weight.mul_(1e-3)  # by magnitude nothing of it would stay
    expected = {name: ts.criteria.LAMP().scores(Evidence("", weight.view(1, -1))) for name, weight in weights.items()}
    everything = torch.cat([one.flatten() for one in expected.values()])
    threshold = everything.topk(everything.numel() - int(0.6 * everything.numel())).values[-1]
    ts.prune(model, 0.6, "lamp")
    for name, layer in topology_layers(model).items():
        assert torch.equal(layer.topology.mask().flatten(), (expected[name] >= threshold).flatten())


def test_snip_is_the_slope_by_a_factor_of_each_weight():
    """Finite differences of a multiplicative mask."""
    model, step = network(), 1e-6
    expected = {}
    for name, weight in weights_of(model).items():
        slopes = torch.zeros_like(weight)
        for place in range(weight.numel()):
            mask, losses = torch.ones_like(weight), []
            for side in (step, -step):
                mask.view(-1)[place] = 1 + side
                with torch.no_grad():
                    changed = {f"{name}.weight": weight * mask}
                    losses.append(
                        torch.stack([F.cross_entropy(torch.func.functional_call(model, changed, (x,)), t) for x, t in data()]).mean()
                    )
            slopes.view(-1)[place] = (losses[0] - losses[1]) / (2 * step)
        expected[name] = slopes.abs().detach()
    found = scores_of(ts.criteria.SNIP(), model)
    for name in LAYERS:
        torch.testing.assert_close(found[name], expected[name], atol=1e-8, rtol=1e-4)


def test_snip_keeps_the_highest_of_all_layers():
    model = network()
    found = scores_of(ts.criteria.SNIP(), copy.deepcopy(model))
    ts.prune(model, 0.7, "snip", data(), loss=F.cross_entropy)
    layers = topology_layers(model)
    kept = torch.cat([found[name][layer.topology.mask()] for name, layer in layers.items()])
    gone = torch.cat([found[name][~layer.topology.mask()] for name, layer in layers.items()])
    assert kept.min() > gone.max()


def squared_gradient(model, weights):
    """|g|^2 as a function of the weights of the layers."""
    losses = [
        F.cross_entropy(torch.func.functional_call(model, {f"{name}.weight": w for name, w in weights.items()}, (x,)), t) for x, t in data()
    ]
    gradients = torch.autograd.grad(torch.stack(losses).mean(), list(weights.values()), create_graph=True)
    return sum(gradient.square().sum() for gradient in gradients)


def test_grasp_is_how_fast_the_gradient_falls_when_a_weight_goes():
    """|g|^2 at w and at w with a weight a little smaller: its slope is 2 w (H g)."""
    model, step = network(), 1e-6
    start = {name: weight.detach() for name, weight in weights_of(model).items()}
    found = scores_of(ts.criteria.GraSP(), copy.deepcopy(model))
    for name, weight in start.items():
        for place in range(weight.numel()):
            sides = []
            for side in (step, -step):
                changed = {key: value.clone() for key, value in start.items()}
                changed[name].view(-1)[place] *= 1 + side
                sides.append(squared_gradient(model, {key: value.requires_grad_() for key, value in changed.items()}))
            slope = float((sides[0] - sides[1]).detach()) / (2 * step)
            assert float(found[name].view(-1)[place]) == pytest.approx(slope / 2, rel=1e-4, abs=1e-8)


def test_grasp_is_the_weight_times_the_dense_hessian_times_the_gradient():
    model = network()
    start = [weight.detach() for weight in weights_of(model).values()]
    shapes, sizes = [weight.shape for weight in start], [weight.numel() for weight in start]

    def loss(vector):
        parts = {f"{name}.weight": part.view(shape) for name, part, shape in zip(LAYERS, vector.split(sizes), shapes, strict=True)}
        return torch.stack([F.cross_entropy(torch.func.functional_call(model, parts, (x,)), target) for x, target in data()]).mean()

    vector = torch.cat([weight.flatten() for weight in start]).requires_grad_()
    gradient = torch.autograd.grad(loss(vector), vector)[0]
    expected = vector.detach() * (torch.autograd.functional.hessian(loss, vector.detach()) @ gradient)
    found = scores_of(ts.criteria.GraSP(), copy.deepcopy(model))
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in LAYERS]), expected)
    assert (expected < 0).any(), "scores have a sign"
    ts.prune(model, 0.5, "grasp", data(), loss=F.cross_entropy)
    kept = torch.cat([layer.topology.mask().flatten() for layer in topology_layers(model).values()])
    assert expected[kept].min() > expected[~kept].max()


def each_gradient(model):
    """{layer: [samples, rows, columns]} of the loss of each sample alone."""
    found = {name: [] for name in LAYERS}
    for x, target in data():
        for place in range(len(x)):
            gradients = torch.autograd.grad(F.cross_entropy(model(x[place, None]), target[place, None]), list(weights_of(model).values()))
            for name, gradient in zip(LAYERS, gradients, strict=True):
                found[name].append(gradient)
    return {name: torch.stack(gradients) for name, gradients in found.items()}


@pytest.mark.parametrize(
    ("criterion", "formula"),
    [
        (ts.criteria.Taylor(), lambda weight, gradients: (weight * gradients).abs().mean(0)),
        (ts.criteria.OBD(), lambda weight, gradients: weight.square() * gradients.square().mean(0) / 2),
    ],
    ids=["taylor", "obd"],
)
def test_taylor_and_obd_are_means_over_samples(criterion, formula):
    model = network()
    gradients = each_gradient(model)
    expected = {name: formula(weight.detach(), gradients[name]) for name, weight in weights_of(model).items()}
    found = scores_of(criterion, model)
    for name in LAYERS:
        torch.testing.assert_close(found[name], expected[name])


def test_obd_is_what_the_loss_rises_where_the_hessian_is_diagonal():
    """Least squares on inputs that are one each: removing a weight costs h w^2 / 2 exactly."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3, bias=False)).double()
    x = torch.diag(torch.tensor([1.0, 3.0, 0.5, 2.0], dtype=torch.float64))
    targets = model(x).detach()  # trained: the gradient is zero
    weight = model[0].weight.detach().clone()
    cost = torch.zeros_like(weight)
    for place in range(weight.numel()):
        without = weight.clone()
        without.view(-1)[place] = 0
        cost.view(-1)[place] = F.mse_loss(x @ without.T, targets)
    found = scores_of(ts.criteria.OBD("hessian"), model, data=[(x, targets)], loss=F.mse_loss)
    torch.testing.assert_close(found["0"], cost)


def error_of(x, weight, new):
    return (x @ (weight - new).T).square().mean(0)


def solved(x, weight, kept):
    """The weights at `kept` that give nearest the outputs, and zero elsewhere: least squares of each row."""
    new = torch.zeros_like(weight)
    for row in range(len(weight)):
        columns = kept[row].nonzero().flatten()
        if len(columns):
            new[row, columns] = torch.linalg.lstsq(x[:, columns], (x @ weight[row])[:, None]).solution.flatten()
    return new


def greedily_removed(x, weight, count, present=None):
    """Brute force: try to remove each weight that is left, solve the row again, keep the cheapest; `count` times."""
    kept = torch.ones_like(weight, dtype=torch.bool) if present is None else present.clone()
    for _ in range(count):
        costs = torch.full_like(weight, torch.inf)
        now = error_of(x, weight, solved(x, weight, kept))
        for row, column in kept.nonzero().tolist():
            without = kept[row : row + 1].clone()
            without[0, column] = False
            costs[row, column] = error_of(x, weight[row : row + 1], solved(x, weight[row : row + 1], without)) - now[row]
        kept.view(-1)[costs.argmin()] = False
    return kept


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.8])
def test_obs_removes_what_brute_force_removes_and_solves_what_is_left(sparsity):
    x = drawn(30, 5) @ drawn(5, 5, seed=1)
    model = nn.Sequential(nn.Linear(5, 4)).double()
    weight = model[0].weight.detach().clone()
    kept = greedily_removed(x, weight, int(sparsity * 20))
    ts.prune(model, sparsity, "obs", [x])
    assert torch.equal(model[0].topology.mask(), kept)
    torch.testing.assert_close(model[0].to_dense().detach(), solved(x, weight, kept))


def test_obs_finds_the_best_of_all_where_one_goes():
    x, weight = drawn(30, 6) @ drawn(6, 6, seed=1), drawn(1, 6, seed=2)
    errors = {}
    for gone in range(6):
        kept = torch.ones(1, 6, dtype=torch.bool)
        kept[0, gone] = False
        errors[gone] = float(error_of(x, weight, solved(x, weight, kept)))
    scores = ts.criteria.OBS().scores(Evidence("", weight, statistics={"gram": x.T @ x / len(x)}))
    first = min(errors, key=errors.get)
    assert int(scores.argmin()) == first
    assert float(scores.min()) == pytest.approx(errors[first])


def test_obs_scores_are_the_errors_of_one_going_after_another():
    """In each row, by brute force; what becomes cheaper when another has gone stands right behind it."""
    x, weight = drawn(30, 5) @ drawn(5, 5, seed=1), drawn(3, 5, seed=2)
    scores = ts.criteria.OBS().scores(Evidence("", weight, statistics={"gram": x.T @ x / len(x)}))
    for row in range(3):
        only, kept, before, highest = weight[row : row + 1], torch.ones(1, 5, dtype=torch.bool), 0.0, 0.0
        for column in scores[row].argsort().tolist():
            kept[0, column] = False
            error = float(error_of(x, only, solved(x, only, kept)))
            highest = max(highest, error - before)
            assert float(scores[row, column]) == pytest.approx(highest, rel=1e-6)
            before = error
        assert len(scores[row].unique()) == 5


@pytest.mark.parametrize("across", ["layer", "row"])
def test_obs_of_a_layer_that_is_sparse_already(across):
    x = drawn(30, 6) @ drawn(6, 6, seed=1)
    model = ts.sparsify(nn.Sequential(nn.Linear(6, 4)).double(), 0.25, generator=torch.Generator().manual_seed(1))
    present, weight = model[0].topology.mask(), model[0].to_dense().detach()
    ts.prune(model, 0.5, "obs", [x], across=across)
    kept = model[0].topology.mask()
    assert not (kept & ~present).any()
    if across == "layer":
        assert torch.equal(kept, greedily_removed(x, weight, 6, present))
    else:
        assert kept.sum(1).tolist() == [3, 3, 3, 3]
    torch.testing.assert_close(model[0].to_dense().detach(), solved(x, weight, kept))


def test_obs_of_a_convolution_in_groups_mends_each_by_its_own_inputs():
    x = drawn(6, 4, 5, 5)
    model = nn.Sequential(nn.Conv2d(4, 4, 2, groups=2)).double()
    dense = copy.deepcopy(model)
    ts.prune(model, 0.5, "obs", [x])
    patches = [F.unfold(part, 2).movedim(1, 2).flatten(0, 1) for part in x.chunk(2, 1)]
    for group, rows in enumerate(patches):
        mine = slice(2 * group, 2 * group + 2)
        expected = solved(rows, dense[0].weight.detach().flatten(1)[mine], model[0].topology.mask()[mine])
        torch.testing.assert_close(model[0].to_dense().detach().flatten(1)[mine], expected)


def test_obs_dampens_a_singular_gram_matrix_and_says_so():
    x = drawn(3, 6)  # fewer samples than inputs
    model = nn.Sequential(nn.Linear(6, 4)).double()
    with pytest.warns(UserWarning, match="layer '0': the Gram matrix of its inputs on this data is singular.*raised by 1% of its mean"):
        ts.prune(model, 0.5, "obs", [x])
    assert model[0].values.isfinite().all()
    assert model[0].topology.nnz == 12


def test_obs_of_inputs_that_are_always_zero():
    model = nn.Sequential(nn.Linear(4, 3)).double()
    with pytest.warns(UserWarning, match="singular"):
        ts.prune(model, 0.5, "obs", [torch.zeros(5, 4, dtype=torch.float64)])
    assert model[0].values.isfinite().all()


def test_obs_loses_less_than_magnitude_and_wanda():
    x = drawn(200, 8) @ drawn(8, 8, seed=1)
    errors = {}
    for name in ("magnitude", "wanda", "obs"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 6)).double()
        dense = copy.deepcopy(model)
        ts.prune(model, 0.5, name, [x])
        errors[name] = float((model(x) - dense(x)).detach().square().mean())
    assert errors["obs"] < 0.5 * min(errors["wanda"], errors["magnitude"])


def test_synflow_never_empties_a_layer_where_a_single_round_cuts_the_paths():
    """Tanaka et al., figure 1. What is left is 17 of 8,700 weights, in a network of four layers."""

    def paths_left(rounds):
        torch.manual_seed(0)
        widths = (30, 60, 60, 60, 5)
        layers = [nn.Linear(columns, rows, bias=False) for columns, rows in pairwise(widths)]
        model = nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())))
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight)
        with pytest.warns(UserWarning, match="nearly pruned away"):
            ts.prune(model, 0.9985, ts.criteria.SynFlow(rounds), [torch.randn(1, 30)])
        paths = torch.ones(30, dtype=torch.float64)
        for layer in topology_layers(model).values():
            paths = layer.topology.mask().double() @ paths
        return float(paths.sum())

    assert paths_left(rounds=100) > 0
    assert paths_left(rounds=1) == 0


def test_synflow_takes_its_scores_of_what_is_left():
    """By hand: the same rounds, with a plain network whose removed weights are zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 5, bias=False)).double()
    first, second = (layer.weight.detach().abs() for layer in (model[0], model[2]))
    keep = [torch.ones_like(first, dtype=torch.bool), torch.ones_like(second, dtype=torch.bool)]
    rounds, sparsity = 5, 0.8
    for done in range(1, rounds + 1):
        one, two = first * keep[0], second * keep[1]
        flow = [two.sum(0)[:, None] * one, two * one.sum(1)]
        count = 88 - int(88 * (1 - (1 - sparsity) ** (done / rounds)) + 1e-9)
        scores = torch.cat([part.masked_fill(~mask, -1).flatten() for part, mask in zip(flow, keep, strict=True)])
        chosen = torch.zeros(88, dtype=torch.bool)
        chosen[scores.topk(count).indices] = True
        keep = [part.view_as(mask) for part, mask in zip(chosen.split([48, 40]), keep, strict=True)]
    ts.prune(model, sparsity, ts.criteria.SynFlow(rounds=rounds), [torch.randn(1, 6)])
    assert torch.equal(model[0].topology.mask(), keep[0])
    assert torch.equal(model[2].topology.mask(), keep[1])


def test_synflow_looks_at_no_data_but_its_shape():
    found = []
    for seed in (1, 2):
        model = network()
        ts.prune(model, 0.4, ts.criteria.SynFlow(rounds=3), [drawn(1, 6, seed=seed)], generator=torch.Generator().manual_seed(0))
        found.append([layer.topology for layer in topology_layers(model).values()])
    assert all(one.equal(other) for one, other in zip(*found, strict=True))


def test_movement_is_the_sum_over_steps_whatever_the_loop_does():
    model = network()
    model[2].weight.requires_grad_(False)
    history = History(model)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05, weight_decay=0.1)
    expected = {name: torch.zeros(model.get_submodule(name).weight.shape, dtype=torch.float64) for name in ("0", "4")}
    for _ in range(3):
        before = dict.fromkeys(expected, 0)
        for x, target in data():  # gradients accumulate over two batches
            F.cross_entropy(model(x), target).backward()
            for name in expected:
                weight = model.get_submodule(name).weight
                expected[name] -= weight.detach() * (weight.grad - before[name])
                before[name] = weight.grad.clone()
        optimizer.step()
        optimizer.zero_grad()
    history.remove()
    F.cross_entropy(model(data()[0][0]), data()[0][1]).backward()  # nobody listens any longer
    found = scores_of(ts.criteria.Movement(history), model, exclude=["2"])
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_movement_keeps_what_moved_away_from_zero():
    """Two weights of equal size, of which training doubles one and halves the other."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1)
    history, optimizer = ts.pruning.History(model), torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(20):
        (model[0].weight - torch.tensor([[0.5, 2.0]])).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    ts.prune(model, 0.5, ts.criteria.Movement(history))
    assert model[0].topology.mask().tolist() == [[False, True]]


@pytest.mark.parametrize("masked", [False, True])
def test_movement_follows_layers_that_are_rewired(masked):
    model = ts.sparsify(network(), 0.5, masked=masked, generator=torch.Generator().manual_seed(0))
    history, optimizer = History(model), torch.optim.SGD(model.parameters(), lr=0.1)
    rewirer = ts.Rewirer(model, optimizer, ts.SET(0.3), every=2, generator=torch.Generator().manual_seed(1))
    layer = model[2]
    expected, topology = torch.zeros(4, 5, dtype=torch.float64), layer.topology
    for _ in range(6):
        before = layer.to_dense().detach()
        mean_loss(model).backward()
        gradient = layer.topology.scatter(layer.of_connections(layer.parameter.grad))
        expected = (expected - before * gradient) * layer.topology.mask()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
        # What is dropped and grown again starts anew.
        expected = expected * topology.mask() * layer.topology.mask()
        topology = layer.topology
    assert rewirer.rewirings > 0
    found = history.movement(Probe(model, {"2": Probed(layer, layer.geometry)}, [], called))
    torch.testing.assert_close(found["2"][0], expected)


def test_movement_without_a_history_is_told():
    with pytest.raises(ValueError, match=r"make history = ts.pruning.History\(model\) before it"):
        ts.prune(network(), 0.5, "movement")


def test_movement_of_another_model_is_told():
    history = History(network())
    with pytest.raises(ValueError, match="the history knows nothing of '0', '2', '4'"):
        ts.prune(network(), 0.5, ts.criteria.Movement(history))


def test_apoz_removes_the_neurons_that_are_silent():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-9.0, 3, -9, 3, -9, 3]))
    ts.prune(model, 0.5, "apoz", [torch.randn(50, 4)], pattern="neurons", exclude=["2"])
    assert model[0].topology.fan_in.tolist() == [0, 4, 0, 4, 0, 4]


def test_slimming_keeps_the_channels_of_largest_scale_of_all_layers():
    model = nn.Sequential(nn.Conv1d(2, 4, 1), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 3, 1), nn.BatchNorm1d(3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.9, -0.8, 0.1, 0.7]))
        model[4].weight.copy_(torch.tensor([0.2, 0.05, -0.6]))
    ts.prune(model, 0.5, "slimming", [torch.randn(2, 2, 5)], pattern="neurons")
    assert model[0].topology.fan_in.tolist() == [2, 2, 0, 2]
    assert model[3].topology.fan_in.tolist() == [0, 0, 4]


@pytest.mark.parametrize("name", ["apoz", "slimming"])
def test_criteria_of_neurons_refuse_other_patterns(name):
    with pytest.raises(ValueError, match="says how much a whole neuron or channel matters: pass pattern='neurons'"):
        ts.prune(network(), 0.5, name, data())


def test_obs_refuses_blocks():
    with pytest.raises(ValueError, match=r"OBS removes one weight after another, and Block\(size=2\) several at once"):
        ts.prune(network(), 0.5, "obs", data(), pattern="block:2")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ts.criteria.Magnitude(0), "power is a positive number"),
        (lambda: ts.criteria.OBD("hesse"), "curvature is one of 'fisher', 'hessian', got 'hesse'"),
        (lambda: ts.criteria.SynFlow(0), "1 round or more, got rounds=0"),
    ],
)
def test_settings_that_mean_nothing_are_told(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_an_error_in_a_late_round_leaves_the_model_as_it_was():
    model, calls = network(), []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def forward(model, batch):
        calls.append(batch)
        if len(calls) == 4:
            raise ZeroDivisionError
        return model(batch)

    with pytest.raises(ZeroDivisionError):
        ts.prune(model, 0.8, "synflow", [drawn(1, 6)], forward=forward)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert type(model[0]) is nn.Linear
