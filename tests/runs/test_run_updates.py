"""A run's folder says what each update of the topologies dropped and grew; replayed, they lead from each epoch's topologies to the next."""

import itertools
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import truesparse
from truesparse.rewiring import Rewirer
from truesparse.runs import resume, updates
from truesparse.runs.measure import share_of_dx
from truesparse.runs.updates import from_arrays, packed, unpacked

SHAPES = {"0": (8, 9), "5": (32, 512), "7": (10, 32)}


def positions(folder, variant, epoch, layer):
    arrays = load_file(folder / variant / "topologies" / f"epoch-{epoch:04d}.safetensors")
    indptr, indices = arrays[f"{layer}.indptr"].astype(np.int64), arrays[f"{layer}.indices"].astype(np.int64)
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return set((rows * SHAPES[layer][1] + indices).tolist())


def changes(folder, variant, epoch, layer):
    """(step, dropped, grown) of each update, read by the words of the guide."""
    arrays = load_file(folder / variant / "updates" / f"epoch-{epoch:04d}.safetensors")
    found = [arrays["steps"].tolist()]
    for kind in ("dropped", "grown"):
        gaps, ends = arrays[f"{layer}.{kind}"], np.cumsum(arrays[f"{layer}.{kind}_counts"])
        pieces = [gaps[end - count : end] for end, count in zip(ends, arrays[f"{layer}.{kind}_counts"], strict=True)]
        found.append([set(np.cumsum(piece, dtype=np.int64).tolist()) for piece in pieces])
    return list(zip(*found, strict=True))


@pytest.fixture
def seen(monkeypatch):
    """(step, positions of each layer) after every rewiring of the run under way."""
    found, real = [], Rewirer._rewire

    def rewire(self):
        real(self)
        found.append((self.steps, {name: set(layer.topology.keys.tolist()) for name, layer in self.layers.items()}))

    monkeypatch.setattr(Rewirer, "_rewire", rewire)
    return found


@pytest.mark.parametrize("chosen", [{"algorithm": "rigl"}, {"algorithm": "set", "every": 2}, {"algorithm": "gmp", "every": 3}])
@pytest.mark.parametrize("variant", ["sparse", "masked"])
def test_updates_are_the_differences_of_the_masks(begin, tmp_path, seen, variant, chosen):
    begin(tmp_path / "run", epochs=2, variants=(variant,), **chosen)
    assert seen
    for layer in SHAPES:
        told, before = [], positions(tmp_path / "run", variant, 0, layer)
        for epoch in (1, 2):
            told += changes(tmp_path / "run", variant, epoch, layer)
        assert [step for step, _, _ in told] == [step for step, _ in seen]
        for (_, dropped, grown), (_, after) in zip(told, seen, strict=True):
            assert (dropped, grown) == (before - after[layer], after[layer] - before)
            before = after[layer]
        assert before == positions(tmp_path / "run", variant, 2, layer)


def test_many_rewirings_are_merged_into_net_changes(begin, tmp_path, seen, monkeypatch):
    monkeypatch.setattr(updates, "FEWEST_UPDATES", 3)
    begin(tmp_path / "run", epochs=1, algorithm="set", every=1, until=1.0)  # steps 1 to 9 rewire: four, four and one
    told = changes(tmp_path / "run", "sparse", 1, "5")
    assert [step for step, _, _ in told] == [4, 8, 9]
    masks = {0: positions(tmp_path / "run", "sparse", 0, "5")} | {step: layers["5"] for step, layers in seen}
    for (old, new), (_, dropped, grown) in zip(itertools.pairwise([0, 4, 8, 9]), told, strict=True):
        assert (dropped, grown) == (masks[old] - masks[new], masks[new] - masks[old])


def test_a_large_network_keeps_fewer_updates(begin, tmp_path, monkeypatch):
    monkeypatch.setattr(updates, "MOST_CONNECTIONS", 7000)  # the network has 3356
    begin(tmp_path / "run", epochs=1, algorithm="set", every=1)
    assert [step for step, _, _ in changes(tmp_path / "run", "sparse", 1, "5")] == [
        5,
        9,
    ]  # nine rewirings, five to an update


