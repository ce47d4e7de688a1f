"""What is measured of layers is what dense torch gives in float64, and the model is as it was afterwards."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.nn.conv import SparseConv2d
from truesparse.nn.convert import topology_layers
from truesparse.nn.kinds import DENSE, kind_of
from truesparse.pruning import statistics
from truesparse.pruning.probe import Probe, Probed, called
from truesparse.topology import Topology

KINDS = ["dense", "sparse", "masked"]


def network():
    """Float64, smooth, with a stride, groups, and a loss that is no sum over weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 3, bias=False)
    ).double()


def of_kind(kind, model=None):
    model = network() if model is None else model
    if kind == "dense":
        return model
    return ts.sparsify(model, 0.5, ts.Uniform(dense_first=False), masked=kind == "masked", generator=torch.Generator().manual_seed(2))


def data(batches=2, count=4, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(count, 4, 4, 4, generator=draw, dtype=torch.float64), torch.randint(3, (count,), generator=draw))
        for _ in range(batches)
    ]


def probe_of(model, batches, loss=F.cross_entropy, forward=called, generator=None, kept=None):
    layers = {}
    for name, module in model.named_modules():
        kind = kind_of(module)
        if kind is not None:
            geometry = kind.sparse.geometry_of(module) if isinstance(module, DENSE) else module.geometry
            layers[name] = Probed(module, geometry, kept=(kept or {}).get(name))
    return Probe(model, layers, batches, forward, loss, generator)


def there(model, name):
    """[rows, columns] bool, which connections a layer has."""
    layer = model.get_submodule(name)
    return torch.ones_like(layer.weight.flatten(1), dtype=torch.bool) if isinstance(layer, DENSE) else layer.topology.mask()


def dense_of(model):
    return ts.densify(copy.deepcopy(model)) if topology_layers(model) else copy.deepcopy(model)


def loss_by_weights(model, batches):
    """(the loss as a function of all weights in one vector, that vector, the places in it that each layer has)."""
    dense = dense_of(model)
    names = [name for name, module in dense.named_modules() if isinstance(module, DENSE)]
    shapes = {name: dense.get_submodule(name).weight.shape for name in names}
    sizes = [shape.numel() for shape in shapes.values()]

    def loss(vector):
        parts = {f"{name}.weight": part.view(shapes[name]) for name, part in zip(names, vector.split(sizes), strict=True)}
        return torch.stack([F.cross_entropy(torch.func.functional_call(dense, parts, (x,)), target) for x, target in batches]).mean()

    vector = torch.cat([dense.get_submodule(name).weight.detach().flatten() for name in names])
    return loss, vector, dict(zip(names, range(len(names)), strict=True)), sizes


def assert_layers(model, found, expected):
    """`expected` [all weights] is what was found, at the connections there are."""
    _, _, places, sizes = loss_by_weights(model, data())
    assert list(found) == list(places)
    for name, tensor in found.items():
        groups = model.get_submodule(name).geometry.groups if hasattr(model.get_submodule(name), "geometry") else (2 if name == "0" else 1)
        assert tensor.ndim == 3
        assert tensor.shape[0] == groups
        mask = there(model, name)
        torch.testing.assert_close(tensor.flatten(0, 1)[mask], expected.split(sizes)[places[name]].view(mask.shape)[mask])
        assert not tensor.flatten(0, 1)[~mask].any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_that_of_the_mean_loss(kind):
    model, batches = of_kind(kind), data()
    loss, weights, _, _ = loss_by_weights(model, batches)
    assert_layers(model, statistics.gradient(probe_of(model, batches)), slope(loss, weights))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("statistic", "part"), [("gradient_magnitudes", torch.abs), ("gradient_squares", torch.square)])
def test_gradients_of_single_samples(kind, statistic, part):
    model, batches = of_kind(kind), data()
    each = []
    for x, target in batches:
        for place in range(len(x)):
            loss, weights, _, _ = loss_by_weights(model, [(x[place : place + 1], target[place : place + 1])])
            each.append(part(slope(loss, weights)))
    assert_layers(model, getattr(statistics, statistic)(probe_of(model, batches)), torch.stack(each).mean(0))


def slope(loss, weights):
    weights = weights.clone().requires_grad_()
    return torch.autograd.grad(loss(weights), weights)[0]


