"""The smaller network computes what the network computed, has its gradients, and trains, is saved and made dense like any other."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from oracles import drawn
from programs import KINDS, Net, programs
from torch import nn

import truesparse as ts
from truesparse import SparseConv2d, SparseLinear
from truesparse.nn.wrapped import unwrapped


def linear(text, bias=True, sparse=True):
    """A linear layer drawn as rows of x and dots, with random weights."""
    mask = drawn(text)
    dense = nn.Linear(mask.shape[1], mask.shape[0], bias).double()
    dense.weight.data *= mask
    return SparseLinear.from_dense(dense) if sparse else dense


def conv(text, kernel=1, bias=True, **settings):
    """A convolution drawn as [out_channels, in_channels]: all taps of a channel or none."""
    mask = drawn(text)
    dense = nn.Conv2d(mask.shape[1], mask.shape[0], kernel, bias=bias, **settings).double()
    dense.weight.data *= mask[:, :, None, None]
    return SparseConv2d.from_dense(dense)


def shapes(model):
    """{layer: shape of its weight} of the layers of a model, {norm: its channels} of its norms."""
    layers = {row.name: row.shape for row in ts.summary(model).layers}
    return layers | {name: one.num_features for name, one in model.named_modules() if isinstance(one, (nn.BatchNorm1d, nn.BatchNorm2d))}


def parts(model):
    """The weights of each layer as (name, parameter of the connections)."""
    kinds = (nn.Linear, nn.Conv2d, SparseLinear, SparseConv2d)
    return [
        (name, one.weight if isinstance(one, (nn.Linear, nn.Conv2d)) else one.values)
        for name, one in model.named_modules()
        if isinstance(one, kinds)
    ]


def called(network, x):
    """(outputs, gradient of the input) of a call and a backward pass; the latter None where what the network writes in place forbids it."""
    network.zero_grad()
    given = x.clone().requires_grad_()
    outputs = network(given + 0.0)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((output * torch.linspace(-1, 1, output.numel(), dtype=x.dtype).view_as(output)).sum() for output in outputs)
    try:
        loss.backward()
    except RuntimeError as error:
        if "inplace operation" not in str(error):
            raise
        return outputs, None
    return outputs, torch.zeros_like(given) if given.grad is None else given.grad


def entries(array):
    return [] if array is None else array.flatten().tolist()


def hold(model, shrunk, x):
    """Equal outputs, and gradients equal to those of the same connections, which random values tell apart."""
    for one in (x, torch.randn(5, *x.shape[1:], dtype=x.dtype)):
        (expected, wanted), (outputs, gradient) = called(model, one), called(shrunk, one)
        for pair in zip(outputs, expected, strict=True):
            torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-9)
        if wanted is None:
            continue
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-9)
        for (name, before), (same_name, after) in zip(parts(model), parts(shrunk), strict=True):
            assert name == same_name
            known = dict(zip(entries(before), entries(before.grad), strict=False))
            for value, own in zip(entries(after), entries(after.grad), strict=False):
                if value != 0.0:
                    assert own == pytest.approx(known.get(value, 0.0), rel=1e-9, abs=1e-9), name


@pytest.mark.filterwarnings("ignore:neurons without connections stay")
@settings(max_examples=40)
@given(programs(kinds=(*KINDS, "other", "flatten")))
def test_outputs_and_gradients_never_change(example):
    model, x = example
    before = {name: array.clone() for name, array in model.state_dict().items()}
    shrunk = ts.shrink(model, x)
    hold(model, shrunk, x)
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items()), "the given model is not touched"
    assert sum(array.numel() for array in shrunk.parameters()) <= sum(array.numel() for array in model.parameters()) + 12  # a bias
    assert shapes(ts.shrink(shrunk, x)) == shapes(shrunk), "nothing is left to remove"


def test_a_chain():
    # a: neuron 3 has no input; b: neuron 2 has no output, so a's neuron 2 has none either.
    layers = {"a": linear("xx. .x. x.. ... xxx"), "b": linear("xx..x .x.x. ..x.."), "c": linear("x.. xx.")}
    model, x = Net(lambda m, x: m.c(torch.tanh(m.b(F.relu(m.a(x))))), **layers), torch.randn(2, 3).double()
    shrunk = ts.shrink(model, x)
    assert shapes(shrunk) == {"a": (3, 3), "b": (2, 3), "c": (2, 2)}
    assert [layer.topology.nnz for layer in (shrunk.a, shrunk.b, shrunk.c)] == [6, 4, 3]
    assert isinstance(shrunk, Net)
    assert shrunk.training
    hold(model, shrunk, x)


def test_whole_neurons_leave_norms_too_and_what_is_left_trains():
    model = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4)).double()
    ts.sparsify(model, 0.5, pattern="neurons", exclude=("4",), generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        model(torch.randn(8, 12).double())
    left = 16 - model[0].topology.empty_rows
    shrunk = ts.shrink(model, torch.randn(8, 12).double())
    assert shapes(shrunk) == {"0": (left, 12), "1": left, "4": (4, left)}
    assert all(module.training for module in shrunk.modules())
    assert shrunk[1].num_batches_tracked == 3
    assert all(type(module) is not SparseLinear for module in shrunk), "full layers are dense"
    hold(model.eval(), shrunk.eval(), torch.randn(8, 12).double())
    optimizer = torch.optim.SGD(shrunk.train().parameters(), 0.1)
    x, losses = torch.randn(64, 12).double(), []
    for _ in range(30):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(shrunk(x), (x[:, 0] > 0).long()))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_in_training_mode_what_stays_is_normalised_as_before():
    # Neuron 1 is read by nothing: it leaves the norm, the others keep their batch statistics and what they do to the running ones.
    model = nn.Sequential(linear("xx xx xx"), nn.BatchNorm1d(3).double(), nn.Tanh(), linear("x.x x.x"))
    shrunk, x = ts.shrink(model, torch.randn(6, 2).double()), torch.randn(6, 2).double()
    assert shapes(shrunk) == {"0": (2, 2), "1": 2, "3": (2, 2)}
    hold(model.train(), shrunk.train(), x)
    torch.testing.assert_close(shrunk[1].running_var, model[1].running_var[[0, 2]])
    torch.testing.assert_close(shrunk[1].running_mean, model[1].running_mean[[0, 2]])


@pytest.mark.parametrize("masked", [False, True])
def test_ablated_neurons_go(masked):
    model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 4))
    ts.sparsify(model, 0.9, pattern="fan-in", masked=masked, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewirer = ts.Rewirer(model, optimizer, ts.SRigL(), every=2, generator=torch.Generator().manual_seed(1))
    for seed in range(6):
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(seed))
        F.cross_entropy(model(x), torch.arange(16) % 4).backward()
        if rewirer.step():
            optimizer.step()
        optimizer.zero_grad()
    ablated = [model[place].topology.empty_rows for place in (0, 2)]
    assert sum(ablated) > 0
    shrunk = ts.shrink(model, torch.randn(1, 20))
    assert shrunk[0].out_features <= 24 - ablated[0]
    assert shrunk[2].out_features <= 24 - ablated[1]
    assert type(shrunk[0]) is type(model[0])
    x = torch.randn(5, 20)
    torch.testing.assert_close(shrunk(x), model(x))
    assert not any(layer._forward_hooks for layer in shrunk.modules())


def test_connections_that_are_zero_or_only_train_stay():
    # Of b, connection (0, 1) has just been grown, connection (1, 0) does not act; without either, a's neurons would have no way out.
    model = nn.Sequential(linear("xx xx .."), nn.ReLU(), linear("xx. x.."))
    with torch.no_grad():
        model[2].values[1] = 0.0
    model[2].acting = torch.tensor([True, True, False])
    x = torch.randn(3, 2).double()
    shrunk = ts.shrink(model, x)
    assert shapes(shrunk) == {"0": (2, 2), "2": (2, 2)}
    assert torch.equal(shrunk[2].values, model[2].values)
    assert shrunk[2].acting.tolist() == [True, True, False]
    hold(model, shrunk, x)


def test_what_is_frozen_stays_so():
    model = nn.Sequential(
        linear("xx xx .."), nn.BatchNorm1d(3).double(), nn.ReLU(), linear("xx. x.."), linear("x. xx", sparse=False)
    ).eval()
    for frozen in (model[0].values, model[0].bias, model[1].weight, model[3].bias, model[4].weight):
        frozen.requires_grad_(False)
    shrunk = ts.shrink(model, torch.randn(3, 2).double())
    assert shapes(shrunk) == {"0": (2, 2), "1": 2, "3": (2, 2), "4": (2, 2)}
    before, after = (
        {name.replace("values", "weight"): parameter.requires_grad for name, parameter in one.named_parameters()} for one in (model, shrunk)
    )  # layers that are full are dense ones
    assert after == before


def test_channels_that_a_norm_switches_off_may_be_trained():
    model = nn.Sequential(linear("xx xx"), nn.BatchNorm1d(2).double(), nn.ReLU(), linear("xx xx")).eval()
    model[1].weight.data[0] = 0.0
    assert shapes(ts.shrink(model, torch.randn(3, 2).double())) == {"0": (2, 2), "1": 2, "3": (2, 2)}


def test_a_dense_weight_of_zero_is_missing_and_a_bias_is_made_where_one_must_be():
    model = nn.Sequential(linear("xx .. xx", sparse=False), nn.Sigmoid(), linear("xxx xx.", bias=False, sparse=False))
    x = torch.randn(3, 2).double()
    shrunk = ts.shrink(model, x)
    assert shapes(shrunk) == {"0": (2, 2), "2": (2, 2)}
    torch.testing.assert_close(shrunk[2].bias, model[2].weight[:, 1] * torch.sigmoid(model[0].bias[1]))
    hold(model, shrunk, x)


@pytest.mark.parametrize(
    ("flatten", "channels"),
    [
        (lambda x: x.flatten(1), 2),
        (lambda x: x.view(x.size(0), -1), 2),
        (lambda x: x.reshape(-1, 3 * 16), 3),
        (lambda x: x.view(x.size(0), 3 * 16), 3),
    ],
)
def test_sizes_in_the_python_of_a_model_hold_channels(flatten, channels):
    seen = f"{'x' * 32}{'.' * 16}"
    model = Net(lambda m, x: m.b(flatten(F.relu(m.a(x)))), a=conv("x x x"), b=linear(f"{seen} {seen}"))
    x = torch.randn(2, 1, 4, 4).double()
    held = (
        pytest.warns(UserWarning, match=r"stay: 1 of 'a' \(their number stands in the call of (view|reshape)\(\)")
        if channels == 3
        else nullcontext()
    )
    with held:
        shrunk = ts.shrink(model, x)
    assert shapes(shrunk) == {"a": (channels, 1, 1, 1), "b": (2, 16 * channels)}
    hold(model, shrunk, x)


def test_channels_that_padding_adds_stay_as_many():
    model = Net(lambda m, x: m.b(F.pad(m.a(x), (0, 2))), a=linear("xx xx xx"), b=linear("xx... x...."))
    x = torch.randn(2, 2).double()
    shrunk = ts.shrink(model, x)
    assert shapes(shrunk) == {"a": (2, 2), "b": (2, 4)}
    hold(model, shrunk, x)


def test_layers_that_share_a_weight_stay():
    layers = {"a": linear("xx xx ..", sparse=False), "b": linear("xx. x..", sparse=False), "c": linear("xx xx ..", sparse=False)}
    model, x = Net(lambda m, x: m.b(F.relu(m.a(x))) + m.c(x)[:, :2], **layers), torch.randn(3, 2).double()
    with pytest.warns(UserWarning, match=r"stay: 1 of 'c' \(getitem\(\) looks at all of them together\)"):
        assert shapes(ts.shrink(model, x))["a"] == (2, 2)
    model.c.weight = model.a.weight
    with pytest.warns(
        UserWarning, match=r"stay: 1 of 'a' \(it shares its weight with 'c'\); 1 of 'c' \(it shares its weight with 'a'\)\. ts\.prune"
    ):
        shrunk = ts.shrink(model, x)
    assert shrunk.c.weight is shrunk.a.weight
    assert shapes(shrunk) == {"a": (3, 2), "b": (2, 3), "c": (3, 2)}
    hold(model, shrunk, x)


def test_a_layer_with_a_hook_of_a_user_stays():
    model, x = nn.Sequential(linear("xx xx .."), nn.ReLU(), linear("xx. x..")), torch.randn(3, 2).double()
    model[0].register_forward_hook(lambda module, given, output: output + 1.0)
    with pytest.warns(UserWarning, match=r"stay: 1 of '0' \(a forward hook of yours is on it\)"):
        shrunk = ts.shrink(model, x)
    assert shapes(shrunk) == {"0": (3, 2), "2": (2, 3)}
    hold(model, shrunk, x)


def test_one_layer_under_two_names_stays_one():
    a = linear("xx xx ..")
    model = Net(lambda m, x: m.c(F.relu(m.a(x))) + m.c(F.relu(m.b(-x))), a=a, b=a, c=linear("xx. x.."))
    shrunk = ts.shrink(model, torch.randn(2, 2).double())
    assert shrunk.a is shrunk.b
    assert shapes(shrunk) == {"a": (2, 2), "c": (2, 2)}
    hold(model, shrunk, torch.randn(2, 2).double())


def test_it_is_saved_loaded_made_dense_and_packed(tmp_path):
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5))
    ts.sparsify(model, 0.8, pattern="neurons", exclude=("2",), generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 20)
    shrunk = ts.shrink(torch.compile(model, backend="eager"), x)
    assert type(shrunk) is nn.Sequential
    expected = model(x).detach()
    other = copy.deepcopy(shrunk)
    other.load_state_dict(shrunk.state_dict())
    ts.save(shrunk, tmp_path / "net.safetensors")
    ts.load(tmp_path / "net.safetensors", other)
    for one in (shrunk, other, ts.densify(copy.deepcopy(shrunk)), ts.pack(shrunk, x, tune=False)):
        with torch.inference_mode():
            torch.testing.assert_close(unwrapped(one)(x), expected)
    assert ts.summary(shrunk).size < 0.5 * ts.summary(model).size


def test_inputs_by_name():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear("xx xx .."), linear("xx. x..")

        def forward(self, x, scale=None):
            return self.b(F.relu(self.a(x if scale is None else x * scale)))

    x = {"scale": torch.ones(1).double(), "x": torch.randn(2, 2).double()}
    assert shapes(ts.shrink(Named(), x)) == {"a": (2, 2), "b": (2, 2)}


def test_what_torch_export_must_follow():
    class Unpacked(nn.Module):
        """Python that a symbolic run cannot follow."""

        def __init__(self, first, last):
            super().__init__()
            self.first, self.last = first, last

        def forward(self, x):
            rows = [self.first(row) for row in x.unbind(1)]
            return self.last(torch.relu(torch.stack(rows, 1)).sum(1))

    for sparse in (True, False):
        model = Unpacked(linear("xx xx ..", sparse=sparse), linear("xx. x..", sparse=sparse))
        x = torch.randn(2, 4, 2).double()
        with pytest.warns(UserWarning, match=r"stay: 1 of 'first' \("):
            shrunk = ts.shrink(model, x)
        hold(model, shrunk, x)


def test_python_that_decides_by_sizes_is_refused():
    def function(m, x):
        y = m.a(x)
        return m.b(y) if m.a.out_features == 3 else m.b(y) + 1

    layers = {"a": linear("xx xx .."), "b": linear("xx. x..")}
    with pytest.raises(TypeError, match="cannot shrink Net: with smaller layers its forward gives another output: it decides in Python"):
        ts.shrink(Net(function, **layers), torch.randn(2, 2).double())
    with pytest.raises(TypeError, match=r"cannot shrink Net: with smaller layers its forward raises ValueError: expected an input"):
        ts.shrink(Net(lambda m, x: m.b(m.a(x) if m.a.out_features == 3 else x[:, :1]), **layers), torch.randn(2, 2).double())


def test_what_only_training_mode_reads_is_refused():
    layers = {"a": linear("xx xx xx"), "b": linear("xx. x.."), "auxiliary": linear("xxx")}
    model = Net(lambda m, x: (m.b(y), m.auxiliary(y)) if (y := m.a(x)) is not None and m.training else m.b(y), **layers)
    with pytest.raises(TypeError, match=r"in training mode, in which it reads more than in eval mode"):
        ts.shrink(model, torch.randn(2, 2).double())


def test_what_is_no_graph_is_refused():
    model = Net(lambda m, x: m.a(x) if x.sum() > 0 else m.a(-x), a=linear("xx xx"))
    with pytest.raises(TypeError, match=r"cannot trace the model \(Net\).*torch\.where"):
        ts.shrink(model, torch.randn(2, 2).double())
