"""A whole run: what it leaves in its folder, and that its variants differ only in what they are."""

import dataclasses
import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from truesparse.metrics import connections, live_bytes
from truesparse.nn import SparseLayer
from truesparse.runs import ConfigError, RunConfig, RunError, load_recipe, made, make_config, start
from truesparse.runs.batches import Batches
from truesparse.runs.results import make_results
from truesparse.runs.variant import Variant


def test_a_run_of_three_variants(begin, tmp_path, listener):
    heard = listener()
    outcome = begin(tmp_path / "run", heard, variants=("dense", "masked", "sparse"))
    # Epoch by epoch, the variants in turn.
    assert heard.epochs == [(name, epoch) for epoch in (1, 2, 3) for name in ("dense", "masked", "sparse")]
    assert len(heard.steps) == heard.plan.total == 3 * 3 * 10

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["variant"], line["epoch"]) for line in lines] == heard.epochs
    dense, masked, sparse = (outcome.results.variants[index] for index in range(3))
    assert sparse.test_accuracy > 0.3  # 30 steps; chance is 0.1
    # Same topology, same values, same data: the same numbers, up to rounding.
    assert masked.test_loss == pytest.approx(sparse.test_loss, rel=1e-3)
    assert masked.connections == sparse.connections < dense.connections == 72 + 512 * 32 + 320
    assert dense.share_of_dense_bytes == dense.times_as_fast == dense.inference_times_as_fast == 1.0
    assert sparse.bytes["optimizer"] < 0.25 * dense.bytes["optimizer"]
    assert sparse.share_of_dense_bytes < 0.75  # so small a network spends most of it on what the kernels derive
    assert masked.share_of_dense_bytes > 1.0
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == json.loads(json.dumps(outcome.results.to_json()))

    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["sparsity"] == 0.8
    assert config["machine"]["threads"] == config["threads"] == 1
    for name in ("masked", "sparse"):
        assert sorted(path.name for path in (tmp_path / "run" / name / "topologies").iterdir()) == [
            f"epoch-{epoch:04d}.safetensors" for epoch in range(4)
        ]
    assert not (tmp_path / "run" / "dense" / "topologies").exists()
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_topologies_and_model_in_the_folder(begin, tmp_path):
    begin(tmp_path / "run", variants=("masked", "sparse"), epochs=2)
    epochs = {}
    for epoch in range(3):
        masked, sparse = (tmp_path / "run" / name / "topologies" / f"epoch-{epoch:04d}.safetensors" for name in ("masked", "sparse"))
        epochs[epoch] = load_file(sparse)
        assert all(torch.equal(array, load_file(masked)[name]) for name, array in epochs[epoch].items())
    assert set(epochs[0]) >= {"5.indptr", "5.indices"}
    assert not torch.equal(epochs[0]["5.indices"], epochs[1]["5.indices"]), "the first epoch rewires"
    with safe_open(tmp_path / "run" / "sparse" / "topologies" / "epoch-0002.safetensors", "pt") as file:
        described = json.loads(file.metadata()["truesparse"])
    assert described["epoch"] == 2
    assert described["shapes"]["5"] == [32, 512]
    model = load_file(tmp_path / "run" / "sparse" / "model.safetensors")
    assert torch.equal(model["5.indices"], epochs[2]["5.indices"])
    assert len(model["5.values"]) == len(model["5.indices"])


def test_a_variant_does_not_depend_on_the_others(begin, tmp_path, files_of):
    """Dropout draws from a stream of each variant's own."""
    begin(tmp_path / "both", variants=("dense", "sparse"), epochs=2)
    begin(tmp_path / "one", variants=("sparse",), epochs=2)
    both, one = files_of(tmp_path / "both"), files_of(tmp_path / "one")
    assert {name for name in one if name != "metrics"} == {name for name in both if name.startswith("sparse")}
    assert all(both[name] == one[name] for name in one if name != "metrics")


def test_the_seed_decides(begin, tmp_path, files_of):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        begin(tmp_path / name, seed=seed, epochs=1)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert files_of(tmp_path / "a") != files_of(tmp_path / "c")