def connected(model):
    """[all weights] which of them are connections."""
    return torch.cat([there(model, name).flatten() for name in ("0", "3", "5")])


@pytest.mark.parametrize("kind", KINDS)
def test_the_hessian_times_the_gradient(kind):
    model, batches = of_kind(kind), data()
    loss, weights, _, _ = loss_by_weights(model, batches)
    hessian, gradient = torch.autograd.functional.hessian(loss, weights), slope(loss, weights) * connected(model)
    assert_layers(model, statistics.hessian_gradient(probe_of(model, batches)), hessian @ gradient)


@pytest.mark.parametrize("kind", KINDS)
def test_the_diagonal_of_the_hessian_is_hutchinsons_estimate_with_these_signs(kind):
    model, batches = of_kind(kind), data()
    shapes = [layer.parameter.shape if hasattr(layer, "parameter") else layer.weight.shape for layer in (model[0], model[3], model[5])]
    draw, estimates = torch.Generator().manual_seed(6), []
    for batch in batches:
        loss, weights, _, _ = loss_by_weights(model, [batch])
        hessian = torch.autograd.functional.hessian(loss, weights)
        for _ in range(statistics.PROBES // len(batches)):
            drawn = [torch.randint(2, shape, generator=draw) * 2.0 - 1 for shape in shapes]
            signs = torch.cat([whole(layer, part) for layer, part in zip((model[0], model[3], model[5]), drawn, strict=True)]).double()
            estimates.append(signs * (hessian @ signs))
    found = statistics.hessian_diagonal(probe_of(model, batches, generator=torch.Generator().manual_seed(6)))
    assert_layers(model, found, torch.stack(estimates).mean(0))


def whole(layer, array):
    """An array shaped as the parameter of a layer, at its places of the dense weight."""
    if isinstance(layer, DENSE):
        return array.flatten()
    return layer.topology.scatter(layer.of_connections(array)).flatten()


def test_a_diagonal_hessian_is_found_by_any_signs():
    torch.manual_seed(0)
    model = nn.Linear(5, 3, bias=False).double()
    x = torch.eye(5, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5, 3.0, 0.0], dtype=torch.float64)
    found = statistics.hessian_diagonal(probe_of(model, [x], loss=lambda y, x: y.square().sum()))
    torch.testing.assert_close(found[""][0], (2 * x.diagonal().square()).expand(3, 5))


def test_a_linear_loss_has_no_hessian():
    model = nn.Linear(5, 3).double()
    probe = probe_of(model, [torch.ones(2, 5, dtype=torch.float64)], loss=lambda y, x: y.sum())
    assert not statistics.hessian_diagonal(probe)[""].any()
    assert not statistics.hessian_gradient(probe)[""].any()


def test_attention_has_second_derivatives():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.project = nn.Linear(4, 12)

        def forward(self, x):
            return F.scaled_dot_product_attention(*self.project(x).chunk(3, -1))

    torch.manual_seed(0)
    model, x = Attention(), torch.randn(2, 3, 4)
    found = statistics.hessian_gradient(probe_of(model, [x], loss=lambda y, x: y.square().mean()))
    assert found["project"].isfinite().all()
    assert found["project"].any()


