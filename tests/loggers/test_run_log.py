"""A run is logged whole, each epoch once, whatever stops it; a log that fails costs nobody the run."""

import json

import pytest
import torch
from oracles import topology_of

import truesparse as ts
from truesparse.loggers.destinations import Destination
from truesparse.loggers.record import change_picture, scalars
from truesparse.loggers.run_log import remembered
from truesparse.metrics import Tracker
from truesparse.runs import RunError
from truesparse.topology.picture import USUAL


def steps(calls, what):
    return [call[1] for call in calls if call[0] == what]


def topology_at(folder, layer, epoch, shape):
    from safetensors.torch import load_file

    arrays = load_file(folder / "sparse" / "topologies" / f"epoch-{epoch:04d}.safetensors")
    return ts.Topology(shape, arrays[f"{layer}.indptr"], arrays[f"{layer}.indices"])


def test_a_whole_run(logged_run, heard, lines, tmp_path):
    kind, place = heard
    outcome, warnings = logged_run(place)
    assert warnings == []
    dense, sparse = kind.made
    assert [logger.subject.variant for logger in kind.made] == ["dense", "sparse"]
    assert sparse.subject.run == "run"
    assert sparse.subject.id != dense.subject.id
    assert sparse.calls[0][0] == "settings"
    chosen = sparse.calls[0][1]
    assert (chosen["sparsity"], chosen["algorithm"], chosen["variant"]) == (0.8, "rigl", "sparse")
    assert chosen["algorithm_settings/fraction"] == 0.3
    assert chosen["machine/threads"] == 1
    for logger in kind.made:
        told = {call[1]: call[2] for call in logger.calls if call[0] == "scalars"}
        assert list(told) == [1, 2, 3]
        for epoch, line in lines(logger.subject.variant).items():
            now = told[epoch]
            for name, logged in (("train_loss", "loss/train"), ("test_loss", "loss/test"), ("test_accuracy", "accuracy/test")):
                assert now[logged] == line[name]
            assert now["flops/training"] == line["flops"]["training"]
            assert now["seconds/training"] == line["seconds"]
            assert now["bytes/total"] == line["bytes"]["total"]
            assert now["gradient_norm/3"] == line["layers"]["3"]["gradient_norm"]
    of_layer = lines()[3]["layers"]["3"]
    assert told[3]["itop_rate/3"] == of_layer["itop_rate"]
    assert told[3]["dropped/3"] == sum(of_layer["changes"]["dropped"]) > 0
    assert told[3]["sparsity/3"] == 1 - of_layer["connections"] / (128 * 64)
    size = {"1": 128 * 64, "3": 128 * 64, "5": 640}
    assert told[3]["model/sparsity"] == pytest.approx(1 - lines()[3]["connections"] / sum(size.values()))
    result = outcome.results.variants[1]
    assert sparse.calls[-2][1]["results/test_loss"] == result.test_loss
    assert sparse.calls[-2][1]["results/bytes/total"] == result.bytes["total"]
    assert sparse.calls[-1] == ("close",)
    fan_in = {call[2]: call[3] for call in sparse.calls if call[0] == "histogram" and call[1] == 3}
    assert sum(fan_in["fan_in/3"].counts) == 64
    assert fan_in["fan_out/1"].counts == tuple(lines()[3]["layers"]["1"]["fan_out"]["counts"])
    images = {(call[1], call[2]): call[3] for call in sparse.calls if call[0] == "image"}
    assert set(images) == {(epoch, f"mask/{layer}") for epoch in range(4) for layer in "135"}
    old, new = (topology_at(tmp_path / "run", "3", epoch, (64, 128)).mask() for epoch in (1, 2))
    red, green, white = (image_is(images[2, "mask/3"], colour) for colour in (USUAL.dropped, USUAL.grown, USUAL.unchanged))
    assert torch.equal(red, old & ~new)
    assert torch.equal(green, new & ~old)
    assert torch.equal(white, new & old)
    assert not any(call[0] == "image" for call in dense.calls)


def image_is(image, colour):
    return (image == torch.tensor(colour, dtype=torch.uint8)).all(-1)


