"""sparsify and densify on whole models: what is replaced, how much is kept, and what is refused."""

import copy

import pytest
import torch
from oracles import images, network
from torch import nn
from torch.nn.utils import prune

from truesparse import (
    ERK,
    NM,
    FanIn,
    MaskedConv2d,
    MaskedLinear,
    SparseConv2d,
    SparseLinear,
    Uniform,
    Unstructured,
    densify,
    sparsify,
)
from truesparse.nn import topology_layers
from truesparse.topology.budgets import budget as named

SIZES = {"0": (6, 2, 3, 3), "3.0": (8, 6, 3, 3), "5": (20, 32), "7": (5, 20)}


def counts(model):
    return {name: layer.topology.nnz for name, layer in topology_layers(model).items()}


def test_every_layer_is_replaced_and_the_rest_is_left():
    model = network()
    norm, biases = model[1], {name: model.get_submodule(name).bias.detach().clone() for name in SIZES}
    assert sparsify(model, 0.5, Uniform(dense_first=False)) is model
    kinds = {name: type(model.get_submodule(name)) for name in SIZES}
    assert kinds == {"0": SparseConv2d, "3.0": SparseConv2d, "5": SparseLinear, "7": SparseLinear}
    assert model[1] is norm
    for name, bias in biases.items():
        assert torch.equal(model.get_submodule(name).bias, bias)
    assert model(images()).shape == (3, 5)
    assert model.get_submodule("3.0").stride == (2, 2)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("budget", ["erk", "er", ERK(), Uniform(), Uniform(dense_first=False)], ids=str)
def test_the_budget_decides_and_full_layers_run_dense(budget):
    model = sparsify(network(), 0.7, budget)
    expected = named(budget).counts(SIZES, 0.7)
    assert counts(model) == expected
    for name, size in SIZES.items():
        assert (model.get_submodule(name).kernel == "dense") == (expected[name] == torch.Size(size).numel())


def test_a_state_loads_into_the_same_model_at_any_sparsity():
    saved, x = sparsify(network(), 0.9).eval(), images()
    for sparsity in (0.0, 0.3, 0.8):
        other = sparsify(network(), sparsity).eval()
        other.load_state_dict(saved.state_dict())
        assert torch.equal(other(x), saved(x))
    saved.load_state_dict(sparsify(network(), 0.0).state_dict())
    assert all(layer.kernel == "dense" for layer in topology_layers(saved).values())


def test_a_budget_of_ones_own():
    class Three:
        def counts(self, shapes, sparsity):
            assert shapes == SIZES
            assert sparsity == 0.25
            return dict.fromkeys(shapes, 3)

    assert counts(sparsify(network(), 0.25, Three())) == dict.fromkeys(SIZES, 3)


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (("7",), {"7"}),
        (("3",), {"3.0"}),
        (("3.*",), {"3.0"}),
        (("[05]",), {"0", "5"}),
        ((nn.Linear,), {"5", "7"}),
        ((nn.Conv2d, "7"), {"0", "3.0", "7"}),
    ],
)
def test_exclude(exclude, left):
    model = sparsify(network(), 0.7, Uniform(dense_first=False), exclude=exclude)
    assert set(topology_layers(model)) == set(SIZES) - left


def test_exclude_a_module():
    model = network()
    sparsify(model, 0.7, exclude=[model[3], model[7]])
    assert set(topology_layers(model)) == {"0", "5"}


def test_sparsities_of_single_layers_leave_the_budget():
    model = sparsify(network(), 0.5, Uniform(dense_first=False), sparsities={"5": 0.9, "3.*": 0.0})
    assert counts(model) == {"0": 54, "3.0": 432, "5": 64, "7": 50}
    model = sparsify(network(), 0.8, "erk", sparsities={"5": 1.0})
    rest = {name: size for name, size in SIZES.items() if name != "5"}
    assert counts(model) == {"5": 0} | ERK().counts(rest, 0.8)


