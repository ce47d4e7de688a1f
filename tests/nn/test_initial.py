"""What layers start from: variances row by row, the model's own values, and the same draw for both twins."""

import copy
import math

import pytest
import torch
from oracles import Watched
from torch import nn

from truesparse import (
    NM,
    Block,
    FanIn,
    MaskedConv2d,
    MaskedLinear,
    Neurons,
    SparseConv2d,
    SparseLinear,
    Topology,
    Uniform,
    sparsify,
)
from truesparse.nn import topology_layers
from truesparse.nn.initial import initial_bias, initial_values
from truesparse.topology.geometry import Matrix


def test_values_have_variance_two_over_the_fan_in_of_their_own_row():
    fan_in = [2, 8, 50, 0, 1] * 400
    mask = torch.zeros(len(fan_in), 50, dtype=torch.bool)
    for row, count in enumerate(fan_in):
        mask[row, torch.randperm(50)[:count]] = True
    topology = Topology.from_mask(mask)
    values = initial_values(topology, Matrix(*topology.shape), torch.Generator().manual_seed(0), torch.float64)
    for count in (1, 2, 8, 50):
        own = values[topology.fan_in[topology.rows] == count]
        assert own.numel() == 400 * count
        tolerance = 5 / own.numel() ** 0.5
        assert float(own.var()) == pytest.approx(2 / count, rel=tolerance * 2**0.5)
        assert abs(float(own.mean())) < tolerance * (2 / count) ** 0.5
    kurtosis = float((values[topology.fan_in[topology.rows] == 50] ** 4).mean()) / (2 / 50) ** 2
    assert kurtosis == pytest.approx(3, rel=0.15), "values are normal, not uniform"


def test_biases_are_within_the_bounds_of_their_own_row_and_zero_without_connections():
    topology = Topology.from_mask(torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]] * 500))
    bias = initial_bias(topology, Matrix(*topology.shape), torch.Generator().manual_seed(0))
    assert not bias[2::3].any()
    assert 0.95 < float(bias[0::3].abs().max()) <= 1
    assert 0.45 < float(bias[1::3].abs().max()) <= 0.5


TWINS = [
    (SparseLinear, MaskedLinear, (24, 16), {}),
    (SparseLinear, MaskedLinear, (24, 16), {"pattern": FanIn()}),
    (SparseLinear, MaskedLinear, (24, 16), {"pattern": NM(2, 8), "bias": False}),
    (SparseLinear, MaskedLinear, (24, 16), {"pattern": Block(4)}),
    (SparseConv2d, MaskedConv2d, (4, 6, 3), {"dtype": torch.float64}),
    (SparseConv2d, MaskedConv2d, (4, 6, 3), {"groups": 2, "pattern": FanIn()}),
]


@pytest.mark.parametrize(("sparse", "masked", "sizes", "options"), TWINS)
def test_one_seed_gives_one_layer(sparse, masked, sizes, options):
    def make(kind, seed):
        return kind(*sizes, **options, sparsity=0.7, generator=torch.Generator().manual_seed(seed))

    one, again, twin, other = make(sparse, 5), make(sparse, 5), make(masked, 5), make(sparse, 6)
    for same in (again, twin):
        assert one.topology.equal(same.topology)
        assert torch.equal(one.values, same.values)
        assert (one.bias is None and same.bias is None) or torch.equal(one.bias, same.bias)
    assert not one.topology.equal(other.topology)
    assert twin.pattern == one.pattern
    assert twin.values.dtype == one.values.dtype == options.get("dtype", torch.float32)
    assert torch.equal(twin.mask.flatten(1), one.topology.mask())
    assert not twin.weight[~twin.mask].any()


def test_the_global_generator_is_used_without_one_and_left_alone_with_one():
    def draw(generator=None):
        torch.manual_seed(3)
        layer = SparseLinear(24, 16, generator=generator)
        return layer.values.detach(), torch.rand(1)

    assert torch.equal(draw()[0], draw()[0])
    untouched = draw(torch.Generator().manual_seed(1))[1]
    torch.manual_seed(3)
    assert torch.equal(untouched, torch.rand(1))


