"""What new layers start from: variances row by row, and the same draw for both twins."""

import pytest
import torch
from oracles import Watched

from truesparse import NM, Block, FanIn, MaskedConv2d, MaskedLinear, SparseConv2d, SparseLinear, Topology
from truesparse.nn.initial import initial_bias, initial_values


def test_values_have_variance_two_over_the_fan_in_of_their_own_row():
    fan_in = [2, 8, 50, 0, 1] * 400
    mask = torch.zeros(len(fan_in), 50, dtype=torch.bool)
    for row, count in enumerate(fan_in):
        mask[row, torch.randperm(50)[:count]] = True
    topology = Topology.from_mask(mask)
    values = initial_values(topology, torch.Generator().manual_seed(0), torch.float64)
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
    bias = initial_bias(topology, torch.Generator().manual_seed(0))
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
