"""prune(..., example=): which neurons go together, who competes, what is told and refused; readers lose the inputs that are gone."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.inference.coupled import coupled
from truesparse.nn.convert import topology_layers


class Sum(nn.Module):
    """a(x) + b(x), read by c."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.c(F.relu(self.a(x) + self.b(x)))


class Normed(nn.Module):
    """A perceptron around a sum that LayerNorm looks at."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.up, self.down, self.last = (
            nn.Linear(4, 6),
            nn.LayerNorm(6),
            nn.Linear(6, 8),
            nn.Linear(8, 6),
            nn.Linear(6, 2),
        )

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.down(F.gelu(self.up(self.norm(x)))))


class Stubborn(nn.Module):
    """Attention whose Python holds the width of its heads."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o, self.up, self.down = *(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x):
        batch, places, width = x.shape
        q, k, v = (one(x).view(batch, places, 4, 2).transpose(1, 2) for one in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, places, width)
        return self.down(F.relu(self.up(self.o(y))))


def made(kind):
    torch.manual_seed(0)
    return kind()


def inputs(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def rows_left(model, name):
    return (model.get_submodule(name).to_dense() != 0).any(1).nonzero().flatten().tolist()


def inputs_left(model, name):
    return (model.get_submodule(name).to_dense() != 0).any(0).nonzero().flatten().tolist()


def test_neurons_that_are_added_are_scored_together_and_go_together():
    model = made(Sum)
    score = torch.cat([model.a.weight, model.b.weight], 1).detach().abs().sum(1)
    best = score.argsort(descending=True)[:4].sort().values.tolist()
    pruned = ts.prune(copy.deepcopy(model), 1 / 3, pattern="neurons", example=inputs(2, 5))
    assert rows_left(pruned, "a") == rows_left(pruned, "b") == inputs_left(pruned, "c") == best
    assert torch.equal(pruned.a.to_dense()[best], model.a.weight[best])
    assert torch.equal(pruned.c.to_dense()[:, best], model.c.weight[:, best])
    found = coupled(model, inputs(2, 5))
    assert torch.equal(found.rows["a"], found.rows["b"])
    assert torch.equal(found.rows["a"], found.inputs["c"])
    assert found.count == 6
    assert found.stays == {"c": "the output of the model"}


def test_families_of_all_layers_compete_by_the_mean_of_their_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight *= 4.0
    means = {name: model[int(name)].weight.detach().abs().mean(1) for name in "02"}
    for across, scores in (
        ("network", means),
        ("normalised", {name: mean / mean.square().mean().sqrt() for name, mean in means.items()}),
    ):
        pruned = ts.prune(copy.deepcopy(model), 0.5, pattern="neurons", example=inputs(2, 4), across=across)
        kept = {name: rows_left(pruned, name) if name in topology_layers(pruned) else list(range(len(scores[name]))) for name in "02"}
        left = torch.cat([scores[name][kept[name]] for name in "02"])
        gone = torch.cat([scores[name][[row for row in range(len(scores[name])) if row not in kept[name]]] for name in "02"])
        ordered = torch.cat([scores[name] for name in "02"]).sort().values
        assert torch.equal(gone.sort().values, ordered[: len(gone)])
        assert left.min() > gone.max()
        cost = sum((len(scores[name]) - len(kept[name])) * model[int(name)].in_features for name in "02")
        assert 36 - 6 < cost <= 36  # of 72 weights; the next neuron would be too many
    assert len(kept["2"]) < 8
    nearly = ts.prune(copy.deepcopy(model), 0.999, pattern="neurons", example=inputs(2, 4), across="network")
    assert len(rows_left(nearly, "0")) >= 1 <= len(rows_left(nearly, "2")), "one of each family stays"


def test_sparsities_by_name():
    model = made(Normed)
    pruned = ts.prune(copy.deepcopy(model), {"up": 0.25}, pattern="neurons", example=inputs(2, 4), exclude=["first", "down"])
    assert len(rows_left(pruned, "up")) == 6
    assert set(topology_layers(pruned)) == {"up", "down"}
    with pytest.raises(ValueError, match=r"'a' and 'b' can only lose neurons together, and sparsity says 0\.2 and 0\.5: name one of them"):
        ts.prune(made(Sum), {"a": 0.2, "b": 0.5}, pattern="neurons", example=inputs(2, 5))
    both = ts.prune(made(Sum), {"a": 0.5}, pattern="neurons", example=inputs(2, 5))
    assert rows_left(both, "a") == rows_left(both, "b")


def test_what_stays_is_told_with_the_reason():
    with pytest.warns(
        UserWarning, match=r"keep all of their neurons: 'first', 'down' \(LayerNorm looks at all of them together\)\. exclude="
    ):
        ts.prune(made(Normed), 0.5, pattern="neurons", example=inputs(2, 4))


def test_who_asks_for_a_layer_that_must_stay_is_refused_with_the_reason():
    for name, reason in (("down", "LayerNorm looks at all of them together"), ("last", "the output of the model")):
        with pytest.raises(ValueError, match=rf"no neuron, channel or head can go of '{name}' \({reason}\)$"):
            ts.prune(made(Normed), {name: 0.5}, pattern="neurons", example=inputs(2, 4))
    with pytest.warns(UserWarning, match=r"keep all of their neurons: 'last' \(the output of the model\)\. exclude="):
        ts.prune(made(Normed), {"up": 0.5, "last": 0.5}, pattern="neurons", example=inputs(2, 4))
    with pytest.raises(ValueError, match=r"can go of 'b' \(it is excluded, or they can only go with those of a layer that is\)$"):
        ts.prune(made(Sum), {"b": 0.5}, pattern="neurons", example=inputs(2, 5), exclude=["a"])


def test_an_excluded_layer_keeps_its_neurons_and_loses_inputs():
    model = ts.prune(made(Sum), 0.5, example=inputs(2, 5), exclude=["c"])
    assert len(inputs_left(model, "c")) == 3
    assert len(rows_left(model, "c")) == 3
    with pytest.raises(ValueError, match="found nothing to prune: no neuron, channel or head can go"):
        ts.prune(made(Sum), 0.5, example=inputs(2, 5), exclude=["a"])


def test_heads_that_the_python_holds_stay_and_are_told():
    model, x = made(Stubborn), inputs(2, 3, 8)
    reason = r"'q', 'k', 'v' \(the Python of the model holds their number, and with fewer its forward raises RuntimeError: shape"
    with pytest.warns(UserWarning, match=reason):
        pruned = ts.prune(copy.deepcopy(model), 0.5, example=x)
    assert set(topology_layers(pruned)) == {"o", "up", "down"}
    small = ts.shrink(pruned, x)
    torch.testing.assert_close(small(x), pruned(x))
    assert (small.q.out_features, small.o.out_features, small.up.out_features) == (8, 4, 3)
    heads = copy.deepcopy(model)
    with torch.no_grad():
        for layer in (heads.q, heads.k, heads.v):
            layer.weight[:2] = layer.bias[:2] = 0.0
        heads.o.weight[:, :2] = 0.0
    with pytest.warns(UserWarning, match=r"the heads or parts of '' stay.*its forward raises RuntimeError: shape.*Let its forward say -1"):
        same = ts.shrink(heads, x)
    torch.testing.assert_close(same(x), heads(x))


def test_what_is_sparse_already_loses_neurons_and_its_optimizer_follows():
    model, x = ts.prune(made(Sum), 0.5, generator=torch.Generator().manual_seed(0)), inputs(4, 5)
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().mean().backward()
    optimizer.step()
    before, moments = model.a.to_dense().detach(), model.a.topology.scatter(optimizer.state[model.a.values]["exp_avg"])
    ts.prune(model, 0.5, example=x, optimizer=optimizer)
    kept = model.a.topology.mask()
    assert kept.any(1).tolist() == model.b.topology.mask().any(1).tolist()
    assert torch.equal(model.a.to_dense()[kept], before[kept])
    assert torch.equal(model.a.topology.scatter(optimizer.state[model.a.values]["exp_avg"])[kept], moments[kept])


def test_a_smaller_network_is_saved_packed_and_of_the_classes_of_the_first(tmp_path):
    model, x = made(Sum), inputs(4, 5)
    small = ts.shrink(ts.prune(copy.deepcopy(model), 0.5, example=x), x)
    assert [(name, type(one)) for name, one in small.named_modules()] == [(name, type(one)) for name, one in model.named_modules()]
    assert small.state_dict().keys() == model.state_dict().keys()
    other = copy.deepcopy(small)
    with torch.no_grad():
        other.a.weight.zero_()
    other.load_state_dict(small.state_dict())
    torch.save(small, tmp_path / "small.pt")
    with torch.inference_mode():
        for one in (other, torch.load(tmp_path / "small.pt", weights_only=False), ts.pack(small, x, tune=False)):
            torch.testing.assert_close(one(x), small(x))


def test_criteria_that_measure():
    model, data = made(Sum), [inputs(16, 5)]
    squares = data[0].square().mean(0)
    score = sum((layer.weight.detach().abs() * squares.sqrt()).sum(1) for layer in (model.a, model.b))
    pruned = ts.prune(model, 0.5, "wanda", data, across="layer", pattern="neurons", example=data[0])
    assert rows_left(pruned, "a") == score.argsort()[3:].sort().values.tolist()


def test_bad_arguments_change_nothing():
    model, x = made(Sum), inputs(2, 5)
    before = copy.deepcopy(model.state_dict())
    for settings, message in (
        ({"pattern": "nm:2:4"}, "an example is for whole neurons: pass pattern='neurons' and no budget, got NM"),
        ({"budget": "erk"}, "and no budget, got Neurons"),
        ({"across": "row"}, "across='row' lets the weights of one output compete"),
        ({"sparsity": {"a": 0.5}, "across": "network"}, "across='network' shares one sparsity among all layers"),
        ({"sparsity": 1.0}, r"lies in \[0, 1\), got 1\.0"),
    ):
        with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
            ts.prune(model, **({"sparsity": 0.5, "example": x} | settings))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(array, before[name]) for name, array in model.state_dict().items())
