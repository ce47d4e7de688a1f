"""prune(): what goes is what matters least, of dense layers and of sparse ones; on any error the model is as it was."""

import copy

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.nn.convert import topology_layers


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 20), nn.ReLU(), nn.Linear(20, 4))


def images():
    return torch.randn(12, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def test_magnitude_keeps_the_largest_of_each_layer_with_their_values():
    dense = network()
    sparse = ts.prune(copy.deepcopy(dense), 0.75)
    for name, layer in topology_layers(sparse).items():
        weight = dense.get_submodule(name).weight.detach()
        kept = layer.to_dense().detach() != 0
        assert int(kept.sum()) == weight.numel() - int(0.75 * weight.numel())
        assert torch.equal(layer.to_dense()[kept], weight[kept])
        assert weight[kept].abs().min() >= weight[~kept].abs().max()


def test_what_is_sparse_already_loses_more_and_its_optimizer_follows():
    model = ts.prune(network(), 0.5)
    optimizer = torch.optim.Adam(model.parameters())
    model(images()).square().mean().backward()
    optimizer.step()
    layer = topology_layers(model)["3"]
    before, moments = layer.to_dense().detach(), layer.topology.scatter(optimizer.state[layer.values]["exp_avg"])
    ts.prune(model, 0.9, optimizer=optimizer)
    assert layer is topology_layers(model)["3"]
    kept = layer.topology.mask()
    assert torch.equal(layer.to_dense()[kept], before[kept])
    assert torch.equal(layer.topology.scatter(optimizer.state[layer.values]["exp_avg"])[kept], moments[kept])
    assert layer.topology.sparsity == pytest.approx(0.9, abs=0.001)


@pytest.mark.parametrize("across", ["network", "normalised"])
def test_all_layers_compete(across):
    dense = network()
    sparse = ts.prune(copy.deepcopy(dense), 0.8, across=across)
    layers = topology_layers(sparse)
    total = sum(layer.topology.size for layer in layers.values())
    assert sum(layer.topology.nnz for layer in layers.values()) == total - int(0.8 * total)
    scores = {name: dense.get_submodule(name).weight.detach().abs().flatten(1) for name in layers}
    if across == "normalised":
        scores = {name: score / score.square().mean().sqrt() for name, score in scores.items()}
    kept = torch.cat([scores[name][layer.topology.mask()] for name, layer in layers.items()])
    gone = torch.cat([scores[name][~layer.topology.mask()] for name, layer in layers.items()])
    assert kept.min() >= gone.max()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sparsity": 1.0}, r"lies in \[0, 1\), got 1.0"),
        ({"sparsity": {"7": 0.5}}, "sparsity names '7', which matches no layer; there are: 0, 3, 5"),
        ({"sparsity": None}, "sparsity=None is for patterns that fix it"),
        ({"criterion": "biggest"}, "unknown criterion 'biggest'; known: "),
        ({"criterion": "wanda"}, "looks at input squares: pass data=batches"),
        ({"criterion": "wanda", "data": [images().mul(float("nan"))]}, "layer '0': input squares on this data is not finite"),
        ({"pattern": "nm:2:5"}, "layer '0': NM.*needs input channels.*divisible by 5"),
        ({"across": "rows"}, "across is one of 'row', 'layer', 'network', 'normalised', got 'rows'"),
        ({"across": "row", "pattern": "block:2"}, "across='row'"),
        ({"exclude": ["*"]}, "found nothing to prune"),
    ],
)
def test_bad_input_is_told_and_changes_nothing(arguments, said):
    model = network()
    modules, before = list(model.modules()), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=said):
        ts.prune(model, **{"sparsity": 0.5, **arguments})
    assert list(model.modules()) == modules
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_layer_that_no_data_reaches_is_named():
    model = network()
    with pytest.raises(ValueError, match="no data reached '5'"):
        ts.prune(model, 0.5, "wanda", data=[images()], forward=lambda model, x: model[:5](x))


@pytest.mark.parametrize("held", ["linear", "attention"])
def test_an_optimizer_of_dense_layers_is_refused_for_it_would_train_what_is_gone(held):
    model = network() if held == "linear" else nn.TransformerEncoderLayer(8, 2, 8)
    optimizer = torch.optim.Adam(model.parameters() if held == "linear" else model.self_attn.parameters())
    modules = list(model.modules())
    with pytest.raises(ValueError, match=r"the optimizer holds weights of dense layers \('.*'\), and .*build it after prune\(\), or make"):
        ts.prune(model, 0.5, optimizer=optimizer)
    assert list(model.modules()) == modules


@pytest.mark.parametrize("exclude", [[], [nn.MultiheadAttention]])
def test_layers_are_heard_where_torch_would_run_past_them(exclude):
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True), 2).eval()
    hidden = torch.tensor([[False] * 5, [False] * 2 + [True] * 3])
    pruned = ts.prune(
        encoder, 0.5, "wanda", [torch.randn(2, 5, 8)], forward=lambda model, x: model(x, src_key_padding_mask=hidden), exclude=exclude
    )
    assert len(topology_layers(pruned)) == (4 if exclude else 12)
    assert torch.backends.mha.get_fastpath_enabled()