@pytest.mark.parametrize(("sparsity", "nnz"), [(0.0, 12), (0.5, 6), (0.9, 2), (1.0, 0)])
def test_sparsity_is_exact(sparsity, nnz):
    assert SparseLinear(4, 3, sparsity=sparsity).topology.nnz == nnz
    assert SparseConv2d(1, 3, 2, sparsity=sparsity).topology.nnz == nnz


def test_a_large_layer_is_drawn_without_anything_of_rows_times_columns():
    with Watched() as watched:
        layer = SparseLinear(16384, 16384, sparsity=0.999)
    assert watched.largest <= 2 * layer.topology.nnz


def perceptron():
    return nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 16), nn.Linear(16, 8, bias=False))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pattern", [None, FanIn(), Block(2), NM(1, 2), Neurons()], ids=str)
def test_keep_scales_each_row_by_the_root_of_columns_over_fan_in(pattern, masked):
    dense = perceptron().double()
    model = sparsify(copy.deepcopy(dense), 0.6, Uniform(dense_first=False), pattern, masked=masked)
    for name, layer in topology_layers(model).items():
        weight, kept = dense.get_submodule(name).weight.detach().flatten(1), layer.topology.mask()
        expected = torch.zeros_like(weight)
        for row, columns in enumerate(kept):
            if columns.any():
                expected[row, columns] = weight[row, columns] * math.sqrt(len(columns) / int(columns.sum()))
        torch.testing.assert_close(layer.to_dense().flatten(1), expected)
        for row in range(len(kept)):
            assert not kept[row].all() or torch.equal(layer.to_dense().flatten(1)[row], weight[row]), "a full row stays bit for bit"
        bias = dense.get_submodule(name).bias
        assert bias is None or torch.equal(layer.bias, bias)


def test_keep_keeps_the_variance_of_every_rows_output():
    dense, x = nn.Linear(200, 400, bias=False), torch.randn(4000, 200)
    sparse = sparsify(copy.deepcopy(dense), 0.95, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own, theirs = sparse(x), dense(x)
    assert float(own.var()) == pytest.approx(float(theirs.var()), rel=0.05)
    assert float(own.std(0).mean()) == pytest.approx(float(theirs.std(0).mean()), rel=0.05)


@pytest.mark.parametrize("masked", [False, True])
def test_nothing_left_out_is_the_model_itself(masked):
    dense = perceptron().eval()
    with torch.no_grad():
        dense[3].weight.zero_()
    model = sparsify(copy.deepcopy(dense), 0.0, masked=masked)
    for name, layer in topology_layers(model).items():
        assert torch.equal(layer.to_dense(), dense.get_submodule(name).weight)
        assert torch.equal(layer.values, dense.get_submodule(name).weight.flatten())
    assert not torch.equal(topology_layers(sparsify(copy.deepcopy(dense), 0.0, init="he"))["2"].to_dense(), dense[2].weight)


def test_layers_of_zeros_stay_zero():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.zeros_(model[1].weight)
    assert not sparsify(model, 0.5)[1].values.any()


@pytest.mark.parametrize("options", [{}, {"init": "he"}, {"from_weights": True}], ids=str)
def test_topology_and_values_come_from_the_generator_alone(options):
    dense = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 6))
    nn.init.ones_(dense[1].weight)

    def made(seed, elsewhere):
        torch.manual_seed(elsewhere)
        generator = torch.Generator().manual_seed(seed)
        model = sparsify(copy.deepcopy(dense), 0.5, generator=generator, **options)
        return torch.cat([layer.to_dense().flatten() for layer in model]), torch.rand(1)

    (one, after), (same, _), (other, _) = made(1, 2), made(1, 3), made(2, 2)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.manual_seed(2)
    assert torch.equal(after, torch.rand(1)), "the global generator is left alone"
