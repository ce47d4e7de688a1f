"""from_pruned() of trees of arrays, as Flax, Haiku and jaxpruner have them: kernels have the inputs first, masked weights are zero."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.nn import topology_layers


class Network(nn.Module):
    """Torch's, with the channels last where it flattens, as Flax has them."""

    def __init__(self, seed=0):
        torch.manual_seed(seed)
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, (3, 2), groups=2), nn.BatchNorm2d(8)
        self.first, self.last = nn.Linear(8 * 2 * 3, 10), nn.Linear(10, 10)
        self.eval()

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.last(torch.relu(self.first(x.permute(0, 2, 3, 1).flatten(1))))


def with_zeros(seed=1):
    model = Network(seed)
    for module in (model.conv, model.first, model.last):
        module.weight.data *= torch.rand(module.weight.shape) < 0.4
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2.0)
    return model


def tree_of(model, names=("Conv_0", "BatchNorm_0", "Dense_0", "Dense_1")):
    """The variables of the Flax model that computes the same, each entry put where Flax looks for it, one by one."""
    conv = model.conv.weight.detach().numpy()
    outputs, inputs, height, width = conv.shape
    kernel = np.zeros((height, width, inputs, outputs), conv.dtype)
    for at in np.ndindex(conv.shape):
        kernel[at[2], at[3], at[1], at[0]] = conv[at]

    def dense(layer):
        weight = layer.weight.detach().numpy()
        kernel = np.zeros(weight.shape[::-1], weight.dtype)
        for row, column in np.ndindex(weight.shape):
            kernel[column, row] = weight[row, column]
        return {"bias": layer.bias.detach().numpy(), "kernel": kernel}

    norm = model.norm
    return {
        "batch_stats": {names[1]: {"mean": norm.running_mean.numpy(), "var": norm.running_var.numpy()}},
        "params": {
            names[1]: {"bias": norm.bias.detach().numpy(), "scale": norm.weight.detach().numpy()},
            names[0]: {"bias": model.conv.bias.detach().numpy(), "kernel": kernel},
            names[2]: dense(model.first),
            names[3]: dense(model.last),
        },
    }


NAMES = {"conv": "Conv_0", "norm": "BatchNorm_0", "first": "Dense_0", "last": "Dense_1"}


def check(model, dense):
    for name, layer in topology_layers(model).items():
        weight = dense.get_submodule(name).weight
        assert torch.equal(layer.to_dense(), weight)
        assert torch.equal(layer.topology.mask(), (weight != 0).flatten(1))
    assert set(topology_layers(model)) == {"conv", "first", "last"}
    assert torch.equal(model.norm.running_var, dense.norm.running_var)
    assert torch.equal(model.norm.weight, dense.norm.weight)
    x = torch.randn(3, 4, 4, 4)
    torch.testing.assert_close(model(x), dense(x))


def test_a_tree_with_names_of_its_own():
    dense = with_zeros()
    check(ts.from_pruned(Network(2), tree_of(dense), names=NAMES), dense)


def test_a_tree_whose_names_are_those_of_the_model():
    dense = with_zeros()
    check(ts.from_pruned(Network(2), tree_of(dense, ("conv", "norm", "first", "last"))), dense)


def test_order_and_shapes_decide_where_names_do_not_and_that_is_said():
    dense = with_zeros()
    with pytest.warns(UserWarning, match=r"say nothing of 10 tensors .* 'conv.weight' is 'Conv_0.weight', .* or pass names="):
        model = ts.from_pruned(Network(2), tree_of(dense))
    check(model, dense)
    layers = nn.Sequential(*(nn.Linear(3, 3) for _ in range(12)))
    for layer in layers:
        layer.weight.data[0, 0] = 0.0
    tree = {f"Dense_{n}": {"kernel": one.weight.detach().numpy().T, "bias": one.bias.detach().numpy()} for n, one in enumerate(layers)}
    tree = {name: tree[name] for name in sorted(tree)}  # as jax sorts them: Dense_10 before Dense_2
    with pytest.warns(UserWarning, match="Compare what both compute"):
        model = ts.from_pruned(nn.Sequential(*(nn.Linear(3, 3) for _ in range(12))), tree)
    assert all(torch.equal(new.to_dense(), old.weight) for new, old in zip(model, layers, strict=True))