@pytest.mark.parametrize(
    ("steps", "every", "merged"),
    [(45, 10, 1), (938, 100, 1), (938, 10, 10), (938, 1, 94), (10_000, 100, 4), (10_000, 1, 313), (45, 1, 6)],
)
def test_how_many_rewirings_make_an_update(steps, every, merged):
    model = truesparse.sparsify(torch.nn.Linear(20, 30), sparsity=0.5)
    rewirer = Rewirer(model, torch.optim.SGD(model.parameters(), lr=0.1), truesparse.SET(), every=every)
    assert updates.Updates(rewirer, steps).every == merged


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 10])
def test_resume_inside_a_merged_update(begin, tmp_path, listener, files_of, monkeypatch, stop):
    monkeypatch.setattr(updates, "FEWEST_UPDATES", 4)
    chosen = {"epochs": 2, "algorithm": "set", "every": 1}
    begin(tmp_path / "whole", **chosen)
    begin(tmp_path / "run", listener(("sparse", 1, stop)), **chosen)
    resume(tmp_path / "run", {}, listener())
    whole = files_of(tmp_path / "whole")
    assert "sparse/updates/epoch-0002.safetensors" in whole
    assert files_of(tmp_path / "run") == whole


@pytest.mark.parametrize("keys", [[], [0], [5, 6, 7], [0, 255, 256, 700], [1, 2**16 + 1], [1, 2**16, 2**33]])
def test_packing(keys):
    gaps = packed(torch.tensor(keys, dtype=torch.int64))
    assert unpacked(gaps).tolist() == keys
    largest = max(np.diff([0, *keys]), default=0)
    assert gaps.element_size() == next(size for size in (1, 2, 4, 8) if largest < 256**size)


def test_contradictions_are_refused():
    arrays = {"steps": np.array([5, 9])}
    for kind in ("dropped", "grown"):
        arrays |= {f"a.{kind}": np.array([3, 1, 4], dtype=np.uint8), f"a.{kind}_counts": np.array([1, 2])}
    first, second = from_arrays(arrays, ["a"])
    assert (first.step, second.step) == (5, 9)
    assert [keys.tolist() for keys in second.changes["a"]] == [[1, 5], [1, 5]]
    for wrong in ([1, 1], [3], [4, -1]):
        with pytest.raises(ValueError, match=r"layer 'a': expected the counts of 2 updates, 3 positions in all"):
            from_arrays({**arrays, "a.grown_counts": np.array(wrong)}, ["a"])


def test_what_layers_are(begin, tmp_path):
    begin(tmp_path / "run", epochs=1, variants=("dense", "sparse"))
    described = json.loads((tmp_path / "run" / "layers.json").read_text())
    assert (described["steps"], described["sample"]) == (10, [1, 8, 8])
    assert {name: layer["sees_sample"] for name, layer in described["layers"].items()} == {"0": True, "5": False, "7": False}
    for name, layer in described["layers"].items():
        assert layer["budget"] == len(positions(tmp_path / "run", "sparse", 0, name))
        assert layer["pattern"] == "Unstructured()"
    assert described["layers"]["0"]["geometry"]["kernel"] == [3, 3]
    assert described["layers"]["5"]["geometry"] == {"rows": 32, "columns": 512}
    begin(tmp_path / "pruned", epochs=2, algorithm="gmp", every=2)
    pruned = json.loads((tmp_path / "pruned" / "layers.json").read_text())["layers"]
    assert sum(layer["budget"] for layer in pruned.values()) == sum(layer["budget"] for layer in described["layers"].values())
    assert pruned["5"]["budget"] < len(positions(tmp_path / "pruned", "sparse", 0, "5"))


def test_the_parts_of_a_step_are_its_time(begin, tmp_path):
    results = begin(tmp_path / "run", epochs=2, variants=("dense", "sparse")).results
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert set(line["seconds_of"]) == {"forward", "backward", "rewiring", "optimizer", "other"}
        assert sum(line["seconds_of"].values()) == pytest.approx(line["seconds"], abs=4e-4)
        assert min(line["seconds_of"].values()) >= 0
        assert (line["seconds_of"]["rewiring"] > 0) == (line["variant"] == "sparse" and line["epoch"] == 1)  # until step 15 of 20
    for result in results.variants:
        own = [line["seconds"] for line in lines if line["variant"] == result.variant]
        assert sum(result.step_seconds.values()) == pytest.approx(sum(own) / 20, abs=1e-4)


def test_dx_is_what_a_backward_pass_takes_that_no_weight_asks_for():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    model[2].bias.requires_grad_(False)
    passes = []

    def loss(model):
        hidden = model[0](torch.randn(4, 8))
        passes.append(([parameter.requires_grad for parameter in model.parameters()], hidden.requires_grad))
        return model[1:](hidden).sum()

    assert 0 <= share_of_dx(model, loss) <= 1
    whole, frozen = ([True, True, True, False], True), ([False] * 4, True)
    assert passes[:4] == [whole, frozen, whole, frozen]