CONVOLUTIONS = {
    "groups": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2), (3, 4, 6, 7)),
    "reflected": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 2, 5, 4)),
    "same": (nn.Conv2d(2, 3, 4, padding="same"), (2, 2, 5, 6)),
    "one sample": (nn.Conv1d(3, 4, 3, stride=2), (3, 9)),
    "volume": (nn.Conv3d(2, 2, 2, padding=1), (2, 2, 3, 4, 3)),
    "depthwise": (nn.Conv1d(4, 4, 3, groups=4, padding=2, padding_mode="circular"), (2, 4, 7)),
    "matrix": (nn.Linear(5, 3), (2, 4, 5)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_what_columns_are_multiplied_with(case, kind):
    """A weight of ones in one column and zeros elsewhere gives that column's inputs as outputs."""
    dense, shape = CONVOLUTIONS[case]
    dense, x = copy.deepcopy(dense).double(), torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    groups, columns = getattr(dense, "groups", 1), dense.weight[0].numel()
    inputs = []
    probing = copy.deepcopy(dense)
    for column in range(columns):
        with torch.no_grad():
            probing.weight.zero_().flatten(1)[:, column] = 1
            y = probing(x) - (0 if probing.bias is None else probing(torch.zeros_like(x)))
        channels = y.movedim(-1 if case == "matrix" else -(dense.weight.ndim - 1), 0).flatten(1)
        inputs.append(channels[:: len(channels) // groups])  # the outputs of a group are alike
    rows = torch.stack(inputs, -1)  # [groups, samples and positions, columns]
    model = nn.Sequential(dense if kind == "dense" else ts.sparsify(dense, 0.5))
    found = statistics.gram(probe_of(model, [x]))["0"]
    torch.testing.assert_close(found, rows.transpose(1, 2) @ rows / rows.shape[1])
    torch.testing.assert_close(statistics.input_squares(probe_of(model, [x]))["0"], found.diagonal(dim1=1, dim2=2))


def test_batches_of_different_sizes_weigh_by_their_samples():
    model, x = nn.Linear(5, 3).double(), torch.randn(7, 5, dtype=torch.float64)
    whole_batch, parts = statistics.gram(probe_of(model, [x])), statistics.gram(probe_of(model, [x[:2], x[2:]]))
    torch.testing.assert_close(whole_batch, parts)


def test_a_transposed_convolution_is_named():
    model = nn.Sequential(nn.ConvTranspose1d(3, 4, 3))
    x = torch.randn(2, 3, 5)
    with pytest.raises(ValueError, match="layer '0': a transposed convolution has no input for each column of its matrix: exclude it"):
        statistics.gram(probe_of(model, [x]))
    with pytest.raises(ValueError, match="layer '0' is a transposed convolution"):
        statistics.output_activity(probe_of(model, [x]))
    gradient = statistics.gradient(probe_of(model, [x], loss=lambda y, x: y.square().mean()))["0"]
    model(x).square().mean().backward()
    torch.testing.assert_close(gradient[0], model[0].weight.grad.flatten(1))


@pytest.mark.parametrize("kind", KINDS)
def test_synaptic_flow_is_the_sum_over_paths(kind):
    torch.manual_seed(0)
    model = of_kind(kind, nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)).double())
    with torch.no_grad():
        model[0].bias.zero_()
        model[4].bias.zero_()
    first, second, third = (layer.weight.detach().abs() for layer in dense_of(model) if isinstance(layer, nn.Linear))
    one = torch.ones
    into = [one(6, dtype=torch.float64), first.sum(1), second @ first.sum(1)]
    out = [third.sum(0) @ second, third.sum(0), one(3, dtype=torch.float64)]
    found = statistics.synaptic_flow(probe_of(model, [torch.randn(1, 6)], loss=None))
    for name, weight, before, after in zip(("0", "2", "4"), (first, second, third), into, out, strict=True):
        torch.testing.assert_close(found[name][0], after[:, None] * weight * before)
    # What flows into a neuron flows out of it, and through each layer the same: Tanaka et al., theorem 1.
    torch.testing.assert_close(found["0"][0].sum(1), found["2"][0].sum(0))
    torch.testing.assert_close(found["2"][0].sum(1), found["4"][0].sum(0))


def test_synaptic_flow_of_a_deep_network_does_not_overflow():
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(40) for layer in (nn.Linear(20, 20, bias=False), nn.ReLU())))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1)
    found = statistics.synaptic_flow(probe_of(model, [torch.randn(1, 20)], loss=None))
    assert float(found["0"].sum()) > torch.finfo(torch.float32).max
    assert all(tensor.isfinite().all() for tensor in found.values())


def normed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
        nn.ReLU(),
    ).double()


@pytest.mark.parametrize("kind", KINDS)
def test_activity_is_what_a_relu_leaves(kind):
    model, batches = of_kind(kind, normed()), data()
    for x, _ in batches:
        model(x)
    nn.init.uniform_(model[1].bias)
    found = statistics.output_activity(probe_of(model.eval(), batches))
    x = torch.cat([x for x, _ in batches])
    torch.testing.assert_close(found["0"].flatten(), (model[:3](x) != 0).double().mean((0, 2, 3)))
    torch.testing.assert_close(found["5"].flatten(), (model(x) != 0).double().mean(0))
    assert found["0"].shape == (2, 3)