def test_haiku_and_bfloat16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    weight = torch.randn(5, 4).bfloat16() * (torch.rand(5, 4) < 0.5)
    array = weight.T.float().numpy().astype(ml_dtypes.bfloat16)
    tree = {"mlp/~/linear_0": {"w": array, "b": np.zeros(5, ml_dtypes.bfloat16)}}
    layer = ts.from_pruned(nn.Sequential(nn.Linear(4, 5)).bfloat16(), tree, names={"0": "mlp.~.linear_0"})[0]
    assert torch.equal(layer.to_dense(), weight)


def changed(change):
    tree = tree_of(with_zeros())
    change(tree["params"])
    return tree


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (
            lambda: changed(lambda params: params["Dense_0"].update(kernel=np.ones((10, 48), np.float32))),
            r"shape \(48, 10\), and 'first.weight'",
        ),
        (lambda: changed(lambda params: params.pop("Conv_0")), "names says 'Conv_0', which matches nothing of the source"),
        (lambda: changed(lambda params: params["Dense_1"].pop("bias")), "the source has nothing for 'last.bias'"),
        (lambda: changed(lambda params: params["Dense_1"].update(extra=np.ones(3))), "'Dense_1.extra' of the source match nothing"),
        (lambda: changed(lambda params: params["Dense_1"].update(kernel=["a"])), "'Dense_1/kernel' of the source is a list"),
        (lambda: changed(lambda params: params["Dense_1"]["bias"].fill(np.nan)), "'Dense_1/bias' holds NaN"),
    ],
)
def test_bad_trees_are_told_and_change_nothing(tree, said):
    model = Network(2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, TypeError), match=said):
        ts.from_pruned(model, tree(), names=NAMES)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_products_fit_linear_layers_only():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 4))

    with pytest.raises(ValueError, match=r"'fc.weight' of the source is the matrix of a linear layer, and 'fc.weight' is that of a Other"):
        ts.from_pruned(nn.ModuleDict({"fc": Other()}), {"fc": {"kernel": np.eye(4, dtype=np.float32)}})


def test_flax_itself():
    jax, linen = pytest.importorskip("jax"), pytest.importorskip("flax.linen")

    class Theirs(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(8, (3, 2), padding="VALID", feature_group_count=2)(x)
            x = linen.relu(linen.BatchNorm(use_running_average=True)(x))
            x = linen.relu(linen.Dense(10)(x.reshape(x.shape[0], -1)))
            return linen.Dense(10)(x)

    model, x = Theirs(), torch.randn(3, 4, 4, 4)
    inputs = x.permute(0, 2, 3, 1).numpy()
    variables = model.init(jax.random.PRNGKey(0), inputs)
    draws = np.random.default_rng(0)
    masks = jax.tree_util.tree_map(lambda one: draws.random(one.shape) < 0.4 if one.ndim > 1 else np.ones(one.shape, bool), variables)
    variables = jax.tree_util.tree_map(lambda one, mask: one * mask, variables, masks)
    mine = ts.from_pruned(Network(2), variables, names=NAMES)
    torch.testing.assert_close(mine(x), torch.tensor(np.asarray(model.apply(variables, inputs))), rtol=1e-5, atol=1e-5)
    kernel = np.asarray(variables["params"]["Dense_0"]["kernel"])
    assert np.array_equal(mine.first.to_dense().detach().numpy(), kernel.T)


def test_a_transposed_convolution_is_refused_for_it_may_be_flipped():
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 3))
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32) * (np.arange(144).reshape(3, 3, 4, 4) % 3 > 0)
    with pytest.raises(ValueError, match=r"'0.weight' is of a transposed convolution, whose kernels this kind of source may flip: put "):
        ts.from_pruned(model, {"0": {"kernel": kernel, "bias": np.zeros(4, np.float32)}})
