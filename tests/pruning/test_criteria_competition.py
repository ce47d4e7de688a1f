"""Who competes: rows, layers, networks; with sparse layers, patterns, budgets, rounds. What does not fit changes nothing."""

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts
from truesparse.nn.convert import topology_layers
from truesparse.pruning.compete import alike
from truesparse.topology import Topology


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4)).double()


def batches():
    return [torch.randn(20, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)]


@dataclass(frozen=True)
class Given:
    """Scores by the name of the layer."""

    scores_of: dict
    across: str = "layer"

    def scores(self, evidence):
        return self.scores_of[evidence.name]


@pytest.mark.parametrize(
    ("held", "count", "due"),
    [
        ([4, 4, 4], 6, [2, 2, 2]),
        ([4, 4, 4], 7, [3, 2, 2]),
        ([1, 5, 3], 7, [1, 3, 3]),
        ([0, 5, 3], 8, [0, 5, 3]),
        ([1, 5, 3], 1, [1, 0, 0]),
        ([2], 0, [0]),
    ],
)
def test_rows_share_alike(held, count, due):
    assert alike(torch.tensor(held), count).tolist() == due


def test_rows_of_an_uneven_sparse_layer_lose_down_to_the_same_number_and_grow_nothing():
    model = nn.Sequential(nn.Linear(6, 4)).double()
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
    layer = model[0] = ts.SparseLinear.from_dense(model[0], Topology.from_mask(mask))
    values = layer.to_dense().detach()
    ts.prune(model, 1 - 9 / 24, ts.criteria.Wanda(), [torch.randn(9, 6, dtype=torch.float64)])
    kept = layer.topology.mask()
    assert kept.sum(1).tolist() == [4, 2, 0, 3]
    assert not (kept & ~mask).any()
    assert torch.equal(layer.to_dense().detach(), values * kept)


@pytest.mark.parametrize("across", ["network", "normalised"])
def test_sparse_and_dense_layers_compete(across):
    model = two_layers()
    model[0] = ts.SparseLinear.from_dense(model[0], Topology.from_mask(torch.arange(96).view(8, 12) % 2 == 0))
    with torch.no_grad():
        model[2].weight.mul_(10)
    weights = {"0": model[0].to_dense().detach(), "2": model[2].weight.detach().clone()}
    if across == "normalised":
        weights = {name: weight / weight[weight != 0].square().mean().sqrt() for name, weight in weights.items()}
    ts.prune(model, 0.6, across=across)
    layers = topology_layers(model)
    assert sum(layer.topology.nnz for layer in layers.values()) == 128 - int(0.6 * 128)
    kept = torch.cat([weights[name][layer.topology.mask()].abs() for name, layer in layers.items()])
    gone = torch.cat([weights[name][~layer.topology.mask()].abs() for name, layer in layers.items()])
    assert kept.min() > gone.max()


def test_scores_may_be_negative():
    scores = {"0": -torch.rand(8, 12, dtype=torch.float64) - 1, "2": torch.rand(4, 8, dtype=torch.float64) - 2}
    model = two_layers()
    ts.prune(model, 0.5, Given(scores, across="network"))
    layers = topology_layers(model)
    kept = torch.cat([scores[name][layer.topology.mask()] for name, layer in layers.items()])
    gone = torch.cat([scores[name][~layer.topology.mask()] for name, layer in layers.items()])
    assert kept.min() > gone.max()
    assert sum(layer.topology.nnz for layer in layers.values()) == 64


def test_no_layer_loses_its_last_connection_and_it_is_told():
    scores = {"0": torch.rand(8, 12) + 1, "2": torch.rand(4, 8)}
    model = two_layers()
    with pytest.warns(UserWarning, match=r"nearly pruned away.*'2' \(1 of 32\)") as told:
        ts.prune(model, 0.5, Given(scores, across="network"))
    assert told[0].filename == __file__
    best = int(scores["2"].argmax())
    assert model[2].topology.keys.tolist() == [best]


def test_large_units_do_not_win_by_their_size():
    model = nn.Sequential(nn.Linear(100, 4), nn.ReLU(), nn.Linear(4, 4))
    scores = {"0": torch.full((4, 100), 0.5), "2": torch.ones(4, 4)}
    ts.prune(model, 1 - 316 / 416, Given(scores, across="network"), pattern="neurons")
    assert model[2].topology.nnz == 16
    assert model[0].topology.nnz == 300


def test_blocks_of_a_sparse_layer_stay_whole():
    model = ts.sparsify(two_layers(), 0.25, pattern="block:2", generator=torch.Generator().manual_seed(0))
    before = {name: layer.topology for name, layer in topology_layers(model).items()}
    ts.prune(model, 0.6, across="network")
    for name, layer in topology_layers(model).items():
        layer.pattern.check(layer.topology)
        assert before[name].contains(layer.topology.keys).all()