@pytest.mark.parametrize("stop_at", [("dense", 1, 2), ("sparse", 1, 5), ("dense", 2, 1), ("sparse", 3, 4)])
def test_a_resumed_run_goes_on_in_the_same_log(logged_run, heard, lines, stop_at):
    kind, place = heard
    assert logged_run(place, stop_at=stop_at)[0].results is None
    first = list(kind.made)
    assert logged_run(place, again=True)[0].results is not None
    second = kind.made[2:]
    for one, other in zip(first, second, strict=True):
        assert one.subject.id == other.subject.id
        assert other.subject.logged == max([0, *steps(one.calls, "scalars")])
        assert steps(one.calls, "scalars") + steps(other.calls, "scalars") == [1, 2, 3]
        both = one.calls + other.calls
        assert [call[0] for call in both].count("results") == 1
        settings = [place for place, call in enumerate(both) if call[0] == "settings"]
        assert len(settings) == 1
        images = [(call[1], call[2]) for call in both if call[0] == "image"]
        assert len(images) == len(set(images))


def test_a_complete_run_is_not_logged_again(logged_run, heard):
    kind, place = heard
    logged_run(place, epochs=1)
    logged_run(place, again=True)
    assert len(kind.made) == 2


def test_a_log_begun_late_gets_everything(logged_run, heard):
    kind, place = heard
    logged_run(stop_at=("sparse", 2, 3))
    logged_run(place, again=True)
    for logger in kind.made:
        assert logger.calls[0][0] == "settings"
        assert steps(logger.calls, "scalars") == [1, 2, 3]


def test_another_place_gets_everything(logged_run, heard):
    kind, place = heard
    logged_run(place, stop_at=("dense", 3, 1))
    logged_run(Destination("logger", "elsewhere", kind), again=True)
    assert steps(kind.made[-1].calls, "scalars") == [1, 2, 3]


@pytest.mark.parametrize("fails", ["settings", "scalars", "image", "flush", "results", "close"])
def test_a_log_that_fails_is_told_once_and_brought_up_later(logged_run, heard, fails):
    kind, place = heard

    whole = getattr(kind, fails)

    def broken(self, *arguments):
        if fails == "scalars" and arguments[1] != 2:
            return whole(self, *arguments)
        raise OSError("the server is\ngone")

    setattr(kind, fails, broken)
    outcome, warnings = logged_run(place, variants=("sparse",))
    assert outcome.results is not None, "the run is complete"
    assert warnings == ["the logger log of sparse failed: the server is; the run goes on without it, and --resume brings what it lacks"]
    setattr(kind, fails, whole)
    before = steps(kind.made[0].calls, "scalars")
    logged_run(place, again=True)
    later = [step for logger in kind.made[1:] for step in steps(logger.calls, "scalars")]
    if fails in ("scalars", "image"):
        assert before + later == [1, 2, 3]
    assert set(before + later) == {1, 2, 3}


def test_a_log_that_cannot_be_opened(logged_run, tmp_path):
    def refuse(subject):
        raise ConnectionError("no such server")

    with pytest.raises(RunError, match=r"cannot open the log logger there: no such server; mend that, or .* nothing is trained yet"):
        logged_run(Destination("logger", "there", refuse))
    assert not (tmp_path / "run" / "sparse" / "checkpoint.pt").exists()


def test_a_log_that_cannot_be_opened_again(logged_run, heard):
    def refuse(subject):
        raise ConnectionError("no such server")

    logged_run(heard[1], stop_at=("sparse", 2, 3))
    outcome, warnings = logged_run(Destination("logger", "here", refuse), again=True)
    assert outcome.results is not None
    assert len(warnings) == 2
    assert warnings[0] == "cannot open the log logger here: no such server; the run goes on without it"


def test_what_is_remembered(logged_run, heard, tmp_path):
    assert remembered(tmp_path) == {}
    logged_run(heard[1], epochs=1)
    assert remembered(tmp_path / "run") == {"logger": "here"}
    for damage in ("{", "[]", '{"id": 3, "logs": {}}', '{"id": "x", "logs": {"wandb": {}}}'):
        (tmp_path / "run" / "logs.json").write_text(damage)
        with pytest.raises(RunError, match=r"logs\.json is damaged: .*; remove it, and logs begin anew"):
            remembered(tmp_path / "run")


