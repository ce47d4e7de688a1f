"""The tracker says of a training what one would count by hand, and goes on from its state."""

import json
from itertools import pairwise

import pytest
import torch
from oracles import pairs_of, topology_of
from torch import nn
from training import Spy, backward, topologies, two_layers

import truesparse as ts
from truesparse.metrics import Tracker, gradient_norms, live_bytes
from truesparse.nn import SparseLinear


def one_layer(*drawings, every=1, steps_between=1):
    """A layer whose rewirings go through the drawings; its tracker."""
    first, *others = map(topology_of, drawings)
    layer = SparseLinear.from_dense(nn.Linear(first.shape[1], first.shape[0]), first)
    waiting = iter(others)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    rewirer = ts.Rewirer(nn.Sequential(layer), optimizer, Spy(lambda topology, signals: next(waiting)), every=steps_between)
    tracker = Tracker(nn.Sequential(layer), rewirer, every=every)
    return layer, rewirer, tracker


def run(layer, rewirer, steps):
    for _ in range(steps):
        rewirer.optimizer.zero_grad()
        layer(torch.ones(2, layer.in_features)).sum().backward()
        if rewirer.step():
            rewirer.optimizer.step()


DRAWINGS = ("xx.. x...", "x.x. x...", ".xx. ...x", "..xx ...x")


def test_a_report_one_can_check_by_eye():
    layer, rewirer, tracker = one_layer(*DRAWINGS, steps_between=2, every=1)
    run(layer, rewirer, 7)  # rewires at 2, 4, 6
    line = tracker.report(gradient_norms(tracker.model))["layers"]["0"]
    assert line["connections"] == 3
    assert line["itop_rate"] == 0.75
    assert line["changes"] == {
        "rewirings": 1,
        "dropped": [1, 2, 1],
        "grown": [1, 2, 1],
        "hamming": [0.25, 0.5, 0.25],
        "jaccard": [0.5, 0.8, 0.5],
    }
    assert line["survival"] == {"rewirings": 1, "first": 0.0, "grown": [1.0, 0.5, 1.0]}
    # Ages: (0, 2) since rewiring 1 at step 2, (1, 3) since rewiring 2 at step 4, (0, 3) since rewiring 3 at step 6.
    assert line["age"] == {"rewirings": [0, 0, 1, 2, 2], "steps": [1, 1, 3, 5, 5]}
    assert (line["dead_outputs"], line["dead_inputs"]) == (0, 2)
    assert line["fan_in"] == {"quantiles": (1, 1, 1, 2, 2), "width": 1, "counts": (0, 1, 1)}
    assert line["fan_out"]["counts"] == (2, 1, 1)
    assert line["gradient_norm"] == pytest.approx(2 * 3**0.5)  # two samples of ones
    assert json.loads(json.dumps(line)) is not None
    assert tracker.report()["layers"]["0"]["changes"]["dropped"] == [], "changes are those since the last report"


def test_looks_taken_together_count_changes_and_average_distances():
    """Of four connections in eight places, one moves at an odd rewiring, two at an even one: distances 1/4 and 1/2."""
    drawings = ["xxxx...."]
    for number in range(66):  # more than twice as many looks as a report tells apart, so that it takes three together
        row = list(drawings[-1])
        gone, come = ([at for at, mark in enumerate(row) if mark == what][: 1 + number % 2] for what in "x.")
        for at in (*gone, *come):
            row[at] = "." if row[at] == "x" else "x"
        drawings.append("".join(row))
    layer, rewirer, tracker = one_layer(*drawings)
    run(layer, rewirer, 66)
    changes = tracker.report()["layers"]["0"]["changes"]
    assert changes["rewirings"] == 3
    moved = [1 + number % 2 for number in range(66)]
    assert changes["grown"] == changes["dropped"] == [sum(moved[start : start + 3]) for start in range(0, 66, 3)]
    expected = [sum(one / 4 for one in moved[start : start + 3]) / 3 for start in range(0, 66, 3)]
    assert changes["hamming"] == pytest.approx(expected, rel=1e-5)
    distances = [2 * one / (4 + one) for one in moved]  # of what either has, the share that only one has
    assert changes["jaccard"] == pytest.approx([sum(distances[start : start + 3]) / 3 for start in range(0, 66, 3)], rel=1e-5)


def test_looking_at_some_rewirings_only():
    layer, rewirer, tracker = one_layer(*DRAWINGS, every=2)
    run(layer, rewirer, 3)
    line = tracker.report()["layers"]["0"]  # looked after the second rewiring, and for the report
    assert line["changes"]["rewirings"] == 2
    assert line["changes"]["dropped"] == [2, 1]
    assert line["changes"]["grown"] == [2, 1]
    assert line["itop_rate"] == 0.75
    assert line["age"]["rewirings"] == [0, 0, 1, 1, 1]
    assert torch.equal(tracker.lineage("0").born, torch.tensor([1, 2, 1]))


@pytest.mark.parametrize(("steps_between", "every"), [(1, 25), (10, 3), (25, 1), (100, 1)])
def test_it_does_not_look_all_the_time(steps_between, every):
    assert one_layer(*DRAWINGS, every=None, steps_between=steps_between)[2].every == every


def test_many_changes_are_taken_together():
    flip = ("x.", ".x")
    layer, rewirer, tracker = one_layer(*(flip[number % 2] for number in range(101)))
    tracker.every = 1
    run(layer, rewirer, 100)
    line = tracker.report()["layers"]["0"]
    assert line["changes"]["rewirings"] == 4
    assert line["changes"]["dropped"] == [4] * 25
    assert line["survival"] == {"rewirings": 4, "first": 0.0, "grown": [0.0] * 24 + [0.25]}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("algorithm", [ts.SET(), ts.RigL()])