def test_ablated_neurons_of_constant_fan_in_stay_ablated():
    model = nn.Sequential(nn.Linear(8, 4))
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[[0, 2], :6] = True
    model[0] = ts.SparseLinear.from_dense(model[0], Topology.from_mask(mask), pattern=ts.FanIn())
    ts.prune(model, 0.75, "random", generator=torch.Generator().manual_seed(0))
    assert model[0].topology.fan_in.tolist() == [4, 0, 4, 0]


def test_rows_that_share_columns_share_them_afterwards():
    model = two_layers()
    before = {name: layer.weight.detach().clone() for name, layer in (("0", model[0]), ("2", model[2]))}
    ts.prune(model, 0.5, pattern="shared-fan-in:4")
    for name, layer in topology_layers(model).items():
        assert layer.pattern == ts.SharedFanIn(4)
        sums = before[name].abs().view(-1, 4, layer.topology.shape[1]).sum(1)
        weakest = sums.sort(1).values[:, layer.topology.shape[1] // 2, None]
        assert torch.equal(layer.topology.mask(), (sums >= weakest).repeat_interleave(4, 0))
    before = {name: layer.topology for name, layer in topology_layers(model).items()}
    ts.prune(model, 0.75)
    for name, layer in topology_layers(model).items():
        layer.pattern.check(layer.topology)
        assert before[name].contains(layer.topology.keys).all()
    assert model[0].topology.sparsity == 0.75


def test_groups_of_rows_that_are_ablated_stay_ablated():
    model = nn.Sequential(nn.Linear(8, 8))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[[0, 1, 4, 5], :6] = True
    model[0] = ts.SparseLinear.from_dense(model[0], Topology.from_mask(mask), pattern=ts.SharedFanIn(2))
    ts.prune(model, 0.75, "random", generator=torch.Generator().manual_seed(0))
    assert model[0].topology.fan_in.tolist() == [4, 4, 0, 0, 4, 4, 0, 0]
    model[0].pattern.check(model[0].topology)


@pytest.mark.parametrize(
    ("criterion", "arguments"),
    [
        ("wanda", {"pattern": "block:2"}),  # by rows, which blocks are not
        ("wanda", {"pattern": "shared-fan-in:4"}),  # by groups of rows
        ("snip", {"pattern": "nm:2:4"}),  # by the network, where N:M leaves each layer its number
        ("snip", {"budget": "erk"}),
        ("snip", {"sparsity": {"0": 0.5, "2": 0.25}}),
    ],
)
def test_what_a_criterion_prefers_gives_way(criterion, arguments):
    model = two_layers()
    ts.prune(model, **{"sparsity": 0.5, "criterion": criterion, "data": batches(), "loss": lambda y, _: y.square().mean(), **arguments})
    sparsities = [layer.topology.sparsity for layer in topology_layers(model).values()]
    if "sparsity" in arguments:
        assert sparsities == [0.5, 0.25]
    elif "budget" in arguments:
        counts = ts.ERK().counts({"0": (8, 12), "2": (4, 8)}, 0.5)
        assert [layer.topology.nnz for layer in topology_layers(model).values()] == list(counts.values())
    else:
        assert sparsities == [0.5, 0.5]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"across": "network", "budget": "erk"}, "across='network' shares one sparsity among all layers, and so would a budget"),
        ({"across": "normalised", "sparsity": {"*": 0.5}}, "and so would sparsities by name"),
        ({"sparsity": {"*": 0.5}, "budget": "erk"}, "a budget shares one sparsity among the layers"),
        ({"criterion": Given({}, across="rows")}, "across is one of .* got 'rows'"),
        ({"across": "row", "pattern": "shared-fan-in:4"}, "and SharedFanIn.rows=4. decides otherwise: pass across='layer'"),
        ({"across": "network", "pattern": "block:3"}, "layer '0': Block.size=3. needs rows divisible by 3"),
        ({"criterion": "apoz", "data": []}, "layer '0': APoZ says how much a whole neuron"),
    ],
)
def test_what_cannot_be_shared_is_told_before_anything_is_measured(arguments, said):
    with pytest.raises(ValueError, match=said):
        ts.prune(two_layers(), **{"sparsity": 0.5, **arguments})


def test_the_pattern_of_a_sparse_layer_is_asked_for_too():
    model = ts.sparsify(two_layers(), 0.5)
    with pytest.raises(ValueError, match=r"layer '0': APoZ .* got Unstructured"):
        ts.prune(model, 0.75, "apoz", batches(), pattern="neurons")


@pytest.mark.parametrize(
    ("criterion", "said"), [(ts.criteria.Wanda, r"got a class: pass Wanda\(\)"), (3, r"an object with scores\(evidence\), got 3")]
)
def test_what_is_no_criterion_is_told(criterion, said):
    with pytest.raises(TypeError, match=said):
        ts.prune(two_layers(), 0.5, criterion)


class Strange(torch.optim.SGD):
    """An optimizer that keeps what cannot follow, for one of its parameters."""

    def keep_for(self, parameter):
        self.state[parameter]["strange"] = torch.zeros(parameter.numel() + 1)


