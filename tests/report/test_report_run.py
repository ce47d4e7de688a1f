"""A run folder is read as it is: measures are held against sets of positions, counted by hand from the files."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import topology_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from truesparse.report import RunLayer, Stage, evolution, input_heat, read_run
from truesparse.report.content import page_content
from truesparse.runs import RunError
from truesparse.topology import Topology
from truesparse.topology.geometry import Convolution, Matrix

DIGITS = {"1": (128, 64), "3": (64, 128), "5": (10, 64)}


def masks(path, variant, layer, columns):
    """(step, set of positions) at the beginning and after each update, from the files alone."""
    start = load_file(path / variant / "topologies" / "epoch-0000.safetensors")
    rows = np.repeat(np.arange(len(start[f"{layer}.indptr"]) - 1), np.diff(start[f"{layer}.indptr"]))
    now = set((rows * columns + start[f"{layer}.indices"]).tolist())
    found = [(0, now)]
    for file in sorted((path / variant / "updates").iterdir()):
        arrays = load_file(file)
        at = {"dropped": 0, "grown": 0}
        for place, step in enumerate(arrays["steps"].tolist()):
            keys = {}
            for kind in at:
                count = int(arrays[f"{layer}.{kind}_counts"][place])
                keys[kind] = set(np.cumsum(arrays[f"{layer}.{kind}"][at[kind] : at[kind] + count], dtype=np.int64).tolist())
                at[kind] += count
            now = (now - keys["dropped"]) | keys["grown"]
            found.append((step, now))
    return found


def test_what_a_run_says(digits):
    run = read_run(digits)
    assert (run.name, run.recipe, run.variants) == ("digits", "digits-mlp", ("dense", "masked", "sparse"))
    assert (run.steps, run.sample, run.has_updates, run.notes) == (45, (1, 8, 8), True, ())
    assert run.config["sparsity"] == 0.9
    assert "machine" not in run.config
    assert run.machine["threads"] == 1
    assert {name: layer.shape for name, layer in run.layers.items()} == DIGITS
    assert [layer.sees_sample for layer in run.layers.values()] == [True, False, False]
    assert sum(layer.budget for layer in run.layers.values()) == run.results["sparse"]["connections"]
    assert [len(run.metrics[variant]) for variant in run.variants] == [3, 3, 3]
    assert run.metrics["sparse"][2]["epoch"] == 3
    assert run.sparse_variant == "sparse"


@pytest.mark.parametrize("variant", ["masked", "sparse"])
@pytest.mark.parametrize("layer", DIGITS)
def test_topologies_of_each_update(digits, variant, layer):
    stages = read_run(digits).topologies(variant, layer)
    by_hand = masks(digits, variant, layer, DIGITS[layer][1])
    assert [stage.step for stage in stages] == [step for step, _ in by_hand]
    assert [stage.step for stage in stages] == [0, *range(10, 101, 10)]  # until step 0.75 x 135
    before = by_hand[0][1]
    for stage, (_, mask) in zip(stages, by_hand, strict=True):
        assert set(stage.topology.keys.tolist()) == mask
        assert (set(stage.dropped.tolist()), set(stage.grown.tolist())) == (before - mask, mask - before)
        before = mask
    last = load_file(digits / variant / "topologies" / "epoch-0003.safetensors")
    assert np.array_equal(stages[-1].topology.indices.numpy(), last[f"{layer}.indices"])


def test_measures_are_those_of_the_sets(digits):
    run = read_run(digits)
    for layer, (rows, columns) in DIGITS.items():
        by_hand = masks(digits, "sparse", layer, columns)
        found = evolution(run.layers[layer].geometry, run.stages("sparse", layer))
        ever, born = set(), {}
        for place, (step, mask) in enumerate(by_hand):
            before = by_hand[max(place - 1, 0)][1]
            ever |= mask
            born = {key: born.get(key, place) for key in mask}
            assert (found.steps[place], found.connections[place]) == (step, len(mask))
            assert (found.dropped[place], found.grown[place]) == (len(before - mask), len(mask - before))
            assert found.hamming[place] == pytest.approx(len(before ^ mask) / (rows * columns))
            assert found.jaccard[place] == pytest.approx(len(before ^ mask) / len(before | mask))
            assert found.itop[place] == pytest.approx(len(ever) / (rows * columns))
            assert found.alive[place].tolist() == [list(born.values()).count(stage) for stage in range(len(by_hand))]
            fan_in = np.bincount([key // columns for key in mask], minlength=rows)
            fan_out = np.bincount([key % columns for key in mask], minlength=columns)
            assert found.fan_in[place].tolist() == np.bincount(fan_in).tolist()
            assert found.fan_out[place].tolist() == np.bincount(fan_out).tolist()
            assert (found.dead_outputs[place], found.dead_inputs[place]) == ((fan_in == 0).sum(), (fan_out == 0).sum())
        first = by_hand[0][1]
        always = first.intersection(*(mask for _, mask in by_hand))
        assert found.survival[-1] <= 1
        assert found.survival[-1] == pytest.approx(found.alive[-1, 0].item() / len(first))
        grouped = evolution(run.layers[layer].geometry, run.stages("sparse", layer), (0, 1, 4, 9))
        assert grouped.alive.tolist() == [[sum(row[a:b]) for a, b in ((0, 1), (1, 4), (4, 9), (9, 11))] for row in found.alive.tolist()]
        assert (grouped.survival, grouped.ages) == (found.survival, found.ages)
        assert always == {key for key, place in born.items() if place == 0}
        last = by_hand[-1][0]
        assert sum(found.ages.values()) == len(by_hand[-1][1])
        assert found.ages[last] == len(always)


def test_the_measures_are_those_of_the_metrics(tmp_path, train):
    """What a Tracker saw while training, the folder says afterwards: both see each rewiring if they are far enough apart."""
    run = read_run(train("digits-mlp", tmp_path / "run", epochs=2, sparsity=0.9, every=25))
    for layer in DIGITS:
        line = run.metrics["sparse"][-1]["layers"][layer]
        found = evolution(run.layers[layer].geometry, run.stages("sparse", layer))
        assert line["itop_rate"] == pytest.approx(found.itop[-1], rel=1e-5)
        assert line["dead_outputs"] == found.dead_outputs[-1]
        assert line["dead_inputs"] == found.dead_inputs[-1]


def test_convolutions(convolution):
    run = read_run(convolution)
    layer = run.layers["0"]
    assert layer.geometry == Convolution(1, 6, (3, 3), padding=(1, 1))
    found = evolution(layer.geometry, run.stages("sparse", "0"))
    assert [int(counts.sum()) for counts in found.fan_out] == [1] * len(found.steps), "one input channel"
    heat = input_heat(layer, run.topologies("sparse", "0")[0].topology, run.sample)
    assert heat.shape == (1, 8, 8)
    assert run.recipe == "tiny"


def heat_by_hand(geometry, topology, sample):
    heat = np.zeros(sample, dtype=int)
    out_height, out_width = geometry.output_size(sample[1:])
    inputs, (kernel_height, kernel_width) = geometry.in_channels // geometry.groups, geometry.kernel
    for key in topology.keys.tolist():
        row, column = divmod(key, topology.shape[1])
        channel = row // (geometry.out_channels // geometry.groups) * inputs + column // (kernel_height * kernel_width)
        down, across = divmod(column % (kernel_height * kernel_width), kernel_width)
        for y in range(out_height):
            for x in range(out_width):
                at_y = y * geometry.stride[0] - geometry.padding[0] + down * geometry.dilation[0]
                at_x = x * geometry.stride[1] - geometry.padding[1] + across * geometry.dilation[1]
                if 0 <= at_y < sample[1] and 0 <= at_x < sample[2]:
                    heat[channel, at_y, at_x] += 1
    return heat


@pytest.mark.parametrize(
    "geometry",
    [
        Convolution(3, 4, (3, 3), padding=(1, 1)),
        Convolution(3, 4, (3, 2), stride=(2, 3), padding=(1, 0)),
        Convolution(4, 6, (3, 3), stride=(2, 2), groups=2),
        Convolution(2, 2, (3, 3), padding=(2, 2), dilation=(2, 2)),
    ],
)
def test_heat_of_convolutions(geometry):
    generator = torch.Generator().manual_seed(0)
    topology = Topology.from_mask(torch.rand(geometry.shape, generator=generator) < 0.3)
    sample = (geometry.in_channels, 9, 8)
    heat = input_heat(RunLayer("0", geometry, None, topology.nnz, True), topology, sample)
    assert heat.tolist() == heat_by_hand(geometry, topology, sample).tolist()


def test_heat_of_matrices(digits):
    run = read_run(digits)
    topology = run.topologies("sparse", "1")[-1].topology
    heat = input_heat(run.layers["1"], topology, run.sample)
    assert heat.shape == (1, 8, 8)
    assert heat.flatten().tolist() == [len([key for key in topology.keys.tolist() if key % 64 == pixel]) for pixel in range(64)]
    assert input_heat(run.layers["3"], run.topologies("sparse", "3")[0].topology, run.sample) is None
    assert input_heat(RunLayer("0", Matrix(2, 5), None, 0, True), Topology.from_mask(torch.ones(2, 5)), (5,)).tolist() == [[[2] * 5]]


def test_a_run_without_updates_falls_back_to_epochs(copied):
    for variant in ("masked", "sparse"):
        shutil.rmtree(copied / variant / "updates")
    run = read_run(copied)
    assert run.notes == ("from a version that recorded topologies after each epoch only: updates within an epoch are not known",)
    stages = run.topologies("sparse", "3")
    assert [stage.step for stage in stages] == [0, 45, 90, 135]
    for before, after in itertools.pairwise(stages):
        old, new = set(before.topology.keys.tolist()), set(after.topology.keys.tolist())
        assert (set(after.dropped.tolist()), set(after.grown.tolist())) == (old - new, new - old)
    (copied / "layers.json").unlink()
    old = read_run(copied)
    assert old.notes[1].startswith("from a version that did not say what its layers are")
    assert {name: layer.shape for name, layer in old.layers.items()} == DIGITS
    assert [stage.step / old.steps for stage in old.topologies("sparse", "3")] == [0, 1, 2, 3]
    assert not any(layer.sees_sample for layer in old.layers.values())


def test_a_run_that_has_not_finished(copied):
    (copied / "results.json").unlink()
    lines = (copied / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied / "metrics.jsonl").write_text("".join(lines[:5]))  # two epochs, but one of the truly sparse network
    run = read_run(copied)
    assert run.notes == ("not finished: of 3 epochs are complete: dense 2, masked 2, sparse 1",)
    assert run.results == {}
    assert [stage.step for stage in run.topologies("sparse", "1")] == [0, 10, 20, 30, 40]


def test_what_is_no_run(tmp_path, digits):
    for path, reason in ((tmp_path / "no", "does not exist"), (tmp_path, "has no config.json"), (digits / "config.json", "is no folder")):
        with pytest.raises(RunError, match=rf"expected the folder of a run of truesparse train, but .* {reason}"):
            read_run(path)


def test_a_run_before_its_first_epoch(copied):
    (copied / "metrics.jsonl").unlink()
    with pytest.raises(RunError, match=r"no epoch of the run in .* is complete yet"):
        read_run(copied)


@pytest.mark.parametrize("name", ["config.json", "layers.json", "metrics.jsonl", "results.json"])
@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[1, 2]", lambda text: "\x00" * 30])
def test_damaged_text_is_named(copied, name, damage):
    (copied / name).write_text(damage((copied / name).read_text()))
    with pytest.raises(RunError, match=rf"{name} is damaged: .*; restore it from a copy, or train again"):
        read_run(copied)


@pytest.mark.parametrize("name", ["updates/epoch-0002", "topologies/epoch-0000", "topologies/epoch-0003"])
@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda content: b"", lambda content: b"x" * 100])
def test_damaged_topologies_are_named(copied, name, damage):
    path = copied / "sparse" / f"{name}.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=rf"{name}\.safetensors is damaged: .*; restore it from a copy") as caught:
        read_run(copied).topologies("sparse", "3")
    assert "\n" not in str(caught.value)


def test_updates_that_lead_elsewhere_are_refused(copied):
    updates = copied / "sparse" / "updates"
    shutil.copy(updates / "epoch-0001.safetensors", updates / "epoch-0002.safetensors")
    with pytest.raises(RunError, match=r"epoch-0002\.safetensors is damaged: "):
        read_run(copied).topologies("sparse", "3")
    (updates / "epoch-0001.safetensors").unlink()
    with pytest.raises(RunError, match=r"the run lacks .*epoch-0001\.safetensors; restore it"):
        read_run(copied).topologies("sparse", "3")
    topologies = copied / "sparse" / "topologies"
    shutil.copy(topologies / "epoch-0001.safetensors", topologies / "epoch-0003.safetensors")
    shutil.copytree(copied / "masked" / "updates", updates, dirs_exist_ok=True)
    with pytest.raises(RunError, match=r"epoch-0003\.safetensors is damaged: the updates of layer '3' do not lead to the topology at"):
        read_run(copied).topologies("sparse", "3")


def test_an_update_that_drops_what_is_not_there_is_named(copied):
    path = copied / "sparse" / "updates" / "epoch-0001.safetensors"
    arrays = load_file(path)
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    absent = min(set(range(64 * 128)) - masks(copied, "sparse", "3", 128)[0][1])
    arrays["3.dropped"][0] = absent  # of the first update, whose other positions follow by their distances
    save_file(arrays, path, metadata)
    with pytest.raises(RunError, match=r"epoch-0001\.safetensors is damaged: an update of layer '3' drops connections that are not there"):
        read_run(copied).topologies("sparse", "3")


def test_a_generation_that_has_gone_has_no_age():
    nothing = torch.empty(0, dtype=torch.int64)

    def stage(step, drawn, dropped=nothing, grown=nothing):
        return Stage(step, topology_of(drawn), torch.as_tensor(dropped), torch.as_tensor(grown))

    stages = [stage(0, "xx.."), stage(10, "x.x.", [1], [2]), stage(20, "x..x", [2], [3])]
    found = evolution(Matrix(1, 4), stages)
    assert found.ages == {20: 1, 0: 1}, "what step 10 grew lives no longer"
    assert found.alive[-1].tolist() == [1, 0, 1]


def test_layers_of_a_run_that_does_not_describe_them_come_in_the_order_of_their_numbers(tmp_path, train):
    (tmp_path / "deep.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.utils.data import TensorDataset\n"
        "def model(): return nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))\n"
        "def data():\n    made = TensorDataset(torch.randn(8, 4), torch.arange(8) % 4)\n    return made, made\n"
    )
    path = train(str(tmp_path / "deep.py"), tmp_path / "run", epochs=4, every=2, sparsity=0.5)
    (path / "layers.json").unlink()
    assert list(read_run(path).layers) == [str(number) for number in range(12)]


def test_what_is_not_there(digits):
    run = read_run(digits)
    with pytest.raises(KeyError, match="no variant 'dense' with topologies; it has masked, sparse"):
        run.topologies("dense", "1")
    with pytest.raises(KeyError, match="no sparse layer '2'; it has 1, 3, 5"):
        run.topologies("sparse", "2")


def test_the_code_of_the_guide_runs(tmp_path, monkeypatch, train):
    train("digits-mlp", tmp_path / "runs" / "rigl", epochs=1)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "guide" / "report.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "report.md", "exec"), {})


def test_metrics_of_missing_epochs_are_refused(copied):
    lines = [json.loads(line) for line in (copied / "metrics.jsonl").read_text().splitlines()]
    (copied / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines if line["epoch"] != 2))
    with pytest.raises(RunError, match=r"metrics\.jsonl is damaged: the epochs of dense are \[1, 3\]"):
        read_run(copied)


def test_zeros_that_layers_read(digits, copied):
    lines = [json.loads(line) for line in (digits / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if line["variant"] == "sparse"][-1]
    (shown,) = page_content([read_run(digits)])["runs"]
    assert shown["zeroInputs"] == {name: last["layers"][name]["zero_inputs"] for name in DIGITS}
    assert all(0 < shown["zeroInputs"][name] < 1 for name in ("3", "5")), "what a ReLU gives"
    for line in lines:  # as an earlier version wrote them
        for layer in line["layers"].values():
            layer.pop("zero_inputs")
    (copied / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (before,) = page_content([read_run(copied)])["runs"]
    assert before["zeroInputs"] == {}