def test_many_epochs_are_drawn_now_and_then(logged_run, heard, tmp_path):
    kind, place = heard
    logged_run(place, epochs=41, batch_size=2000, variants=("sparse",))
    drawn = sorted({call[1] for call in kind.made[0].calls if call[0] == "image"})
    assert drawn == list(range(0, 42, 3))
    assert steps(kind.made[0].calls, "scalars") == list(range(1, 42))
    images = {call[1]: call[3] for call in kind.made[0].calls if call[0] == "image" and call[2] == "mask/3"}
    for epoch in (3, 6, 9):
        before, last, now = (topology_at(tmp_path / "run", "3", number, (64, 128)).mask() for number in (epoch - 3, epoch - 1, epoch))
        assert torch.equal(image_is(images[epoch], USUAL.grown), now & ~before), "what has changed since the last picture"
        assert not torch.equal(before, last)


def test_a_loop_of_ones_own(heard, generator):
    kind, _ = heard
    model = ts.sparsify(torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)), 0.5, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    rewirer = ts.Rewirer(model, optimizer, ts.SET(), every=1, until=100)
    tracker, logger = Tracker(model, rewirer, torch.randn(1, 8)), kind(None)
    for step in range(3):
        model(torch.randn(4, 8)).sum().backward()
        tracker.step(4)
        if rewirer.step():
            optimizer.step()
        ts.loggers.log_model(logger, model, {"train_loss": 2.0, "mine": 3, **tracker.report()}, step)
    told = logger.calls[-1][2]
    assert (told["loss/train"], told["model/mine"]) == (2.0, 3.0)
    assert told["sparsity/0"] == model[0].topology.sparsity
    assert steps(logger.calls, "scalars") == [0, 1, 2]
    image = [call[3] for call in logger.calls if call[0] == "image" and call[2] == "mask/0"][-1]
    assert torch.equal(image_is(image, (255, 255, 255)), model[0].topology.mask())


def test_pictures_and_numbers_of_a_change():
    old, new = topology_of("xx.. ...x"), topology_of("x.x. ...x")
    assert change_picture(old, new)[0].tolist() == [[255] * 3, list(USUAL.dropped), list(USUAL.grown), [0] * 3]
    assert scalars({"train_loss": None, "variant": "x", "epoch": 3, "layers": {}}, {}) == {}
    json.dumps(scalars({"test_loss": float("nan")}, {}))


def test_the_numbers_of_a_report():
    """Layers of 20 and 60 positions; the second has no topology of its own to follow."""
    first = {
        "connections": 5,
        "itop_rate": 0.5,
        "changes": {"dropped": [1, 2], "grown": [2, 3], "jaccard": [0.25, 0.5]},
        "survival": {"first": 0.75, "last": 0.1},
        "age": {"steps": [1, 2, 30, 40, 50]},
        "dead_outputs": 2,
        "dead_inputs": 0,
        "gradient_norm": 1.5,
        "flops": 1000,
    }
    second = {"connections": 30, "itop_rate": 0.9, "changes": {"dropped": [], "grown": [], "jaccard": []}, "age": {"steps": []}}
    report = {
        "epoch": 3,
        "variant": "sparse",
        "seconds": 2,
        "bytes": {"total": 7},
        "layers": {"a": first, "": second, "dense": {"flops": 9}},
    }
    assert scalars(report, {"a": 20, "": 60}) == {
        "seconds/training": 2.0,
        "bytes/total": 7.0,
        "connections/a": 5.0,
        "itop_rate/a": 0.5,
        "dropped/a": 3.0,
        "grown/a": 5.0,
        "mask_distance/a": 0.375,
        "survival/a": 0.75,
        "median_age/a": 30.0,
        "dead_outputs/a": 2.0,
        "dead_inputs/a": 0.0,
        "gradient_norm/a": 1.5,
        "flops/a": 1000.0,
        "sparsity/a": 0.75,
        "connections/model": 30.0,
        "itop_rate/model": 0.9,
        "dropped/model": 0.0,
        "grown/model": 0.0,
        "sparsity/model": 0.5,
        "flops/dense": 9.0,
        "model/sparsity": 1 - 35 / 80,
        "model/itop_rate": (0.5 * 20 + 0.9 * 60) / 80,
    }
