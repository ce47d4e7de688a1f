"""A lottery: tickets begin as the papers say, and one that is stopped or killed goes on to the same bits."""

import json
import os
import shutil
import signal

import pytest
import safetensors.torch
import torch

from truesparse.cli.main import run
from truesparse.comparison.lottery import CONTROLS, draw, make_lottery
from truesparse.nn import topology_layers
from truesparse.report import read_run
from truesparse.runs import ConfigError, load_recipe, start, trained_network

RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"epochs": 2, "batch_size": 16, "learning_rate": 0.02, "threads": 1, "schedule": "cosine"}


def model():
    first = nn.Conv2d(1, 6, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 3))


def data():
    made = torch.Generator().manual_seed(0)
    images, labels = torch.randn(120, 1, 4, 4, generator=made), torch.randint(3, (120,), generator=made)
    images += labels.view(-1, 1, 1, 1)
    return TensorDataset(images, labels), TensorDataset(images[:40], labels[:40])
"""
STEP = 11  # of the 8 an epoch: the fourth of the second

pytestmark = pytest.mark.filterwarnings("ignore:nearly pruned away")


class Heard:
    """Hears runs, and interrupts this process after a step, or breaks off where a run would begin to train."""

    def __init__(self, stop_after=None, break_off_at=None):
        self.steps, self.begun = 0, 0
        self.stop_after, self.break_off_at = stop_after, break_off_at

    def begin(self, plan):
        self.begun += 1
        if self.begun == self.break_off_at:
            raise KeyboardInterrupt

    def step(self, report):
        self.steps += 1
        if self.steps == self.stop_after:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch(self, metrics):
        pass


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.py"
    path.write_text(RECIPE)
    return load_recipe(str(path))


def lottery_of(recipe, rewind=STEP, rate=False, beside=CONTROLS, **chosen):
    return make_lottery(recipe, 2, 0.8, 1, rewind, rate, "network", beside, chosen)


def quiet(text):
    pass


@pytest.fixture(scope="module")
def whole(recipe, tmp_path_factory):
    """A lottery that nothing has stopped."""
    path = tmp_path_factory.mktemp("lottery") / "whole"
    draw(lottery_of(recipe), path, Heard(), quiet)
    return path


def files_of(path):
    """All that equal lotteries have equal: networks, topologies, the weights of step k, and metrics but for seconds."""
    found = {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*.safetensors"))}
    for file in sorted(path.rglob("pruning.json")):
        found[str(file.relative_to(path))] = file.read_bytes()
    for file in sorted(path.rglob("metrics.jsonl")):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        kept = [{name: line[name] for name in line if not name.startswith("seconds")} for line in lines]
        found[str(file.relative_to(path))] = json.dumps(kept).encode()
    return found


def assert_equal_files(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def beginnings(recipe, path, number, **settings):
    """The network with which the run of that number begins, on its way to disk before it trains; (layers, other tensors)."""
    with pytest.raises(KeyboardInterrupt):
        draw(lottery_of(recipe, **settings), path, Heard(break_off_at=number), quiet)
    folder = next(folder for folder in (path / "runs").iterdir() if not (folder / "results.json").exists())
    network = trained_network(folder)
    return network.model, folder


def masks_of(model):
    return {name: layer.topology.mask() for name, layer in topology_layers(model).items()}


def dense_at(recipe, path, step):
    """The dense network after so many steps, from a run of its own that is stopped there."""
    if step == 0:
        torch.manual_seed(0)
        return recipe.make_model().state_dict()
    start(lottery_of(recipe).entry("dense", None, 0).config, recipe, path, Heard(stop_after=step))
    return torch.load(path / "dense" / "checkpoint.pt", weights_only=True)["model"]


@pytest.mark.parametrize("rewind", [0, STEP])
def test_a_ticket_is_the_largest_weights_at_their_values_of_step_k(recipe, tmp_path, rewind):
    model, folder = beginnings(recipe, tmp_path / "lottery", 2, rewind=rewind)
    assert folder.name.startswith("ticket-")
    final = safetensors.torch.load_file(tmp_path / "lottery/runs/dense-seed0/dense/model.safetensors")
    early = dense_at(recipe, tmp_path / "early", rewind)
    magnitudes = torch.cat([final[f"{name}.weight"].abs().flatten() for name in ("0", "4", "6")])
    kept = sum(int(mask.sum()) for mask in masks_of(model).values())
    assert kept == pytest.approx(0.447 * magnitudes.numel(), abs=3)
    least = magnitudes.sort(descending=True).values[kept - 1]
    for name, layer in topology_layers(model).items():
        assert torch.equal(layer.topology.mask(), final[f"{name}.weight"].abs().flatten(1) >= least)
        assert torch.equal(layer.to_dense(), early[f"{name}.weight"] * layer.topology.mask().view(layer.geometry.weight_shape))
        assert torch.equal(layer.bias, early[f"{name}.bias"])
    assert torch.load(folder / "sparse/checkpoint.pt", weights_only=True)["step"] == rewind % 8


def test_learning_rate_rewinding_keeps_the_trained_weights(recipe, tmp_path):
    model, folder = beginnings(recipe, tmp_path / "lottery", 2, rate=True)
    final = safetensors.torch.load_file(tmp_path / "lottery/runs/dense-seed0/dense/model.safetensors")
    for name, layer in topology_layers(model).items():
        assert torch.equal(layer.to_dense(), final[f"{name}.weight"] * layer.topology.mask().view(layer.geometry.weight_shape))
    state = torch.load(folder / "sparse/checkpoint.pt", weights_only=True)
    assert (state["epoch"], state["step"]) == divmod(STEP, 8)


def test_controls_have_the_tickets_connections_or_as_many(recipe, tmp_path, whole):
    ticket = trained_network(whole / "runs/ticket-0.553-seed0").model
    shutil.copytree(whole, tmp_path / "lottery")
    found = {}
    for kind in CONTROLS:
        shutil.rmtree(tmp_path / f"lottery/runs/{kind}-0.553-seed0")
        found[kind] = beginnings(recipe, tmp_path / "lottery", 1)[0]
        draw(lottery_of(recipe), tmp_path / "lottery", Heard(), quiet)
    own, same, other = masks_of(ticket), masks_of(found["reinitialised"]), masks_of(found["random"])
    values = [{name: layer.to_dense() for name, layer in topology_layers(model).items()} for model in (ticket, *found.values())]
    for name in own:
        assert torch.equal(own[name], same[name])
        assert other[name].sum() == own[name].sum()
        assert not torch.equal(own[name], other[name])
        both = own[name] & other[name]
        assert torch.equal(values[1][name].flatten(1)[both], values[2][name].flatten(1)[both]), "both controls draw the same weights"
        assert not torch.isclose(values[0][name].flatten(1)[own[name]], values[1][name].flatten(1)[own[name]]).any()
    assert torch.load(tmp_path / "lottery/runs/random-0.553-seed0/sparse/checkpoint.pt", weights_only=True)["epoch"] == 2
    assert_equal_files(files_of(tmp_path / "lottery"), files_of(whole))


# Steps: 16 of the dense network, then for each round 5 of the ticket and 16 of each control.
@pytest.mark.parametrize("stop_after", [3, 16, 18, 54])
def test_it_goes_on_to_the_same_bits(recipe, tmp_path, whole, stop_after):
    ending = draw(lottery_of(recipe), tmp_path / "lottery", Heard(stop_after), quiet)
    assert ending.stopped_by == "SIGINT"
    heard = Heard()
    assert draw(lottery_of(recipe), tmp_path / "lottery", heard, quiet).stopped_by is None
    assert heard.steps == 16 + 2 * (5 + 16 + 16) - stop_after, "no step is done twice"
    assert_equal_files(files_of(tmp_path / "lottery"), files_of(whole))


def test_what_a_killed_process_left_is_made_anew(recipe, tmp_path, whole):
    shutil.copytree(whole, tmp_path / "lottery")
    ticket = tmp_path / "lottery/runs/ticket-0.8-seed0"
    for name in ("config.json", "results.json", "metrics.jsonl", "pruning.json"):
        (ticket / name).unlink()
    (tmp_path / "lottery/runs/reinitialised-0.8-seed0/results.json").unlink()
    draw(lottery_of(recipe), tmp_path / "lottery", Heard(), quiet)
    assert_equal_files(files_of(tmp_path / "lottery"), files_of(whole))


def test_the_folder_of_a_ticket_says_what_each_round_removed(whole):
    found = read_run(whole / "runs/ticket-0.8-seed0")
    rounds = found.pruning["rounds"]
    assert [round["sparsity"] for round in rounds] == [0.0, 0.553, 0.8]
    assert rounds[0]["layers"] == {"0": 54, "4": 1920, "6": 60}
    last = {name: layer.topology.nnz for name, layer in topology_layers(trained_network(found.path).model).items()}
    assert rounds[2]["layers"] == last
    accuracies = [trained_network(whole / "runs" / name) for name in ("dense-seed0", "ticket-0.553-seed0", "ticket-0.8-seed0")]
    assert [round["accuracy"] for round in rounds] == [network.accuracy(network.model) for network in accuracies]
    assert set(found.pruning["sensitivity"]) == {"0", "4", "6"}
    assert all(accuracy == rounds[1]["accuracy"] for (_, accuracy), *_ in found.pruning["sensitivity"].values()), "each begins undisturbed"
    assert [line["epoch"] for line in found.metrics["sparse"]] == [2], "the first epoch is behind the step it was rewound to"
    assert found.topologies("sparse", "4")[0].topology.nnz == last["4"]


def test_the_table_and_the_picture(recipe, tmp_path, whole, capsys):
    shutil.copytree(whole, tmp_path / "lottery")
    command = ["lottery", recipe.task, "--rounds", "2", "--sparsity", "0.8", "--rewind", str(STEP), "--out", str(tmp_path / "lottery")]
    assert run(command) == 0, "complete already: only said again"
    told = capsys.readouterr()
    for name in ("dense", "ticket", "reinitialised", "random", "55.3%", "80%", f"rewound to step {STEP}"):
        assert name in told.out
    page = (tmp_path / "lottery/comparison.md").read_text()
    assert f"Tickets are rewound to step {STEP}." in page
    assert (tmp_path / "lottery/comparison.png").stat().st_size > 1000
    assert run([*command, "--lr", "0.5"]) == 2
    assert "was made with --lr 0.02, not 0.5: choose another --out" in capsys.readouterr().err
    assert run([*command[:-4], "--rewind", "3", *command[-2:]]) == 2
    assert f"--rewind {STEP}, not 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rewind": 16}, "--rewind is a step of the training, from 0 to 15, got 16"),
        ({"beside": ("other",)}, "--beside must name each of reinitialised, random at most once, got other"),
        ({"pattern": "nm:2:4"}, "--pattern: nm:2:4 gives each layer its number of connections"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(recipe, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        draw(lottery_of(recipe, **settings), tmp_path / "lottery", Heard(), quiet)
    assert not (tmp_path / "lottery").exists()


def test_a_folder_of_something_else_is_refused(recipe, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not empty and holds no lottery; choose another --out"):
        draw(lottery_of(recipe), tmp_path, Heard(), quiet)
    with pytest.raises(ConfigError, match=r"--rounds, --sparsity: sparsity is the share .*, got 1.0"):
        make_lottery(recipe, 2, 1.0, 1, 0, False, "network", (), {})
    with pytest.raises(ConfigError, match="--across must be one of row, layer, network, normalised, got 'all'"):
        make_lottery(recipe, 2, 0.5, 1, 0, False, "all", (), {})


def test_by_default_each_round_takes_a_fifth(recipe):
    assert make_lottery(recipe, 5, None, 1, 0, False, "network", (), {}).sparsities == (0.2, 0.36, 0.488, 0.59, 0.672)
