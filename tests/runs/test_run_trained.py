"""What a run leaves can be had again as a network, with the accuracy that the run measured."""

import json
import shutil

import pytest
import safetensors.torch
import torch

from truesparse.nn import densify, topology_layers
from truesparse.runs import RunError, trained_network


@pytest.fixture
def run(begin, tmp_path):
    path = tmp_path / "run"
    begin(path, epochs=2, variants=("dense", "sparse"))
    return path


def test_the_network_is_that_of_the_last_epoch(run):
    last = {line["variant"]: line for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}
    for variant in ("dense", "sparse"):
        found = trained_network(run, variant)
        assert (found.name, found.model.training) == ("mine", False)
        assert found.accuracy(found.model) == last[variant]["test_accuracy"]
    rewired = last_indices(run)
    layer = topology_layers(found.model)["5"].topology
    assert torch.equal(layer.indices, rewired), "the topology is the trained one, not the drawn one"
    assert found.accuracy(densify(found.model)) == pytest.approx(last["sparse"]["test_accuracy"], abs=5e-3)


def last_indices(run):
    return safetensors.torch.load_file(run / "sparse" / "topologies" / "epoch-0002.safetensors")["5.indices"]


def test_what_is_not_there_is_said(run, tmp_path):
    with pytest.raises(RunError, match=r"there is no run in .*absent: it has no config\.json"):
        trained_network(tmp_path / "absent")
    with pytest.raises(RunError, match="trained dense, sparse, not masked"):
        trained_network(run, "masked")
    file = run / "sparse" / "model.safetensors"
    shutil.copy(run / "dense" / "model.safetensors", file)
    with pytest.raises(RunError, match=r"model\.safetensors is not the network of this run: "):
        trained_network(run)
    file.write_bytes(b"damaged")
    with pytest.raises(RunError, match=r"model\.safetensors is not the network of this run: "):
        trained_network(run)
    file.unlink()
    with pytest.raises(RunError, match="has completed no epoch of sparse: cannot read"):
        trained_network(run)