def test_an_optimizer_that_cannot_follow_the_last_layer_leaves_the_first_as_it_was():
    model = ts.sparsify(two_layers(), 0.25, generator=torch.Generator().manual_seed(0))
    optimizer = Strange(model.parameters(), lr=0.1)
    optimizer.keep_for(model[2].values)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match="strange"):
        ts.prune(model, 0.75, optimizer=optimizer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_connections_that_only_train_keep_their_values():
    """TopKAST has connections that are trained and do not act: their values count, and stay."""
    model = ts.sparsify(two_layers(), 0.25, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rewirer = ts.Rewirer(model, optimizer, ts.TopKAST(), every=1)
    for _ in range(3):
        model(batches()[0]).square().mean().backward()
        if rewirer.step():
            optimizer.step()
    layer = model[0]
    assert layer.acting is not None
    held = layer.topology.scatter(layer.values.detach())
    ts.prune(model, 0.6)
    kept = layer.topology.mask()
    assert torch.equal(layer.topology.scatter(layer.values.detach()), held * kept)
    assert held[kept].abs().min() >= held[(held != 0) & ~kept].abs().max()


def test_a_dict_is_one_batch():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(12, 4)

        def forward(self, x):
            return self.layer(x)

    model = Named().double()
    ts.prune(model, 0.5, "wanda", {"x": batches()[0]})
    assert model.layer.topology.sparsity == 0.5


@dataclass(frozen=True)
class Rounds:
    """Magnitude in rounds, that notes what it has seen."""

    seen: list
    rounds: int = 4
    across: str = "layer"

    def scores(self, evidence):
        present = evidence.weight.numel() if evidence.present is None else int(evidence.present.sum())
        self.seen.append((present, int(evidence.weight.count_nonzero())))
        return evidence.weight.abs()


@pytest.mark.parametrize("across", ["layer", "network", "row"])
def test_rounds_lose_a_constant_share_each(across):
    model, seen = nn.Sequential(nn.Linear(25, 40)), []
    ts.prune(model, 0.9375, Rounds(seen, across=across))
    assert seen == [(1000, 1000), (500, 500), (250, 250), (125, 125)]
    assert model[0].topology.nnz == 63


def test_rounds_are_one_where_the_pattern_fixes_the_count():
    seen = []
    ts.prune(nn.Sequential(nn.Linear(24, 40)), None, Rounds(seen), pattern="nm:2:4")
    assert len(seen) == 1


def test_rounds_of_layers_that_are_sparse_already_begin_where_they_are():
    model, seen = ts.sparsify(nn.Sequential(nn.Linear(25, 40)), 0.6), []
    topology = model[0].topology
    ts.prune(model, 0.9375, Rounds(seen))
    assert seen == [(400, 400), (400, 400), (250, 250), (125, 125)]
    assert topology.contains(model[0].topology.keys).all()


@dataclass(frozen=True)
class Measured:
    """A criterion with a statistic of its own."""

    def norms(self, probe):
        return {name: one.grouped(one.parameter.detach()).norm(dim=2) for name, one in probe.layers.items()}

    @property
    def needs(self):
        return (self.norms,)

    def scores(self, evidence):
        return evidence.weight.abs() / evidence["norms"][:, None]


def test_a_criterion_may_bring_a_statistic_of_its_own_that_wants_no_data():
    model = two_layers()
    rows = {
        name: (model.get_submodule(name).weight.abs() / model.get_submodule(name).weight.norm(dim=1, keepdim=True)).detach()
        for name in ("0", "2")
    }
    ts.prune(model, 0.5, Measured())
    for name, layer in topology_layers(model).items():
        assert rows[name][layer.topology.mask()].min() > rows[name][~layer.topology.mask()].max()


@dataclass(frozen=True)
class Mends:
    """Gives what stays weights of its own."""

    give: object
    needs: ClassVar[tuple] = ()

    def scores(self, evidence):
        return evidence.weight.abs()

    def mend(self, evidence, topology):
        return self.give(evidence.weight, topology)


def test_mended_weights_are_taken_at_the_connections_only():
    model = two_layers()
    ts.prune(model, 0.5, Mends(lambda weight, topology: weight + 7))
    dense = two_layers()
    for name, layer in topology_layers(model).items():
        mask = layer.topology.mask()
        assert torch.equal(layer.to_dense().detach(), (dense.get_submodule(name).weight.detach() + 7) * mask)


@pytest.mark.parametrize("give", [lambda weight, topology: weight * torch.nan, lambda weight, topology: weight[:2]])
def test_mended_weights_that_are_none_are_told(give):
    model = two_layers()
    with pytest.raises(ValueError, match="layer '0': Mends gives weights of shape"):
        ts.prune(model, 0.5, Mends(give))
    assert type(model[0]) is nn.Linear


def test_batches_may_be_seen_in_any_mode_and_gradients_are_not_needed():
    model = two_layers()
    with torch.no_grad():
        ts.prune(model, 0.5, "snip", [(batches()[0], torch.zeros(20, dtype=torch.long))], loss=F.cross_entropy)
    assert model[0].values.requires_grad
