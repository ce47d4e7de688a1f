"""SparseGPT against float64 that takes weights away one by one and solves anew, and against brute force on data."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.nn.convert import topology_layers
from truesparse.pruning import Evidence
from truesparse.topology.patterns import NM, Block, FanIn, Neurons, SharedFanIn, Unstructured

SparseGPT = ts.criteria.SparseGPT


def layer(rows, columns, samples=200, present=None):
    """(evidence of a layer in float64, the inputs): inputs that depend on one another, and of different size."""
    x = torch.randn(samples, columns, dtype=torch.float64) @ torch.randn(columns, columns, dtype=torch.float64)
    weight = torch.randn(rows, columns, dtype=torch.float64)
    if present is not None:
        weight = weight * present
    return Evidence("layer", weight, present=present, statistics={"gram": x.T @ x / samples}), x


def dampened(evidence, share):
    gram = evidence["gram"]
    return gram + share * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)


def one_by_one(evidence, share, spans, stay):
    """(kept, weights): of each span `stay` says what stays; then weight after weight goes, those of later columns are solved anew."""
    hessian, weight = dampened(evidence, share), evidence.weight.clone()
    rows, columns = weight.shape
    kept = torch.zeros(rows, columns, dtype=torch.bool)
    for first, last in spans:
        cost = torch.stack([weight[:, j] ** 2 / torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(first, last)], 1)
        kept[:, first:last] = stay(first, last, cost)
        for column in range(first, last):
            later = slice(column + 1, columns)
            for row in range(rows):
                if not kept[row, column]:
                    weight[row, later] += torch.linalg.solve(hessian[later, later], hessian[later, column]) * weight[row, column]
                    weight[row, column] = 0.0
    return kept, weight


def highest_of(costs, count):
    """Bool of the `count` highest of a list."""
    order = sorted(range(len(costs)), key=lambda place: -float(costs[place]))
    return torch.tensor([place in order[:count] for place in range(len(costs))])


def due(count, seen, total):
    """`count` x seen / total, halves up."""
    return (2 * count * seen + total) // (2 * total)


def spans_of(columns, width):
    return [(first, min(first + width, columns)) for first in range(0, columns, width)]


@pytest.mark.parametrize("share", [0.01, 0.0])
@pytest.mark.parametrize("block", [4, 7, 128])
def test_unstructured_is_what_taking_weights_away_one_by_one_gives(block, share):
    evidence, _ = layer(5, 11)
    count = 23

    def stay(first, last, cost):
        share = due(count, 5 * last, 55) - due(count, 5 * first, 55)
        return highest_of(cost.flatten(), share).view(cost.shape)

    kept, weight = one_by_one(evidence, share, spans_of(11, block), stay)
    chosen = SparseGPT(dampening=share, block=block).choose(evidence, Unstructured(), count)
    assert torch.equal(chosen.topology.mask(), kept)
    assert chosen.topology.nnz == count
    assert torch.allclose(chosen.weight, weight, rtol=1e-8, atol=1e-10)


def test_every_row_keeps_its_fan_in():
    evidence, _ = layer(4, 10)

    def stay(first, last, cost):
        return torch.stack([highest_of(row, due(3, last, 10) - due(3, first, 10)) for row in cost])

    kept, weight = one_by_one(evidence, 0.01, spans_of(10, 4), stay)
    chosen = SparseGPT(block=4).choose(evidence, FanIn(), 12)
    assert chosen.topology.fan_in.tolist() == [3, 3, 3, 3]
    assert torch.equal(chosen.topology.mask(), kept)
    assert torch.allclose(chosen.weight, weight, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("apart", [1, 3])
def test_every_window_is_decided_when_it_is_reached(apart):
    """With columns of a window `apart` from one another, as in a convolution of so many positions."""
    evidence, _ = layer(3, 24)

    def stay(first, last, cost):
        kept = torch.zeros_like(cost, dtype=torch.bool)
        for row in range(3):
            for place in range(apart):
                kept[row, place::apart] = highest_of(cost[row, place::apart], 2)
        return kept

    kept, weight = one_by_one(evidence, 0.01, spans_of(24, 4 * apart), stay)
    chosen = SparseGPT(block=8).choose(evidence, NM(2, 4, apart), 36)
    NM(2, 4, apart).check(chosen.topology)
    assert torch.equal(chosen.topology.mask(), kept)
    assert torch.allclose(chosen.weight, weight, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("pattern", [Unstructured(), FanIn()])
def test_connections_that_are_absent_stay_so_and_what_is_left_is_shared_by_what_there_is(pattern):
    present = torch.rand(6, 12) < 0.7
    present[:, 5] = False
    present[:, :5] = True
    evidence, _ = layer(6, 12, present=present)
    count = 24

    def stay(first, last, cost):
        cost = cost.masked_fill(~present[:, first:last], -1)
        if isinstance(pattern, FanIn):
            seen, total = present.cumsum(1), present.sum(1)
            return torch.stack(
                [
                    highest_of(
                        cost[row], int(due(4, seen[row, last - 1], total[row]) - (due(4, seen[row, first - 1], total[row]) if first else 0))
                    )
                    for row in range(6)
                ]
            )
        share = due(count, present[:, :last].sum(), present.sum()) - due(count, present[:, :first].sum(), present.sum())
        return highest_of(cost.flatten(), int(share)).view(cost.shape)

    kept, weight = one_by_one(evidence, 0.01, spans_of(12, 4), stay)
    chosen = SparseGPT(block=4).choose(evidence, pattern, count)
    assert chosen.topology.nnz == count
    assert not (chosen.topology.mask() & ~present).any()
    assert torch.equal(chosen.topology.mask(), kept)
    assert torch.allclose(chosen.weight, weight, rtol=1e-8, atol=1e-10)
    assert torch.equal(chosen.weight != 0, kept)


def test_windows_with_fewer_connections_than_they_may_have_keep_what_they_have():
    present = torch.ones(2, 8, dtype=torch.bool)
    present[0, 1:4] = False
    evidence, _ = layer(2, 8, present=present)
    kept = SparseGPT().choose(evidence, NM(2, 4), 8).topology.mask()
    assert kept.view(2, 2, 4).sum(2).tolist() == [[1, 2], [2, 2]]
    assert kept[0, 0]


def test_the_one_weight_that_goes_is_that_which_costs_least_on_the_data():
    """Brute force: each weight in turn is put to zero, and those of later columns are fitted to the outputs by least squares."""
    for _ in range(10):
        evidence, x = layer(1, 6, samples=30)
        dense, tried = evidence.weight[0], []
        for column in range(6):
            weight = dense.clone()
            weight[column] = 0.0
            missing = x @ dense - x[:, : column + 1] @ weight[: column + 1]
            if column < 5:
                weight[column + 1 :] = torch.linalg.lstsq(x[:, column + 1 :], missing[:, None]).solution[:, 0]
            tried.append((float((x @ (weight - dense)).square().sum()), weight))
        _, best = min(tried, key=lambda one: one[0])
        chosen = SparseGPT(dampening=0.0).choose(evidence, Unstructured(), 5)
        assert torch.allclose(chosen.weight[0], best, rtol=1e-7, atol=1e-9)


def test_scores_are_what_a_weight_costs_when_all_others_are_fitted_anew():
    evidence, x = layer(3, 5, samples=40)
    scores = SparseGPT(dampening=0.0).scores(evidence)
    for row in range(3):
        outputs = x @ evidence.weight[row]
        for column in range(5):
            others = [place for place in range(5) if place != column]
            fitted = torch.linalg.lstsq(x[:, others], outputs[:, None]).solution[:, 0]
            cost = (x[:, others] @ fitted - outputs).square().mean()
            assert torch.isclose(scores[row, column], cost, rtol=1e-8)


def test_a_topology_that_others_chose_is_mended_the_same_way():
    evidence, _ = layer(4, 9)
    kept = torch.rand(4, 9) < 0.5
    _, weight = one_by_one(evidence, 0.01, spans_of(9, 9), lambda first, last, cost: kept)
    mended = SparseGPT(block=4).mend(evidence, ts.Topology.from_mask(kept))
    assert torch.allclose(mended, weight, rtol=1e-8, atol=1e-10)


def images():
    return torch.randn(16, 4, 9, 9, generator=torch.Generator().manual_seed(1)).cumsum(2)


def test_a_convolution_in_groups_with_stride_is_its_matrices_on_its_patches():
    convolution = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    patches = F.unfold(images(), 3, padding=1, stride=2).view(16, 2, 18, -1).permute(1, 0, 3, 2).reshape(2, -1, 18).double()
    weight = convolution.weight.detach().double().flatten(1)
    parts = []
    for group in range(2):
        gram = patches[group].T @ patches[group] / patches.shape[1]
        evidence = Evidence("", weight[3 * group : 3 * group + 3], statistics={"gram": gram})
        parts.append(SparseGPT().choose(evidence, Unstructured(), 27).weight)
    sparse = ts.prune(nn.Sequential(convolution), 0.5, "sparsegpt", data=images())[0]
    assert torch.allclose(sparse.to_dense().flatten(1).double(), torch.cat(parts), rtol=1e-3, atol=1e-5)
    assert sparse.topology.nnz == 54


@pytest.mark.parametrize("pattern", [None, "fan-in", "nm:2:4"])
def test_outputs_stay_nearer_than_by_magnitude_and_wanda(pattern):
    torch.manual_seed(3)
    dense = nn.Sequential(nn.Conv2d(4, 8, 3, groups=1), nn.Flatten(), nn.Linear(392, 5))
    x = images()
    errors = {}
    for criterion in ("magnitude", "wanda", "sparsegpt"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 16 samples for 392 inputs
            sparse = ts.prune(copy.deepcopy(dense), 0.5, criterion, data=x, pattern=pattern)
        errors[criterion] = float((sparse(x) - dense(x)).detach().square().mean())
        for one in topology_layers(sparse).values():
            one.pattern.check(one.topology)
    assert errors["sparsegpt"] < 0.5 * min(errors["magnitude"], errors["wanda"])


def test_layers_that_compete_are_mended_after_it():
    x = torch.randn(64, 10) @ torch.randn(10, 10)
    dense = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    mended = ts.prune(copy.deepcopy(dense), 0.6, "sparsegpt", data=x, across="network")
    layers = topology_layers(mended)
    assert sum(one.topology.nnz for one in layers.values()) == 112 - int(0.6 * 112)
    kept = layers["0"].topology.mask()
    assert not torch.allclose(layers["0"].to_dense()[kept], dense[0].weight[kept])


@pytest.mark.parametrize("dampening", [0.01, 0.0])
def test_a_singular_gram_matrix_is_dampened_and_told_once(dampening):
    model = nn.Linear(20, 6)
    x = torch.randn(8, 20)
    with pytest.warns(UserWarning, match=r"depend on one another .* dampened by (0.01|1e-06) of its mean diagonal") as told:
        sparse = ts.prune(model, 0.5, SparseGPT(dampening=dampening), data=x)
    assert len(told) == 1
    assert sparse.values.isfinite().all()


def test_inputs_of_very_different_size_are_not_singular_for_that():
    x = torch.randn(100, 8) * torch.tensor([1e4, 1.0, 1e-3, 1.0, 1.0, 1.0, 1e3, 1.0])
    sparse = ts.prune(nn.Linear(8, 4), 0.5, "sparsegpt", data=x)  # warnings are errors
    assert sparse.values.isfinite().all()


def test_inputs_that_are_always_zero_go_first_and_disturb_nothing():
    evidence, _ = layer(3, 8)
    gram = evidence["gram"].clone()
    gram[2], gram[:, 2] = 0.0, 0.0
    blind = Evidence("", evidence.weight, statistics={"gram": gram})
    rest = [0, 1, 3, 4, 5, 6, 7]
    seeing = Evidence("", evidence.weight[:, rest], statistics={"gram": gram[rest][:, rest]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # not singular for that
        chosen = SparseGPT(dampening=0.0).choose(blind, Unstructured(), 10)
    alone = SparseGPT(dampening=0.0).choose(seeing, Unstructured(), 10)
    assert not chosen.topology.mask()[:, 2].any()
    assert torch.allclose(chosen.weight[:, rest], alone.weight)


@pytest.mark.parametrize("pattern", [Block(2), SharedFanIn(2), Neurons()])
def test_other_patterns_are_refused(pattern):
    model = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="column by column: it keeps unstructured, fan-in and N:M patterns, got"):
        ts.prune(model, 0.5, "sparsegpt", data=torch.randn(9, 4), pattern=pattern)


def test_rows_that_have_fewer_than_their_due_are_told():
    present = torch.ones(3, 6, dtype=torch.bool)
    present[1, 2:] = False
    evidence, _ = layer(3, 6, present=present)
    with pytest.raises(ValueError, match="'layer' has rows of 2 connections, fewer than the 3"):
        SparseGPT().choose(evidence, FanIn(), 9)


@pytest.mark.parametrize(("settings", "said"), [({"dampening": -0.1}, "0 or more, got -0.1"), ({"block": 0}, "got block=0")])
def test_settings_that_mean_nothing_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        SparseGPT(**settings)


def test_half_precision_comes_back_as_it_went_in():
    evidence, _ = layer(4, 6)
    half = Evidence("", evidence.weight.bfloat16(), statistics={"gram": evidence["gram"].float()})
    chosen = SparseGPT().choose(half, Unstructured(), 12)
    assert chosen.weight.dtype == torch.bfloat16
    assert chosen.weight.isfinite().all()