def test_a_tracker_goes_on_from_its_state(every, algorithm, tmp_path):
    def made():
        model = two_layers()
        rewirer = ts.Rewirer(model, torch.optim.SGD(model.parameters(), lr=0.1), algorithm, every=2, generator=torch.Generator())
        return model, rewirer

    def train(model, rewirer, tracker, steps):
        for step in steps:
            rewirer.optimizer.zero_grad()
            backward(model, step)
            tracker.step(6)
            if rewirer.step():
                rewirer.optimizer.step()

    model, rewirer = made()
    whole = Tracker(model, rewirer, torch.zeros(1, 8, dtype=torch.float64), every=every)
    train(model, rewirer, whole, range(5))  # two rewirings: in the middle between two looks of every third
    saved = {"model": model.state_dict(), "rewirer": rewirer.state_dict(), "tracker": whole.state_dict()}
    torch.save(saved, tmp_path / "state.pt")
    train(model, rewirer, whole, range(5, 20))

    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    again, other = made()
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["rewirer"])
    resumed = Tracker(again, other, torch.zeros(1, 8, dtype=torch.float64), every=every)
    resumed.load_state_dict(saved["tracker"])
    train(again, other, resumed, range(5, 20))
    assert resumed.report() == whole.report()
    for name in topologies(model):
        assert torch.equal(resumed.lineage(name).born, whole.lineage(name).born)
        assert torch.equal(resumed.explored(name).keys, whole.explored(name).keys)


def test_what_is_seen_agrees_with_the_topologies():
    """Every topology of a run, noted whole, against what the tracker kept."""
    model = two_layers()
    rewirer = ts.Rewirer(model, torch.optim.SGD(model.parameters(), lr=0.1), ts.SET(0.4), every=1)
    tracker = Tracker(model, rewirer, every=1)
    masks = {name: [pairs_of(topology)] for name, topology in topologies(model).items()}
    rewirer.register_hook(lambda moves: [masks[name].append(pairs_of(move.new)) for name, move in moves.items()])
    for step in range(6):
        backward(model, step)
        if rewirer.step():
            rewirer.optimizer.step()
    line = tracker.report()["layers"]
    for name, seen in masks.items():
        size = topologies(model)[name].size
        assert tracker.explored(name).rate == len(set().union(*seen)) / size
        distances = [len(old ^ new) / size for old, new in pairwise(seen)]
        assert line[name]["changes"]["hamming"] == pytest.approx(distances, rel=1e-5)


def test_a_layer_changed_behind_its_back():
    layer, rewirer, tracker = one_layer("xx..", "x...", "xxx.")
    tracker.every = 1
    run(layer, rewirer, 1)
    ts.rewire(layer, rewirer.optimizer, topology_of("xxxx"))
    with pytest.raises(RuntimeError, match="layer '0' had 1 connections after the last rewiring and 4 before this one: something else"):
        run(layer, rewirer, 1)
    with pytest.raises(ValueError, match=r"expected the state of layers with \{'0': 3\} connections, got \{'0': 1\}: load the model's own"):
        tracker.load_state_dict(tracker.state_dict())


def test_old_topologies_leave_memory():
    layer, rewirer, tracker = one_layer(*DRAWINGS)
    for steps in (0, 1):
        run(layer, rewirer, steps)
        layer(torch.ones(1, 4))
        assert layer.topology._derived
        assert not tracker._seen["0"]._derived


def test_frozen_layers_and_detached_trackers():
    model = two_layers()
    model[0].parameter.requires_grad_(False)
    rewirer = ts.Rewirer(model, torch.optim.SGD(model.parameters(), lr=0.1), ts.SET(), every=1)
    tracker = Tracker(model, rewirer, every=1)
    for step in range(2):
        backward(model, step)
        if rewirer.step():
            rewirer.optimizer.step()
        tracker.detach()
    line = tracker.report()["layers"]
    assert line["0"]["changes"]["grown"] == [0]
    assert line["0"]["age"]["rewirings"] == [1] * 5
    assert len(line["2"]["changes"]["grown"]) == 1


def test_gradient_norms_are_those_of_the_connections():
    sparse, masked = two_layers(), two_layers(masked=True)
    for model in (sparse, masked):
        backward(model)
    found = gradient_norms(sparse)
    assert found == pytest.approx(gradient_norms(masked))
    for name, layer in (("0", masked[0]), ("2", masked[2])):
        assert found[name] == pytest.approx((layer.weight.grad * layer.mask).pow(2).sum().sqrt().item())
    assert gradient_norms(nn.Linear(2, 2)) == {"": 0.0}


def test_bytes_of_a_model_without_sparse_layers():
    model = nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert live_bytes(model, optimizer) == {"weights": 64, "gradients": 0, "optimizer": 0, "topology": 0}


def test_bytes_of_a_topology_are_its_arrays_and_the_plans_that_kernels_made():
    layer = SparseLinear(24, 16, sparsity=0.75)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    arrays = 4 * (layer.topology.indptr.numel() + layer.topology.indices.numel() + 1)  # and the fingerprint
    before = live_bytes(layer, optimizer)["topology"]
    assert before == arrays + layer.plan_nbytes()
    layer(torch.randn(3, 24, requires_grad=True)).sum().backward()
    assert layer.plan_nbytes() > before - arrays, "a backward pass looks at columns, for which it makes a plan"
    assert live_bytes(layer, optimizer)["topology"] == arrays + layer.plan_nbytes()