def test_from_weights_keeps_the_largest_magnitudes_with_their_values():
    model = network().double().eval()
    weights = {name: model.get_submodule(name).weight.detach().clone() for name in SIZES}
    sparsify(model, 0.6, Uniform(dense_first=False), from_weights=True)
    for name, weight in weights.items():
        layer = model.get_submodule(name)
        nnz = layer.topology.nnz
        order = weight.abs().flatten().sort(descending=True, stable=True).indices[:nnz]
        assert torch.equal(layer.topology.keys, order.sort().values)
        assert torch.equal(layer.to_dense()[layer.to_dense() != 0], weight[layer.to_dense() != 0])
        assert int((layer.to_dense() != 0).sum()) == nnz
        assert not layer.training


def test_from_weights_with_a_pattern():
    model = nn.Sequential(nn.Linear(8, 6))
    weight = model[0].weight.detach().clone()
    sparsify(model, 0.5, pattern=NM(2, 4), from_weights=True)
    for row in range(6):
        for window in (0, 4):
            part = weight[row, window : window + 4].abs()
            kept = model[0].to_dense()[row, window : window + 4] != 0
            assert float(part[kept].min()) >= float(part[~kept].max())


@pytest.mark.parametrize("pattern", [FanIn(), NM(2, 2)], ids=str)
def test_patterns(pattern):
    model = sparsify(network(), 0.7, Uniform(dense_first=False), pattern, exclude=("0",))
    for layer in topology_layers(model).values():
        assert layer.pattern == pattern.fitted(layer.geometry)
        layer.pattern.check(layer.topology)
    assert len(topology_layers(model)) == 3


def test_masked_and_sparse_are_the_same_network():
    sparse = sparsify(network().double(), 0.7, generator=torch.Generator().manual_seed(1))
    masked = sparsify(network().double(), 0.7, masked=True, generator=torch.Generator().manual_seed(1))
    assert {type(layer) for layer in topology_layers(masked).values()} == {MaskedConv2d, MaskedLinear}
    for name, layer in topology_layers(sparse).items():
        assert layer.topology.equal(masked.get_submodule(name).topology)
        assert torch.equal(layer.values, masked.get_submodule(name).values)
    x = images().double()
    torch.testing.assert_close(sparse(x), masked(x))


def test_a_model_that_is_one_layer():
    layer = sparsify(nn.Linear(9, 6), 0.5)
    assert isinstance(layer, SparseLinear)
    assert type(densify(layer)) is nn.Linear


@pytest.mark.parametrize("masked", [False, True])
def test_densify_is_exact(masked):
    model = sparsify(network().double(), 0.7, masked=masked)
    model[7].bias.requires_grad_(False)
    sparse, kept = copy.deepcopy(model), {name: layer.topology for name, layer in topology_layers(model).items()}
    assert densify(model) is model
    assert not topology_layers(model)
    assert not model[7].bias.requires_grad
    for name, topology in kept.items():
        weight = model.get_submodule(name).weight
        assert weight.dtype == torch.float64
        assert torch.equal(weight, sparse.get_submodule(name).to_dense())
        assert torch.equal(weight.flatten(1) != 0, topology.mask())
    x = images().double()
    torch.testing.assert_close(model(x), sparse(x))
    assert repr(model) == repr(network())
    plain = network()
    assert repr(densify(plain)) == repr(network()), "a dense model stays as it is"


def test_a_layer_used_twice_stays_one_layer():
    shared = nn.Linear(6, 6)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.Linear(6, 12)})
    sparsify(model, 0.5)
    assert model["a"] is model["b"][0]
    assert counts(model) == ERK().counts({"a": (6, 6), "c": (12, 6)}, 0.5)
    densify(model)
    assert model["a"] is model["b"][0]


@pytest.mark.parametrize("exclude", ["a", "b", "b.*"])
def test_a_layer_used_twice_is_excluded_by_any_of_its_names(exclude):
    shared = nn.Linear(6, 6)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.Linear(6, 12)})
    sparsify(model, 0.5, exclude=(exclude,))
    assert model["a"] is model["b"][0] is shared
    assert set(topology_layers(model)) == {"c"}


class Custom(nn.Linear):
    """A linear layer with a behaviour of its own."""

    def forward(self, x):
        return super().forward(x) * 2


def tied():
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[2].weight = model[0].weight
    return model


def parametrized():
    return nn.Sequential(nn.Linear(6, 6), nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)))


def pruned():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    prune.l1_unstructured(model[1], "weight", 0.5)
    return model


def hooked():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].register_forward_hook(lambda *_: None)
    return model


