"""rounds(): the sparsities of rounds, against sums done by hand; a loop of pruning and training keeps what the optimizer knows."""

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.nn import topology_layers
from truesparse.pruning import Rewind, rounds
from truesparse.topology.schedules import cubic


def test_exponential_takes_the_same_share_of_what_is_left():
    found = rounds(1 - 0.8**5, 5)
    assert found == pytest.approx([0.2, 0.36, 0.488, 0.5904, 0.67232])
    left = [1.0, *(1 - one for one in rounds(0.9, 4, start=0.5))]
    assert left[1] / 0.5 == pytest.approx(0.2**0.25)
    assert left[4] == pytest.approx(0.1)


def test_linear_takes_the_same_number_and_polynomial_fewer_and_fewer():
    assert rounds(0.8, 4, "linear") == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rounds(0.9, 3, "linear", start=0.6) == pytest.approx([0.7, 0.8, 0.9])
    assert rounds(0.9, 4, "polynomial") == pytest.approx([cubic(0.0, 0.9, step / 4) for step in (1, 2, 3, 4)])
    assert rounds(0.75, 2, "polynomial", power=2) == pytest.approx([0.75 * (1 - 0.25), 0.75])


@pytest.mark.parametrize("spacing", ["exponential", "linear", "polynomial"])
def test_the_last_round_is_exactly_there(spacing):
    found = rounds(0.951, 7, spacing)
    assert len(found) == 7
    assert found[-1] == 0.951
    assert list(found) == sorted(found)
    assert rounds(0.3, 1, spacing) == (0.3,)
    assert rounds(0.0, 2, spacing) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((1.0,), r"sparsity is the share .* lies in \[0, 1\), got 1.0"),
        ((0.5, 0), "count is the number of rounds, at least 1, got 0"),
        ((0.5, 2, "cubic"), "spacing is one of 'exponential', 'linear', 'polynomial', got 'cubic'"),
    ],
)
def test_bad_input_is_told(arguments, said):
    with pytest.raises(ValueError, match=said):
        rounds(*arguments)
    with pytest.raises(ValueError, match=r"from start up to sparsity, got 0.6 and 0.5"):
        rounds(0.5, start=0.6)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(32, 9), nn.ReLU(), nn.Linear(9, 3)
    )


def trained(model, optimizer, steps=3):
    model.train()
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(torch.randn(12, 4, 5, 5)), torch.randint(3, (12,)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_loop_of_rounds_and_training_keeps_one_optimizer():
    model = ts.prune(network(), 0.0)
    optimizer = torch.optim.Adam(model.parameters())
    for sparsity in rounds(0.8, 3):
        trained(model, optimizer)
        ts.prune(model, sparsity, across="network", optimizer=optimizer)
    layers = topology_layers(model)
    kept, size = (sum(getattr(layer.topology, name) for layer in layers.values()) for name in ("nnz", "size"))
    assert kept == pytest.approx(0.2 * size, abs=len(layers))
    assert all(optimizer.state[layer.values]["exp_avg"].shape == layer.values.shape for layer in layers.values())
    trained(model, optimizer)


@pytest.mark.parametrize("begin", ["dense", "sparse", "masked"])
def test_rewinding_gives_the_connections_that_are_left_what_they_had(begin):
    model = network()
    if begin != "dense":
        ts.sparsify(model, 0.3, budget="er", masked=begin == "masked")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    dense = {name: (module.to_dense() if begin != "dense" else module.weight).detach().clone() for name, module in weighted(model)}
    start = Rewind(model)
    trained(model, torch.optim.SGD(model.parameters(), lr=0.1))
    ts.prune(model, 0.7)
    masks = {name: layer.topology.mask() for name, layer in topology_layers(model).items()}
    start(model)
    assert list(masks) == ["0", "4", "6"]
    for name, layer in topology_layers(model).items():
        assert torch.equal(layer.topology.mask(), masks[name])
        assert torch.equal(layer.to_dense(), dense[name] * masks[name].view_as(dense[name]))
    for name in ("0.bias", "1.weight", "1.running_mean", "1.num_batches_tracked", "6.bias"):
        assert torch.equal(model.state_dict()[name], before[name]), name
    trained(model, torch.optim.SGD(model.parameters(), lr=0.1))


def weighted(model):
    return [(name, module) for name, module in model.named_modules() if name in ("0", "4", "6")]


def test_what_is_remembered_does_not_change_with_the_model():
    model = ts.prune(network(), 0.0)
    start, before = Rewind(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for _ in range(2):
        trained(model, torch.optim.SGD(model.parameters(), lr=0.1))
        start(model)
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_layer_that_is_the_model_itself():
    layer = nn.Linear(6, 4)
    start, weight = Rewind(layer), layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.bias.zero_()
    sparse = ts.prune(layer, 0.5)
    start(sparse)
    assert torch.equal(sparse.to_dense(), weight * sparse.topology.mask())
    assert sparse.bias.abs().sum() > 0


def test_what_was_not_there_is_told_and_nothing_changes():
    small, large = ts.sparsify(network(), 0.9), ts.prune(network(), 0.0)
    before = {name: tensor.clone() for name, tensor in large.state_dict().items()}
    with pytest.raises(ValueError, match="layer '0' has connections that were not there"):
        Rewind(small)(large)
    with pytest.raises(ValueError, match=r"layer '0' was not there, or had another shape, .* call ts.prune\(model, 0.0\) first"):
        Rewind(nn.Sequential(nn.Linear(3, 3)))(large)
    with pytest.raises(ValueError, match=r"'1.weight' of shape \(8,\) was not there"):
        Rewind(nn.Sequential(network()[0], nn.ReLU(), *network()[2:]))(large)
    assert all(torch.equal(before[name], tensor) for name, tensor in large.state_dict().items())