def test_activity_that_is_not_finite_is_seen():
    found = statistics.output_activity(probe_of(nn.Linear(2, 3), [torch.tensor([[1.0, torch.nan]])]))
    assert found[""].isnan().all()


def test_the_scale_is_that_of_the_norm_that_takes_the_output():
    class Branches(nn.Module):
        """Its norms are registered in another order than they are used in."""

        def __init__(self):
            super().__init__()
            self.right_norm, self.left_norm = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
            self.left, self.right = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x):
            left, right = self.left(x), self.right(x)
            return self.right_norm(right) + self.left_norm(left)

    model = Branches()
    for norm in (model.left_norm, model.right_norm):
        nn.init.normal_(norm.weight)
    found = statistics.output_scale(probe_of(model, [torch.randn(5, 3)]))
    assert torch.equal(found["left"][0], model.left_norm.weight.detach().abs())
    assert torch.equal(found["right"][0], model.right_norm.weight.detach().abs())


def test_layers_without_a_norm_are_named():
    with pytest.raises(ValueError, match="no batch norm with a scale follows '5': exclude them"):
        statistics.output_scale(probe_of(normed(), data()))


def test_batch_norms_that_have_seen_nothing_normalise_by_the_batch():
    model, batches = normed(), data(batches=1)
    found = statistics.gradient(probe_of(model, batches))
    assert not int(model[1].num_batches_tracked)
    assert not model[1].running_mean.any()
    F.cross_entropy(model.train()(batches[0][0]), batches[0][1]).backward()
    torch.testing.assert_close(found["0"].flatten(0, 1), model[0].weight.grad.flatten(1))
    seen = statistics.gradient(probe_of(model, batches))  # by what it has seen now
    assert not torch.allclose(seen["0"], found["0"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("statistic", list(statistics.STATISTICS))
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_it_was(kind, statistic, fails):
    model = of_kind(kind, nn.Sequential(normed()[:5], nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Identity()).double())
    model[0].eval()
    model[1].parameter_is_frozen = True
    next(model[1].parameters()).requires_grad_(False)
    for parameter in model[0].parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    told = []
    model[0][0].register_parameter("own", None)
    next(model[0].parameters()).register_hook(told.append)
    calls = 0

    def forward(model, batch):
        nonlocal calls
        calls += 1
        torch.rand(1)  # a model may draw
        output = called(model, batch)
        if fails and calls == 2:
            raise ZeroDivisionError
        return output

    def state():
        tensors = {name: (tensor, tensor.clone(), tensor.data_ptr()) for name, tensor in model.state_dict(keep_vars=True).items()}
        gradients = {name: None if one.grad is None else one.grad.clone() for name, one in model.named_parameters()}
        flags = {name: one.requires_grad for name, one in model.named_parameters()}
        modes = {name: module.training for name, module in model.named_modules()}
        hooks = {name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()}
        return tensors, gradients, flags, modes, hooks, torch.random.get_rng_state()

    before = state()
    probe = probe_of(model, data(batches=3, count=6), forward=forward, generator=torch.Generator())
    once = statistic in ("output_scale", "synaptic_flow")
    if fails and not once:
        with pytest.raises(ZeroDivisionError):
            statistics.STATISTICS[statistic](probe)
    else:
        statistics.STATISTICS[statistic](probe)
    after = state()
    assert all(
        one is other and torch.equal(old, new) and at == now
        for (one, old, at), (other, new, now) in zip(before[0].values(), after[0].values(), strict=True)
    )
    assert all(torch.equal(one, after[1][name]) if one is not None else after[1][name] is None for name, one in before[1].items())
    assert before[2:5] == after[2:5]
    assert torch.equal(before[5], after[5])
    assert not told


def test_what_earlier_rounds_removed_is_gone():
    for kind in KINDS:
        model, batches = of_kind(kind), data()
        kept = {
            name: Topology.from_mask(there(model, name) & (torch.arange(there(model, name).shape[1]) % 3 > 0)) for name in ("0", "3", "5")
        }
        pruned = copy.deepcopy(model)
        for name, topology in kept.items():
            layer = pruned.get_submodule(name)
            with torch.no_grad():
                parameter = layer.weight if isinstance(layer, DENSE) else layer.parameter
                mask = topology.mask() if isinstance(layer, DENSE) else layer.spread(topology.mask().flatten()[layer.topology.keys])
                parameter.mul_(mask.view_as(parameter))
        masked, plain = probe_of(model, batches, kept=kept), probe_of(pruned, batches)
        for statistic in (statistics.gram, statistics.gradient, statistics.synaptic_flow):
            found, expected = statistic(masked), statistic(plain)
            for name, topology in kept.items():
                one, other = found[name].flatten(0, 1), expected[name].flatten(0, 1)
                if statistic is not statistics.gram:
                    one, other = one * topology.mask(), other * topology.mask()
                torch.testing.assert_close(one, other, msg=f"{kind} {statistic.__name__} {name}")


@pytest.mark.parametrize(
    ("loss", "forward", "said"),
    [
        (None, called, "the model's output has no loss: pass loss="),
        (lambda y, target: y.square(), called, r"a loss is one number.*got a tensor of shape \(4, 3\)"),
        (lambda y, target: 1.0, called, "a loss is one number.*got float"),
        (lambda y, target: y.detach().sum(), called, "the loss depends on no layer"),
    ],
)
def test_a_loss_that_is_none_is_told(loss, forward, said):
    with pytest.raises(ValueError, match=said):
        statistics.gradient(probe_of(network(), data(), loss=loss, forward=forward))


def test_losses_of_the_models_own():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, labels):
            return {"loss": F.cross_entropy(self.layer(x), labels), "logits": self.layer(x)}

    torch.manual_seed(0)
    model, x, labels = Named(), torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    batch = {"x": x, "labels": labels}
    own = statistics.gradient(probe_of(model, [batch], loss=None))
    number = statistics.gradient(probe_of(model, [batch], loss=None, forward=lambda model, batch: model(**batch)["loss"]))
    given = statistics.gradient(probe_of(model, [batch], loss=lambda output, labels: F.cross_entropy(output["logits"], labels)))
    assert own["layer"].any()
    torch.testing.assert_close(own, number)
    torch.testing.assert_close(own, given)
    each = statistics.gradient_magnitudes(probe_of(model, [batch], loss=None))
    singly = statistics.gradient_magnitudes(
        probe_of(model, [{"x": x[at : at + 1], "labels": labels[at : at + 1]} for at in range(4)], loss=None)
    )
    torch.testing.assert_close(each, singly)


def test_a_batch_without_samples_is_told():
    model = nn.Linear(3, 2)
    batch = {"input": torch.randn(4, 3), "other": torch.randn(5)}
    with pytest.raises(ValueError, match=r"the tensors of a batch have \[4, 5\] of them"):
        statistics.gradient_squares(probe_of(model, [batch], loss=None, forward=lambda model, batch: model(batch["input"]).sum()))


def test_a_layer_that_no_batch_reaches_is_missing():
    model, batches = network(), data()
    found = statistics.gradient(probe_of(model, batches, forward=lambda model, batch: model[:4](batch[0]), loss=lambda y, t: y.sum()))
    assert list(found) == ["0", "3"]


def test_sparse_layers_measure_what_their_dense_ones_do():
    dense = nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate").double()
    sparse = SparseConv2d.from_dense(dense)
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    found = [statistics.gram(probe_of(nn.Sequential(layer), [x]))["0"] for layer in (dense, sparse)]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_the_matrices_inside_other_modules_have_their_gradients(kind):
    """Opened for the time of the pruning: what stays is what |g w| of the closed module's own weights says."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells = kind(4, 3, batch_first=True)

        def forward(self, x):
            return self.cells(x)[0][:, -1]

    torch.manual_seed(0)
    model, x, target = Network().double(), torch.randn(6, 5, 4, dtype=torch.float64), torch.arange(6) % 3
    F.cross_entropy(model(x), target).backward()
    weights = [model.cells.weight_ih_l0, model.cells.weight_hh_l0]
    scores = torch.cat([(weight.grad * weight).abs().flatten() for weight in weights]).detach()
    kept_values = torch.cat([weight.flatten() for weight in weights]).detach()[scores.topk(scores.numel() - scores.numel() // 2).indices]
    ts.prune(model, 0.5, "snip", [(x, target)], loss=F.cross_entropy)
    found = torch.cat([layer.values.detach() for layer in topology_layers(model).values()])
    assert torch.equal(found.sort().values, kept_values.sort().values)