def test_a_model_without_values_is_refused():
    with pytest.raises(TypeError, match=r"layer '0' \(Linear\) .* is on the meta device and has no values yet"):
        sparsify(nn.Sequential(nn.Linear(6, 6, device="meta")), 0.5)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (
            tied,
            TypeError,
            r"layers '0', '2' \(Linear\) cannot be made sparse: each shares its .*\(tied weights: only .*\); pass exclude=\('0', '2'\)",
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 6), nn.LazyLinear(3)),
            TypeError,
            r"layer '1' \(LazyLinear\) cannot be made sparse: it has no shape yet \(run the model once",
        ),
        (parametrized, TypeError, r"layer '1' \(ParametrizedLinear\) cannot be made sparse"),
        (
            pruned,
            TypeError,
            r"layer '1' \(Linear\) cannot be made sparse: it has a weight .* by torch.nn.utils.prune \(call torch.nn.utils.prune.remove\(",
        ),
        (lambda: nn.ModuleList([nn.Linear(6, 6), nn.LazyConv1d(2, 3)]), TypeError, r"layer '1' \(LazyConv1d\) .* has no shape yet"),
        (lambda: nn.ModuleList([nn.Linear(6, 6), nn.LazyConvTranspose2d(2, 3)]), TypeError, r"\(LazyConvTranspose2d\) .* has no shape yet"),
        (lambda: nn.ModuleList([nn.Linear(6, 6), nn.Bilinear(2, 2, 3)]), TypeError, r"layer '1' \(Bilinear\) .* no sparse counterpart"),
        (
            lambda: nn.Sequential(nn.Linear(6, 6), Custom(6, 6)),
            TypeError,
            r"layer '1' \(Custom\) .* a subclass of Linear whose own behaviour",
        ),
        (hooked, TypeError, r"layer '1' \(Linear\) .* has hooks that would be lost \(register them after sparsify\)"),
        (lambda: nn.Sequential(nn.ReLU()), ValueError, "found no nn.Linear or convolution to make sparse"),
        (lambda: sparsify(nn.Sequential(nn.Linear(6, 6)), 0.5), ValueError, "or it is sparse already"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_changes(make, error, says):
    model = make()
    modules, text = list(model.modules()), repr(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if not isinstance(tensor, nn.UninitializedParameter)}
    with pytest.raises(error, match=says):
        sparsify(model, 0.5)
    assert list(model.modules()) == modules
    assert repr(model) == text
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())


def test_what_is_refused_may_be_excluded():
    for make in (tied, parametrized, pruned):
        model = make()
        model.append(nn.Linear(6, 6))
        sparsify(model, 0.5, "uniform", exclude=[name for name, _ in make().named_children()])
        assert set(topology_layers(model)) == {str(len(model) - 1)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"exclude": ("nothing", "0")}, "exclude names 'nothing', which match no module; there are: 0, 1"),
        ({"sparsities": {"nothing": 0.5}}, "sparsities names 'nothing', which matches no layer; there are: 0, 3.0, 5, 7"),
        ({"sparsities": {"5": 1.5}}, r"the sparsity of '5' lies in \[0, 1\], got 1.5"),
        ({"sparsity": 1.0}, r"sparsity is the share of weights to leave out and lies in \[0, 1\), got 1.0"),
        ({"budget": "erdos"}, "unknown budget 'erdos'"),
        (
            {"pattern": NM(2, 4)},
            r"layer '0': NM\(n=2, m=4, apart=9\) needs input channels .* divisible by 4, got shape \(6, 18\)",
        ),
        ({"exclude": (nn.Linear, nn.Conv2d)}, "found no nn.Linear or convolution to make sparse"),
    ],
)
def test_arguments_that_cannot_be(options, says):
    model = network()
    modules = list(model.modules())
    with pytest.raises(ValueError, match=says):
        sparsify(model, **options)
    assert list(model.modules()) == modules


def test_frozen_weights_stay_frozen_and_modes_are_kept():
    model = network()
    model[5].weight.requires_grad_(False)
    model[7].eval()
    sparsify(model, 0.7, Uniform(dense_first=False))
    assert not model[5].values.requires_grad
    assert model[5].bias.requires_grad
    assert not model[7].training
    assert model[5].training
    assert all(layer.pattern == Unstructured() for layer in topology_layers(model).values())
