"""sparsify(from_weights=True): the largest weights stay, zeros only when nothing else is left, equal ones are drawn at random."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import images, network
from torch import nn
from torch.nn.utils import prune

from truesparse import Block, FanIn, Neurons, Uniform, sparsify, summary
from truesparse.nn import topology_layers
from truesparse.topology.budgets import budget as named

SCALES = (0.7, 1.0, 1.3)


def pruned_elsewhere(amount=0.9):
    """A perceptron whose layers differ in scale, so that one threshold for all leaves shares that no budget would give."""
    model = nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 8))
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer, scale in zip(layers, SCALES, strict=True):
            layer.weight.mul_(scale)
    prune.global_unstructured([(layer, "weight") for layer in layers], pruning_method=prune.L1Unstructured, amount=amount)
    for layer in layers:
        prune.remove(layer, "weight")
    return model


def zeros(model):
    weights = [layer.weight for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)


@pytest.mark.parametrize("budget", ["erk", "er", Uniform(), Uniform(dense_first=False)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_network_pruned_elsewhere_stays_what_it_is_under_any_budget(budget, masked):
    model = pruned_elsewhere()
    kept, x = {name: layer.weight != 0 for name, layer in model.named_children() if isinstance(layer, nn.Linear)}, torch.randn(5, 24)
    expected = model(x)
    # What a first layer that stays dense asks for is more than there is: then every weight stays, and zeros only with them.
    sparsity = 0.9 if budget != Uniform() else 0.99
    sparsify(model, sparsity if sparsity == 0.99 else zeros(model), budget, from_weights=True, masked=masked)
    for name, mask in kept.items():
        found = model.get_submodule(name).topology.mask()
        assert not (mask & ~found).any() if budget == Uniform() else torch.equal(found, mask)
    torch.testing.assert_close(model(x), expected)


def test_a_pruned_convolution_too():
    model = network().eval()
    with torch.no_grad():
        for layer, share in zip((model[0], model[3][0], model[5], model[7]), (0.2, 0.9, 0.8, 0.5), strict=True):
            layer.weight.mul_(torch.rand_like(layer.weight) > share)
    x = images()
    expected = model(x)
    sparsify(model, zeros(model), from_weights=True)
    torch.testing.assert_close(model(x), expected)


@given(
    shares=st.lists(st.sampled_from([0.0, 0.3, 0.6, 0.9, 0.98]), min_size=3, max_size=3),
    sparsity=st.sampled_from([0.0, 0.5, 0.8, 0.95]),
    budget=st.sampled_from(["erk", "er", Uniform(), Uniform(dense_first=False)]),
    seed=st.integers(0, 99),
)
def test_zeros_never_win_over_weights_and_the_sum_stays(shares, sparsity, budget, seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 12), nn.Linear(12, 9), nn.Linear(9, 5))
    with torch.no_grad():
        for layer, share in zip(model, shares, strict=True):
            layer.weight.mul_(torch.rand_like(layer.weight) >= share)
            layer.weight[0, 0] = 1.0  # no layer of zeros only
    shapes = {name: tuple(layer.weight.shape) for name, layer in model.named_children()}
    total = sum(named(budget).counts(shapes, sparsity).values())
    weights = {name: layer.weight.detach().clone() for name, layer in model.named_children()}
    there = sum(int(weight.count_nonzero()) for weight in weights.values())
    layers = topology_layers(sparsify(model, sparsity, budget, from_weights=True))
    total = there if abs(total - there) <= 2 * len(layers) else total  # budgets round each layer
    assert sum(layer.topology.nnz for layer in layers.values()) == total
    held = sum(int(layer.values.count_nonzero()) for layer in layers.values())
    assert held == min(total, there)
    for name, layer in layers.items():
        left = weights[name].masked_fill(layer.topology.mask(), 0).abs()
        assert layer.topology.nnz == 0 or float(left.max()) <= float(layer.values.detach().abs().min())


def test_layers_that_have_enough_weights_keep_their_budget():
    model = network()
    expected = named("erk").counts({name: tuple(w.shape) for name, w in weights_of(model).items()}, 0.7)
    layers = topology_layers(sparsify(model, 0.7, from_weights=True))
    assert {name: layer.topology.nnz for name, layer in layers.items()} == expected


def weights_of(model):
    return {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}


def test_a_pattern_keeps_no_more_zeros_than_its_fullest_group_needs():
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Linear(6, 8, bias=False))
    with torch.no_grad():
        model[0].weight.zero_()[:, :2] = 1 + torch.rand(6, 2)  # two weights a row: more would be zeros
    sparsify(model, 0.5, Uniform(dense_first=False), FanIn(), from_weights=True)
    assert [layer.topology.fan_in.unique().tolist() for layer in model] == [[2], [4]], "six of eight columns of 6 rows are no whole step"
    blocks = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False))
    with torch.no_grad():
        blocks[0].weight.zero_()[2, 5] = 1.0  # one block of 4 x 4
    sparsify(blocks, 0.5, Uniform(dense_first=False), Block(4), from_weights=True)
    assert [layer.topology.nnz for layer in blocks] == [16, 48]


@pytest.mark.parametrize("masked", [False, True])
def test_sparsity_none_is_exactly_what_is_there(masked):
    model = network().eval()
    with torch.no_grad():
        for layer in weights_of(model).values():
            layer.mul_(torch.rand_like(layer) > 0.8)
        model[7].weight.zero_()
    twin, x = copy.deepcopy(model), images()
    expected = model(x)
    sparsify(model, None, from_weights=True, masked=masked)
    for name, weight in weights_of(twin).items():
        layer = model.get_submodule(name)
        assert torch.equal(layer.topology.mask(), weight.flatten(1) != 0)
        assert torch.equal(layer.to_dense(), weight)
    torch.testing.assert_close(model(x), expected)
    assert summary(model).sparsity == pytest.approx(zeros(twin))


def test_sparsity_none_holds_the_pattern_to_what_is_there():
    model = nn.Sequential(nn.Linear(8, 6))
    with torch.no_grad():
        model[0].weight[:, 3:] = 0
    assert sparsify(copy.deepcopy(model), None, pattern="fan-in", from_weights=True)[0].topology.nnz == 18
    with torch.no_grad():
        model[0].weight[0, :2] = 0
    with pytest.raises(ValueError, match=r"layer '0': FanIn\(\) needs the same count"):
        sparsify(model, None, pattern="fan-in", from_weights=True)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sparsity": None}, "sparsity=None takes over the zeros of the model's weights: pass from_weights=True with it, or a sparsity"),
        ({"sparsity": None, "from_weights": True, "sparsities": {"0": 0.5}}, "so sparsities cannot be given with it"),
        ({"from_weights": True, "init": "he"}, "from_weights=True keeps the model's weights and init='he' draws new ones"),
        ({"init": "zeros"}, r"init is 'keep' \(the model's own values\) or 'he' \(new ones\), got 'zeros'"),
    ],
)
def test_arguments_that_exclude_one_another(options, says):
    model = network()
    modules = list(model.modules())
    with pytest.raises(ValueError, match=says):
        sparsify(model, **options)
    assert list(model.modules()) == modules


def of_zeros(pattern, seed):
    model = nn.Sequential(nn.Linear(16, 32), nn.Linear(32, 64))
    nn.init.zeros_(model[1].weight)
    sparsify(model, 0.75, Uniform(dense_first=False), pattern, from_weights=True, generator=torch.Generator().manual_seed(seed))
    return model[1].topology


@pytest.mark.parametrize(("pattern", "groups"), [(None, 64), (Block(4), 16), (Neurons(), 1)], ids=str)
def test_a_layer_of_zeros_keeps_its_budget_spread_over_the_rows(pattern, groups):
    topology = of_zeros(pattern, 1)
    assert topology.nnz == 512
    # 8 of 32 columns a row on average: the earliest 512 positions would be all of the first 16 rows.
    by_group = topology.mask().view(groups, -1).any(1)
    assert int(by_group.sum()) >= 0.8 * groups
    if pattern == Neurons():
        assert not torch.equal(topology.mask().any(1).nonzero().squeeze(1), torch.arange(16))
    assert topology.equal(of_zeros(pattern, 1))
    assert not topology.equal(of_zeros(pattern, 2))


def test_equal_weights_are_drawn_at_random_and_never_before_larger_ones():
    model = nn.Sequential(nn.Linear(20, 30))
    with torch.no_grad():
        model[0].weight.fill_(0.5)[:, 7] = -2.0
    kept = sparsify(model, 0.75, from_weights=True)[0].topology.mask()
    assert kept[:, 7].all()
    assert int(kept.sum()) == 150
    assert int((kept.sum(1) > 1).sum()) > 25, "120 more on 30 rows, not the first 6 rows"
