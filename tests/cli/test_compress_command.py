"""`truesparse compress`: a table of a run or a file, quantised first if wanted, and the file."""

import pytest
import torch
from torch import nn

import truesparse as ts
from truesparse.cli.main import run

pytest.importorskip("constriction", reason="the extra compress is not installed")


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = ts.sparsify(nn.Sequential(nn.Linear(300, 40), nn.ReLU(), nn.Linear(40, 10)), 0.8)
    ts.save(model, tmp_path / "net.safetensors")
    return model, tmp_path / "net.safetensors"


def test_the_table_alone(saved, capsys):
    model, path = saved
    assert run(["compress", str(path)]) == 0
    out = capsys.readouterr().out
    report = ts.compress(model)
    for layer in report.layers:
        assert f"{layer.connections:,}" in out
        assert f"{layer.nbytes:,}" in out
    assert f"{report.nbytes:,} bytes" in out
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_quantised_and_written(saved, capsys):
    model, path = saved
    file = path.parent / "net.tsz"
    assert run(["compress", str(path), "--bits", "3", "--out", str(file)]) == 0
    assert f"{file}: {file.stat().st_size:,} bytes" in capsys.readouterr().out
    read, here = ts.load(file), ts.quantize(model, 3, by="codebook")
    for name, layer in read.layers.items():
        assert torch.equal(layer.values, here.get_submodule(name).values)
    assert run(["compress", str(file)]) == 0
    assert "codebook, 3 bits" in capsys.readouterr().out
    assert run(["compress", str(path), "--bits", "8", "--by", "row", "--out", str(file)]) == 0
    assert ts.load(file).layers["0"].weights.by == "row"


def test_a_run(tmp_path, capsys):
    assert run(["train", "digits-mlp", "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert run(["compress", str(tmp_path / "run"), "--bits", "4", "--out", str(tmp_path / "net.tsz")]) == 0
    nbytes = sum(file.stat().st_size for file in (tmp_path / "run" / "sparse").rglob("*.safetensors"))
    assert 0 < (tmp_path / "net.tsz").stat().st_size < nbytes / 3


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["{path}", "--by", "row"], 2, "it is about the numbers of --bits"),
        (["{path}", "--bits", "9"], 1, "by codebook a number has 1 to 8 bits, got 9"),
        (["{path}", "--bits", "4", "--by", "tensor"], 1, "by is one of 'row', 'codebook', got 'tensor'"),
        (["{path}", "--variant", "sparse"], 2, "is a file and holds one network"),
        (["{path}.not"], 2, "is neither the folder of a run nor a file"),
        (["{path}", "--out", "{path}/net.tsz"], 1, "there is no folder"),
    ],
)
def test_what_is_refused(saved, arguments, code, says, capsys):
    assert run(["compress", *(one.format(path=saved[1]) for one in arguments)]) == code
    assert says in " ".join(capsys.readouterr().err.split())
