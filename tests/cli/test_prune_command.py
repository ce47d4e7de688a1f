"""`truesparse prune`: from a task, a run or a file to a folder that can be packed, reported on and trained further."""

import json
import re

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.cli.main import run
from truesparse.nn import topology_layers
from truesparse.report import page, read_run
from truesparse.runs import saved_network, trained_network
from truesparse.runs.pruned import SENSITIVITIES, sensitivity

RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"epochs": 2, "batch_size": 30, "learning_rate": 0.02, "threads": 1}


def model():
    return nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


def data():
    made = torch.Generator().manual_seed(0)
    images, labels = torch.randn(120, 2, 4, 4, generator=made), torch.randint(3, (120,), generator=made)
    images += labels.view(-1, 1, 1, 1)
    return TensorDataset(images, labels), TensorDataset(images[:50], labels[:50])
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dense run, and its recipe."""
    folder = tmp_path_factory.mktemp("dense")
    (folder / "tiny.py").write_text(RECIPE)
    assert run(["train", str(folder / "tiny.py"), "--compare", "dense", "--out", str(folder / "dense")]) == 0
    return folder


def test_a_run_is_pruned_into_one_that_has_not_begun(trained, tmp_path, capsys):
    out, dense = tmp_path / "pruned", trained_network(trained / "dense")
    assert run(["prune", str(trained / "dense"), "--sparsity", "0.8", "--across", "network", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    sparse = trained_network(out)
    expected = ts.prune(trained_network(trained / "dense").model, 0.8, across="network")
    for name, layer in topology_layers(expected).items():
        own = topology_layers(sparse.model)[name]
        assert torch.equal(own.to_dense(), layer.to_dense())
        weight = dense.model.get_submodule(name).weight.detach().abs()
        share = float(layer.to_dense().detach().abs().sum() / weight.sum())
        cells = [cell.strip() for cell in next(line for line in told.splitlines() if line.startswith(f"│ {name}")).split("│")[1:-1]]
        size, left = weight.numel(), layer.topology.nnz
        assert cells == [name, f"{size:,}", f"{size:,}", f"{left:,}", f"{1 - left / size:.2%}", f"{share:.1%}"]
    saved = saved_network(out / "network.safetensors", str(trained / "tiny.py"))
    assert all(torch.equal(tensor, saved.model.state_dict()[name]) for name, tensor in sparse.model.state_dict().items())
    said = json.loads((out / "pruning.json").read_text())
    assert said["accuracy"] == {"before": dense.accuracy(dense.model), "after": sparse.accuracy(sparse.model)}
    for end in said["accuracy"].values():
        assert f"{end:.2%}" in told
    assert said["bytes"]["after"] == (out / "network.safetensors").stat().st_size
    assert (said["criterion"], said["across"]) == ("magnitude", "network")
    assert [set(round["layers"]) for round in said["rounds"]] == [{"0", "3", "5"}] * 2
    assert run(["pack", str(out), "--no-tune"]) == 0
    assert run(["train", "--out", str(out), "--resume"]) == 0, "what is left can still be trained"
    assert [line["epoch"] for line in read_run(out).metrics["sparse"]] == [1, 2]
    after = topology_layers(trained_network(out).model)
    assert all(torch.equal(layer.topology.mask(), after[name].topology.mask()) for name, layer in topology_layers(expected).items())


def test_a_file_is_pruned_by_data_and_fine_tuned(trained, tmp_path, capsys):
    dense = trained_network(trained / "dense")
    ts.save(dense.model, tmp_path / "dense.safetensors")
    command = ["prune", str(tmp_path / "dense.safetensors"), "--criterion", "wanda", "--pattern", "nm:1:2", "--exclude", "0"]
    command += ["--calibrate", "2", "--finetune", "3", "--out", str(tmp_path / "out")]
    assert run([*command, "--recipe", str(trained / "tiny.py")]) == 0
    told = capsys.readouterr()
    assert "wanda looks at input squares, on 2 batches of training data" in told.err
    found = trained_network(tmp_path / "out")
    assert isinstance(found.model[0], nn.Conv2d)
    assert {name: (str(layer.pattern), layer.topology.sparsity) for name, layer in topology_layers(found.model).items()} == {
        "3": ("NM(n=1, m=2)", 0.5),
        "5": ("NM(n=1, m=2)", 0.5),
    }
    assert len(read_run(tmp_path / "out").metrics["sparse"]) == 3
    assert f"│ fine-tuned, 3 epochs │ {found.accuracy(found.model):13.2%} │" in told.out
    saved = saved_network(tmp_path / "out/network.safetensors", str(trained / "tiny.py"))
    assert torch.equal(saved.model[3].values, found.model[3].values), "the file is the fine-tuned network"


def test_a_task_is_trained_dense_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("truesparse.runs.recipe.TASKS", tmp_path)
    (tmp_path / "tiny_task.py").write_text(RECIPE)
    assert run(["prune", "tiny-task", "--criterion", "random", "--sparsity", "0.6", "--out", "one"]) == 0
    assert "training tiny-task dense, once, in runs/dense-tiny-task" in capsys.readouterr().err
    assert run(["prune", "tiny-task", "--sparsity", "0.6", "--out", "two"]) == 0
    assert "training" not in capsys.readouterr().err
    first, second = (trained_network(tmp_path / name).model for name in ("one", "two"))
    assert not torch.equal(first[3].topology.mask(), second[3].topology.mask())


def test_sensitivity_is_of_each_layer_alone(trained):
    network = trained_network(trained / "dense")
    before = {name: tensor.clone() for name, tensor in network.model.state_dict().items()}
    curves = sensitivity(network)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.model.state_dict().items())
    assert list(curves) == ["0", "3", "5"]
    assert [sparsity for sparsity, _ in curves["3"]] == [0.0, *SENSITIVITIES]
    assert {curve[0][1] for curve in curves.values()} == {network.accuracy(network.model)}
    alone = ts.prune(trained_network(trained / "dense").model, {"3": 0.9})
    assert dict(curves["3"])[0.9] == network.accuracy(alone)


def test_the_page_of_a_pruned_network_that_was_not_trained(trained, tmp_path):
    out = tmp_path / "pruned"
    assert run(["prune", str(trained / "dense"), "--out", str(out)]) == 0
    found = read_run(out)
    assert found.notes == ("pruned, and not trained since",)
    assert found.metrics == {"sparse": ()}
    assert page([found])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], r"nothing is no task \(cifar10-mlp, .*\), and neither the folder of a run nor a file"),
        (["DENSE", "--criterion", "biggest"], "--criterion: unknown criterion 'biggest'; known: "),
        (["DENSE", "--sparsity", "1.5"], r"--sparsity must be in \[0, 1\), got 1.5"),
        (["DENSE", "--pattern", "nm:2:5"], "cannot prune .*dense: dense: layer '0': .*divisible by 5"),
        (["DENSE", "--recipe", "digits-mlp"], "--recipe: the run in .* knows its own"),
        (["digits-mlp", "--recipe", "digits-mlp"], "--recipe: digits-mlp is a task; leave the option out"),
        (["FILE"], "--recipe: a file holds weights, not the model"),
    ],
)
def test_a_wrong_request_is_one_line(trained, tmp_path, capsys, arguments, said):
    ts.save(nn.Linear(2, 2), tmp_path / "file.safetensors")
    places = {"DENSE": str(trained / "dense"), "FILE": str(tmp_path / "file.safetensors")}
    assert run(["prune", *(places.get(one, one) for one in arguments), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(said, error)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_is_refused(trained, tmp_path, capsys):
    (tmp_path / "note.txt").write_text("mine")
    assert run(["prune", str(trained / "dense"), "--out", str(tmp_path)]) == 1
    assert "is not empty; choose another --out" in capsys.readouterr().err
