"""`truesparse train` on a device: one seed is one topology there and on the CPU, a step waits for nothing, a run goes on on the other."""

import functools
import itertools
import json
import os
import signal

import pytest
import safetensors.torch
import torch

from truesparse.ops import table
from truesparse.runs import Observers, RunError, load_recipe, make_config, measure, resume, start, trainer

pytest.importorskip("triton", reason="the extra gpu is not installed")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("make test runs these in a process of its own, with TRITON_INTERPRET=1", allow_module_level=True)

from pretended import NAME, PretendedDevice, table_of

with PretendedDevice():
    pass  # before any backward pass in this process: torch makes its queues for the devices that there are then

RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"epochs": 2, "batch_size": 16, "every": 3, "until": 0.8, "learning_rate": 3e-3, "sparsity": 0.6, "threads": 1}


def model():
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


def data():
    x, teacher = torch.randn(96, 8), torch.randn(8, 3)
    y = (x @ teacher).argmax(1)
    return TensorDataset(x[:80], y[:80]), TensorDataset(x[80:], y[80:])
"""
AUGMENT = """
def augment(inputs, generator):
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
"""
ITEMS = """
whole = data

def data():
    return tuple([one[number] for number in range(len(one))] for one in whole())
"""
DROPOUT = "\nplain = model\n\ndef model():\n    return nn.Sequential(plain(), nn.Dropout(0.0))\n"


class Heard:
    """Hears a run: what had been waited for after each step. Sends this process a signal after a step of its choice."""

    def __init__(self, device=None, stop_at=None):
        self.device, self.stop_at, self.marks, self.losses = device, stop_at, [], []

    def begin(self, plan):
        pass

    def step(self, report):
        self.losses.append(report.loss)
        if self.device is not None:
            self.marks.append(len(self.device.waits))
        if self.stop_at == (report.epoch, report.step):
            os.kill(os.getpid(), signal.SIGINT)

    def epoch(self, metrics):
        pass


@pytest.fixture(autouse=True)
def _once(monkeypatch):
    """What is timed at the end of a run is called once or twice: the interpreter takes milliseconds for a neuron."""
    monkeypatch.setattr(measure, "MOST_ROUNDS", 1)
    monkeypatch.setattr(measure, "LEAST_ROUNDS", 1)
    monkeypatch.setattr(trainer, "inference_seconds", functools.partial(measure.inference_seconds, rounds=1))


@pytest.fixture
def recipe(tmp_path):
    def recipe(*more):
        path = tmp_path / "mine.py"
        path.write_text("".join((RECIPE, *more)))
        return load_recipe(str(path))

    return recipe


def run(recipe, out, heard=None, **chosen):
    return start(make_config(recipe.task, recipe.settings, chosen), recipe, out, heard or Observers(()))


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def topologies(out):
    return {
        str(path.relative_to(out)): {name: array.tolist() for name, array in safetensors.torch.load_file(path).items()}
        for path in sorted(out.rglob("epoch-*.safetensors"))
    }


def alike(out, other):
    """The topologies are the same, and what was measured is but for rounding."""
    assert topologies(out) == topologies(other)
    for here, there in zip(lines(out), lines(other), strict=True):
        assert here["test_accuracy"] == there["test_accuracy"]
        for name in ("train_loss", "test_loss"):
            assert here[name] == pytest.approx(there[name], rel=1e-4)


@pytest.mark.parametrize("algorithm", ["rigl", "set"])
def test_one_seed_is_one_topology_on_both(recipe, tmp_path, algorithm):
    of = recipe(DROPOUT)
    variants = ("dense", "masked", "sparse")
    on_cpu = run(of, tmp_path / "cpu", variants=variants, algorithm=algorithm)
    with PretendedDevice():
        on_device = run(of, tmp_path / "device", variants=variants, algorithm=algorithm, device=NAME)
    alike(tmp_path / "cpu", tmp_path / "device")
    assert len(topologies(tmp_path / "cpu")) == 2 * (3 + 2)  # begun with, and after two epochs; what changed in each of them
    assert {line["device"] for line in lines(tmp_path / "device")} == {NAME}
    assert (on_cpu.results.machine["device"], on_device.results.machine["device"]) == ("cpu", NAME)
    assert on_device.results.machine["kernels"] == "triton"
    config = json.loads((tmp_path / "device" / "config.json").read_text())
    assert (config["device"], config["machine"]["device"]) == (NAME, NAME)


def test_a_step_waits_for_nothing(recipe, tmp_path, monkeypatch):
    """But one that rewires, those beside it, where gradients are recorded and kernels make their plans, and those that read losses."""
    monkeypatch.setattr("truesparse.runs.variant.STEPS_BETWEEN_READS", 7)
    with PretendedDevice() as device:
        heard = Heard(device)
        run(recipe(), tmp_path / "run", heard, epochs=1, batch_size=4, every=9, device=NAME)
        between = [after - before for before, after in itertools.pairwise(heard.marks)]
        assert len(between) == 19
        steps = dict(enumerate(between, 2))  # the first, which also reads, comes before
        beside = {rewiring + offset for rewiring in (9, 18) for offset in (-1, 0, 1)}
        reading = {8, 15, 20}
        waiting = {step for step, count in steps.items() if count}
        assert waiting <= beside | reading, table_of(device.waits[heard.marks[0] : heard.marks[6]])
        assert steps[15] == 1, "losses are read together"
    assert len(set(heard.losses)) == 4  # of steps 1, 8, 15 and the last


@pytest.mark.parametrize("more", [(AUGMENT,), (ITEMS,), (ITEMS, AUGMENT)], ids=["augmented", "items", "items, augmented"])
def test_batches_that_are_made_on_the_cpu(recipe, tmp_path, more):
    of = recipe(*more)
    run(of, tmp_path / "cpu", epochs=1)
    with PretendedDevice():
        run(of, tmp_path / "device", epochs=1, device=NAME)
    alike(tmp_path / "cpu", tmp_path / "device")


OPTIONS = {"optimizer": "adamw", "weight_decay": 0.01, "decay_grace": 2, "ema": 0.9, "activation_l2": 1e-3, "clip": 1.0, "warmup": 0.5}


@pytest.mark.parametrize(("first", "then"), [(NAME, "cpu"), ("cpu", NAME), (NAME, NAME)])
@pytest.mark.parametrize(("algorithm", "every"), [("rigl", 3), ("snfs", 5)])
def test_a_run_goes_on_elsewhere(recipe, tmp_path, monkeypatch, first, then, algorithm, every):
    """Stopped in an epoch, with everything that keeps a state; SNFS also keeps gradients of the steps before."""
    of, chosen = recipe(), {**OPTIONS, "algorithm": algorithm, "every": every}

    def within(name, call):
        if name == "cpu":
            with monkeypatch.context() as known:
                known.setitem(table.FAMILY_OF_DEVICE, NAME, "triton")  # as "cuda" is where there is no GPU
                return call()
        with PretendedDevice():
            return call()

    within(then, lambda: run(of, tmp_path / "whole", device=then, **chosen))
    stopped = within(first, lambda: run(of, tmp_path / "parts", Heard(stop_at=(1, 4)), device=first, **chosen))
    assert stopped.stopped_by == "SIGINT"
    checkpoint = torch.load(tmp_path / "parts" / "sparse" / "checkpoint.pt", weights_only=True)
    found = torch.utils._pytree.tree_leaves(checkpoint)
    assert {one.device.type for one in found if isinstance(one, torch.Tensor)} == {"cpu"}
    asked = {"device": then} if then != first else {}
    ended = within(then, lambda: resume(tmp_path / "parts", asked, Observers(())))
    assert ended.results.machine["device"] == then
    alike(tmp_path / "whole", tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "config.json").read_text())["device"] == then


def test_a_loss_that_is_no_number_is_told_by_its_step(recipe, tmp_path):
    """Those of steps 2 to 5 are read together; the rehearsal has computed two."""
    loss = "\nseen = []\n\ndef loss(outputs, targets):\n    seen.append(1)\n    return nn.functional.cross_entropy(outputs, targets)"
    of = recipe(loss + " * (float('nan') if len(seen) == 5 else 1)\n")
    with PretendedDevice(), pytest.raises(RunError, match=r"the loss of sparse is nan in epoch 1, step 3: try a lower --lr"):
        run(of, tmp_path / "run", device=NAME)