def test_a_run_leaves_torchs_generator_alone(begin, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    begin(tmp_path / "run", epochs=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("algorithm", "every", "rewirings"),
    [("set", None, 1), ("static", None, 0), ("rigl", 3, 4)],  # 20 steps in two epochs, rewiring ends before step 15
)
def test_when_the_topology_changes(recipe, tmp_path, listener, algorithm, every, rewirings):
    config = make_config(recipe.task, {**recipe.settings, "every": every}, {"algorithm": algorithm, "epochs": 2})
    start(config, recipe, tmp_path / "run", listener())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["rewirings"] == rewirings or algorithm == "static"
    first, last = (load_file(tmp_path / "run" / "sparse" / "topologies" / f"epoch-000{epoch}.safetensors") for epoch in (0, 2))
    assert all(torch.equal(first[name], last[name]) for name in first) == (algorithm == "static")


def test_learning_rate_schedules(begin, tmp_path):
    begin(tmp_path / "cosine", epochs=2, learning_rate=0.01)
    begin(tmp_path / "constant", epochs=2, learning_rate=0.01, schedule="constant")
    rates = {
        name: [json.loads(line)["learning_rate"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("cosine", "constant")
    }
    assert rates["constant"] == [0.01, 0.01]
    assert rates["cosine"] == pytest.approx([0.005 * (1 + math.cos(math.pi * step / 20)) for step in (9, 19)])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_warm_up(recipe, schedule):
    config = make_config(recipe.task, recipe.settings, {"epochs": 2, "learning_rate": 0.01, "warmup": 0.4, "schedule": schedule})
    made = Variant("sparse", config, recipe, *(Batches(part, 128) for part in recipe.make_data()))
    rates = []
    made.train_epoch(lambda report: rates.append(made.optimizer.param_groups[0]["lr"]), lambda: False)
    # Four of ten steps rise, the schedule has the sixteen after them.
    after = [0.005 * (1 + math.cos(math.pi * step / 16)) for step in range(6)] if schedule == "cosine" else [0.01] * 6
    assert rates == pytest.approx([0.0025, 0.005, 0.0075, 0.01, *after])


def test_measures_in_the_metrics(begin, tmp_path):
    begin(tmp_path / "run", variants=("dense", "masked", "sparse"), epochs=2, every=10)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    dense, masked, sparse = lines[:3]
    assert set(dense["layers"]) == {"0", "5", "7"}
    assert set(dense["layers"]["5"]) == {"gradient_norm", "flops", "zero_inputs"}
    # 8 x 8 images: 64 positions of 8 filters of 9, then 512 x 32 and 32 x 10.
    forward = 2 * (64 * 72 + 512 * 32 + 320)
    assert dense["flops"] == {
        "inference": forward,
        "dense_inference": forward,
        "training": 3 * 1200 * forward,
        "dense_training": 3 * 1200 * forward,
    }
    for name, layer in sparse["layers"].items():
        other = masked["layers"][name]
        assert layer.pop("gradient_norm") == pytest.approx(other.pop("gradient_norm"), rel=1e-3)
        assert layer.pop("zero_inputs") == pytest.approx(other.pop("zero_inputs"), abs=1e-3)
        assert layer == other, "the twins differ in rounding only"
    assert sparse["flops"] == masked["flops"]
    first, last = (load_file(tmp_path / "run" / "sparse" / "topologies" / f"epoch-000{epoch}.safetensors") for epoch in (0, 1))
    for name, layer in sparse["layers"].items():
        before, after = _pairs(first, name), _pairs(last, name)
        # One rewiring in the epoch, at its last step.
        assert layer["changes"]["dropped"] == [len(before - after)]
        assert layer["changes"]["grown"] == [len(after - before)]
        assert layer["connections"] == len(after)
        assert layer["itop_rate"] == pytest.approx(len(before | after) / {"0": 72, "5": 512 * 32, "7": 320}[name], rel=1e-5)
        assert layer["survival"]["first"] == pytest.approx(len(before & after) / len(before), rel=1e-5)
        rows = {row for row, _ in after}
        assert layer["dead_outputs"] == {"0": 8, "5": 32, "7": 10}[name] - len(rows)
    # The dense gradient is needed in one of ten steps, on 128 samples but for the last 48.
    connections_read = {"0": (72, 64), "5": (512 * 32, 1), "7": (320, 1)}
    extra = sum(2 * (size - sparse["layers"][name]["connections"]) * positions * 48 for name, (size, positions) in connections_read.items())
    assert sparse["flops"]["training"] == 3 * 1200 * sparse["flops"]["inference"] + extra


def _pairs(arrays, name):
    starts, columns = arrays[f"{name}.indptr"].tolist(), arrays[f"{name}.indices"].tolist()
    return {(row, column) for row in range(len(starts) - 1) for column in columns[starts[row] : starts[row + 1]]}


def test_the_average_is_tested_and_kept(begin, tmp_path, recipe):
    begin(tmp_path / "run", epochs=2, ema=0.9)
    begin(tmp_path / "without", epochs=2)
    line, other = (json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("run", "without"))
    assert line["test_loss"] == other["test_loss"], "an average changes nothing in the training"
    assert "ema_test_loss" not in other
    config = make_config(recipe.task, recipe.settings, {"ema": 0.9})
    sparse = Variant("sparse", config, recipe, *(Batches(part, 128) for part in recipe.make_data()))
    sparse.model.load_state_dict(load_file(tmp_path / "run" / "sparse" / "average.safetensors"))
    assert sparse._evaluate()[1] == pytest.approx(line["ema_test_accuracy"])
    assert line["ema_test_loss"] != line["test_loss"]
    parameters = sum(tensor.nbytes for name, tensor in sparse.model.named_parameters())
    assert line["bytes"]["averages"] == parameters
    assert line["bytes"]["total"] == other["bytes"]["total"] + parameters


def test_penalty_and_clipping_reach_the_training(begin, tmp_path):
    sgd = {"optimizer": "sgd", "learning_rate": 0.01}  # Adam hardly feels a factor of the gradients
    plain = begin(tmp_path / "plain", epochs=1, **sgd).results.variants[0].test_loss
    for name, chosen in (("clip", {"clip": 0.01}), ("l1", {"activation_l1": 1.0}), ("l2", {"activation_l2": 1.0})):
        assert begin(tmp_path / name, epochs=1, **sgd, **chosen).results.variants[0].test_loss != plain
    assert begin(tmp_path / "loose", epochs=1, clip=1e9, **sgd).results.variants[0].test_loss == plain


def test_bytes_are_those_of_live_tensors(recipe):
    config = make_config(recipe.task, recipe.settings, {"epochs": 1, "sparsity": 0.5, "budget": "uniform"})
    train, test = (Batches(part, 128) for part in recipe.make_data())
    made = {
        name: Variant(name, dataclasses.replace(config, variants=(name,)), recipe, train, test) for name in ("dense", "masked", "sparse")
    }
    for one in made.values():
        one.train_epoch(lambda report: None, lambda: False)
    dense, masked, sparse = (one.history[-1]["bytes"] for one in made.values())
    parameters = sum(parameter.numel() for parameter in made["dense"].model.parameters())
    buffers = 2 * 8 * 4 + 8  # of batch normalisation: two statistics of 8 channels, and an int64 count
    assert dense["gradients"] == masked["gradients"] == 4 * parameters
    assert dense["weights"] == masked["weights"] == 4 * parameters + buffers
    assert dense["topology"] == 0
    tensors = len(list(made["dense"].model.parameters()))
    assert dense["optimizer"] == 8 * parameters + 4 * tensors  # Adam: two moments, and a step count for each tensor
    held = sum(parameter.numel() for parameter in made["sparse"].model.parameters())
    assert sparse["gradients"] == 4 * held
    assert sparse["optimizer"] == 8 * held + 4 * tensors
    layers = [module for module in made["sparse"].model.modules() if isinstance(module, SparseLayer)]
    arrays = sum(4 * (layer.topology.nnz + layer.topology.shape[0] + 1) for layer in layers)
    assert sparse["topology"] >= arrays
    assert all(sum(count for kind, count in line.items() if kind != "total") == line["total"] for line in (dense, masked, sparse))
    weights = sum(parameter.numel() for parameter in made["dense"].model.parameters() if parameter.ndim > 1)
    assert connections(made["dense"].model) == weights
    assert connections(made["sparse"].model) == connections(made["masked"].model) < weights


def test_shared_storage_is_counted_once():
    model = torch.nn.Linear(4, 4, bias=False)
    model.register_buffer("view", model.weight.detach()[0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert live_bytes(model, optimizer) == {"weights": 64, "gradients": 0, "optimizer": 0, "topology": 0}


MAP_STYLE = """
import torch
from torch import nn
from torch.utils.data import Dataset

settings = {"epochs": 2, "batch_size": 16, "every": 2, "sparsity": 0.5, "optimizer": "sgd", "learning_rate": 0.01}


class Sums(Dataset):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        inputs = torch.linspace(0, 1, 8) * (index + 1) / self.count
        return inputs, inputs.sum().unsqueeze(0)


def model():
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))


def data():
    return Sums(50), Sums(20)


def loss(outputs, targets):
    return nn.functional.mse_loss(outputs, targets)
"""


def test_any_data_set_and_loss(write_recipe, tmp_path, listener):
    recipe = load_recipe(write_recipe(MAP_STYLE))
    heard = listener()
    outcome = start(make_config(recipe.task, recipe.settings, {}), recipe, tmp_path / "run", heard)
    assert len(heard.steps) == 2 * 4  # 50 samples in batches of 16: the last one is smaller
    assert outcome.results.samples == 20
    assert outcome.results.variants[0].test_accuracy is None, "a regression has no accuracy"
    assert outcome.results.variants[0].share_of_dense_bytes is None, "nothing dense to compare with"


def test_batches():
    data = torch.utils.data.TensorDataset(torch.arange(10), torch.arange(10))
    batches = Batches(data, 4, seed=1)
    first = [inputs.tolist() for inputs, _ in batches.shuffled(0)]
    assert [len(batch) for batch in first] == [4, 4, 2]
    assert sorted(index for batch in first for index in batch) == list(range(10))
    assert [inputs.tolist() for inputs, _ in batches.shuffled(0, start=1)] == first[1:]
    assert [inputs.tolist() for inputs, _ in batches.shuffled(1)] != first
    assert [inputs.tolist() for inputs, _ in Batches(data, 4, seed=2).shuffled(0)] != first
    assert [inputs.tolist() for inputs, _ in batches.in_order()] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert batches.first(3).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match=r"the items of the recipe's data must be \(input, target\)"):
        next(Batches([1, 2, 3], 2).in_order())


def test_augmentation_follows_seed_epoch_and_step():
    data = torch.utils.data.TensorDataset(torch.zeros(8), torch.zeros(8))

    def noise(inputs, generator):
        return inputs + torch.rand(inputs.shape, generator=generator)

    def drawn(seed, epoch, start=0):
        return [inputs.tolist() for inputs, _ in Batches(data, 4, seed, noise).shuffled(epoch, start)]

    assert drawn(1, 1) == drawn(1, 1)
    assert drawn(1, 1, start=1) == drawn(1, 1)[1:]
    different = [*drawn(1, 1), *drawn(1, 2), *drawn(2, 1)]
    assert all(one != other for index, one in enumerate(different) for other in different[:index])


def test_a_loss_that_is_no_number_stops_the_run(begin, tmp_path):
    with pytest.raises(RunError, match=r"the loss of sparse is (nan|inf) in epoch 1, step \d+: try a lower --lr"):
        begin(tmp_path / "run", optimizer="sgd", learning_rate=1e30)


def test_a_model_that_cannot_be_made_sparse(write_recipe, tmp_path, listener):
    recipe = load_recipe(write_recipe(MAP_STYLE.replace("nn.Linear(16, 1))", "nn.Linear(16, 1), nn.Bilinear(1, 1, 1))")))
    with pytest.raises(ConfigError, match="cannot make the model sparse: layer '3'"):
        start(make_config(recipe.task, recipe.settings, {}), recipe, tmp_path / "run", listener())
    assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.parametrize("algorithm", ["rigl", "set", "static"])
def test_a_network_with_all_its_connections(begin, recipe, tmp_path, algorithm):
    begin(tmp_path / "run", sparsity=0.0, algorithm=algorithm)
    histories = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["connections"] for line in histories} == {sum(p.numel() for p in recipe.make_model().parameters() if p.ndim > 1)}


def test_ratios_of_the_closing_table():
    def line(seconds, total):
        parts = {"forward": 1.0, "backward": 0.8, "rewiring": 0.1, "optimizer": 0.3, "other": seconds - 2.2}
        known = {"epoch": 1, "test_accuracy": 0.5, "test_loss": 1.0, "connections": 3}
        return {"seconds": seconds, "seconds_of": parts, "bytes": {"total": total}, **known}

    histories = {"dense": [line(4.0, 100), line(9.0, 100), line(5.0, 100)], "sparse": [line(2.5, 30)]}
    inference, shares_of_dx = {"dense": 0.2, "sparse": 0.1}, {"dense": 0.5, "sparse": 0.25}
    dense, sparse = make_results("t", 100, {}, histories, inference, shares_of_dx, 10).variants
    assert dense.seconds_per_epoch == 5.0
    assert (sparse.times_as_fast, sparse.inference_times_as_fast, sparse.share_of_dense_bytes) == (2.0, 2.0, 0.3)
    parts = {"forward": 0.1, "dx": 0.02, "dW": 0.06, "rewiring": 0.01, "optimizer": 0.03, "other": 0.03}
    assert sparse.step_seconds == pytest.approx(parts)
    assert sum(dense.step_seconds.values()) == pytest.approx(18.0 / 30)


def test_momentum_of_sgd_only(recipe):
    train, test = (Batches(part, 128) for part in recipe.make_data())
    for name, momentum in (("sgd", 0.9), ("rmsprop", 0)):
        config = RunConfig(recipe.task, optimizer=name, weight_decay=0.1, every=10)
        group = Variant("sparse", config, recipe, train, test).optimizer.param_groups[0]
        assert group["momentum"] == momentum
        assert group["weight_decay"] == 0.1
    with pytest.raises(ConfigError, match="--weight-decay: rprop has none"):
        Variant("sparse", RunConfig(recipe.task, optimizer="rprop", weight_decay=0.1), recipe, train, test)
    assert made.MOMENTUM == {"sgd": 0.9}
