"""`truesparse pack` and `truesparse export`: from a run, or a file, to what they promise; wrong requests end in one line."""

import copy
import json
import shutil
import subprocess
import sys

import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import nn

import truesparse as ts
from truesparse.cli import pack as pack_module
from truesparse.cli.main import run
from truesparse.runs import load_recipe, saved_network, trained_network
from truesparse.tasks import digits_mlp

RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"epochs": 1, "batch_size": 64, "sparsity": 0.7, "ema": 0.9, "threads": 1}


class Network(nn.Module):  # a class that only this file defines
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6 * 16, 30), nn.Linear(30, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x))).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


def model():
    return Network()


def data():
    made = torch.Generator().manual_seed(0)
    images, labels = torch.randn(200, 1, 4, 4, generator=made), torch.randint(3, (200,), generator=made)
    return TensorDataset(images, labels), TensorDataset(images[:3], labels[:3])
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a recipe, `mine.py`, and a run of it, `run`."""
    path = tmp_path_factory.mktemp("runs")
    (path / "mine.py").write_text(RECIPE)
    assert run(["train", str(path / "mine.py"), "--every", "2", "--compare", "dense,masked,sparse", "--out", str(path / "run")]) == 0
    return path


@pytest.fixture(autouse=True)
def _quick(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_module, "SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where layouts are remembered
    monkeypatch.chdir(folder)


def network_of(folder, variant="sparse", name="average.safetensors"):
    """The network of the run, put together by hand."""
    state = safetensors.torch.load_file(folder / "run" / variant / name)
    model = load_recipe(str(folder / "mine.py")).make_model()
    if variant != "dense":
        ts.sparsify(model, 0.5, masked=variant == "masked")
    model.load_state_dict(state)
    return model.eval()


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def close(y, expected):
    return float((y - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


def words(out):
    """Rows of the tables shown, as lists of cells."""
    return [[cell.strip() for cell in line.strip("│┃").split("│")] for line in out.splitlines() if line.startswith("│")]


def test_a_run(folder, capsys):
    assert run(["pack", "run", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("run: sparse, averaged weights\n")
    rows = words(out)
    layers = {row[0]: row for row in rows if len(row) == 9}
    assert layers.keys() == {"stem", "hidden", "head"}
    model = network_of(folder)
    assert layers["hidden"][1] == f"{model.hidden.topology.sparsity:.1%}"
    times = {row[0]: row[2] for row in rows if len(row) == 3}
    assert list(times) == ["dense", "truly sparse", "packed"]
    assert times["dense"] == "1.0"
    assert "batch 1, 1 thread, " in out


@pytest.mark.parametrize(("variant", "ways"), [("dense", ["dense", "packed"]), ("masked", ["dense", "dense + mask", "packed"])])
def test_other_variants_and_no_tuning(variant, ways, folder, capsys):
    assert run(["pack", "run", "--variant", variant, "--no-tune", "--batch", "7", "--values", "int8"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"run: {variant}, averaged weights\n")
    assert [row[0] for row in words(out) if len(row) == 3] == ways
    layers = [row for row in words(out) if len(row) == 9]
    assert layers
    assert all(row[6:] == ["-", "-", "-"] for row in layers)
    assert "batch 7" in out


def test_which_weights(folder, tmp_path):
    x = torch.randn(4, 1, 4, 4)
    for variant in (None, "masked", "dense"):
        found = trained_network(folder / "run", variant)
        assert not found.model.training
        assert torch.equal(outputs(found.model, x), outputs(network_of(folder, variant or "sparse"), x))
        assert found.example(5).shape == (5, 1, 4, 4)
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "sparse" / "average.safetensors").unlink()
    last = outputs(network_of(folder, name="model.safetensors"), x)
    assert not torch.equal(last, outputs(network_of(folder), x))
    assert torch.equal(outputs(trained_network(tmp_path / "run").model, x), last)


def test_a_packed_network_that_was_kept_needs_no_recipe(folder, tmp_path, capsys):
    kept = tmp_path / "packed.pt"
    assert run(["pack", "run", "--no-tune", "--out", str(kept)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"{kept}: {kept.stat().st_size:,} bytes, a pickle, which runs code when")
    x = torch.randn(4, 1, 4, 4)
    torch.save(x, tmp_path / "x.pt")
    code = """
import torch
packed = torch.load("packed.pt", weights_only=False)
with torch.inference_mode():
    torch.save(packed(torch.load("x.pt")), "y.pt")
print(packed.explain())
"""
    finished = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.splitlines()[-1].startswith("batch 1, ")
    assert close(torch.load(tmp_path / "y.pt"), outputs(network_of(folder), x))


def test_files(folder, tmp_path, capsys):
    saved, onnx = tmp_path / "net.safetensors", tmp_path / "net.onnx"
    assert run(["export", "run", "--safetensors", str(saved), "--onnx", str(onnx)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "run: sparse, averaged weights",
        f"{saved}: {saved.stat().st_size:,} bytes",
        f"{onnx}: {onnx.stat().st_size:,} bytes",
    ]
    x = torch.randn(4, 1, 4, 4)
    model = load_recipe("mine.py").make_model()
    expected = outputs(network_of(folder), x)
    assert close(outputs(ts.load(saved, model).eval(), x), expected)
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    assert close(torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]), expected)
    assert torch.equal(outputs(saved_network(saved, "mine.py").model, x), expected)
    assert run(["pack", str(saved), "--recipe", "mine.py", "--no-tune"]) == 0
    assert capsys.readouterr().out.startswith(f"{saved}\n")
    dense_bytes = onnx.stat().st_size
    assert run(["export", str(saved), "--recipe", "mine.py", "--onnx", str(onnx), "--sparse", "--opset", "19"]) == 0
    assert onnx.stat().st_size < dense_bytes


def test_networks_with_dense_layers_and_without_sparse_ones(tmp_path):
    x = torch.randn(3, 1, 8, 8)
    for sparse in (True, False):
        model = digits_mlp.model()
        if sparse:
            ts.sparsify(model, 0.8, exclude=("5",))
        ts.save(model, tmp_path / "net.safetensors")
        found = saved_network(tmp_path / "net.safetensors", "digits-mlp").model
        assert [type(layer) for layer in found] == [type(layer) for layer in model]
        assert torch.equal(outputs(found, x), outputs(model, x))


def test_a_model_that_is_one_layer(tmp_path):
    (tmp_path / "layer.py").write_text("from torch import nn\ndef model():\n    return nn.Linear(5, 4)\ndef data():\n    return [0], [0]\n")
    layer = ts.SparseLinear(5, 4, sparsity=0.5)
    ts.save(layer, tmp_path / "layer.safetensors")
    found = saved_network(tmp_path / "layer.safetensors", str(tmp_path / "layer.py")).model
    assert torch.equal(found.to_dense(), layer.to_dense())


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["pack"], 2, "Missing argument 'RUN_OR_FILE_OR_MODEL'."),
        (["pack", "nowhere"], 2, "nowhere is neither the folder of a run nor a file"),
        (["pack", "run", "--batch", "0"], 2, "Invalid value for '--batch': Input should be greater than or equal to 1"),
        (["pack", "run", "--values", "int4"], 2, "Invalid value for --values: expected one of float32, bfloat16, int8, got 'int4'"),
        (["pack", "run", "--variant", "spares"], 1, "the run in run trained dense, masked, sparse, not spares"),
        (["pack", "run", "--recipe", "mine.py"], 2, "--recipe: the run in run knows its own; leave the option out"),
        (["pack", "run", "--out", "no/where"], 1, "cannot write no/where: there is no folder no; choose a folder that exists"),
        (["pack", "run", "--out", "run"], 1, "cannot write run: it is a folder; name a file in it"),
        (["pack", "."], 1, "there is no run in .: it has no config.json"),
        (["pack", "mine.py", "--recipe", "mine.py"], 1, "cannot read mine.py: Error while deserializing header"),
        (["pack", "net.safetensors"], 2, "--recipe: a file holds weights, not the model: name the task or the FILE.py"),
        (["pack", "net.safetensors", "--recipe", "mine"], 2, "unknown task 'mine'"),
        (["pack", "net.safetensors", "--recipe", "mine.py"], 1, "net.safetensors does not fit the model of mine: it has no layer '1', '3'"),
        (["pack", "net.safetensors", "--recipe", "mnist-mlp"], 1, "net.safetensors does not fit the model: layer '1' is Linear(in_f"),
        (["pack", "net.safetensors", "--recipe", "digits-mlp", "--variant", "sparse"], 2, "--variant: net.safetensors is a file and holds"),
        (["pack", "run/sparse/model.safetensors", "--recipe", "mine.py"], 1, "cannot read run/sparse/model.safetensors: it is a file of a"),
        (["export", "run"], 2, "Invalid value for --onnx: say what to write: --onnx FILE, --safetensors FILE, --c FILE, or several"),
        (["export", "run", "--safetensors", "x", "--sparse"], 2, "Invalid value for --sparse: it is about the ONNX file: say which with"),
        (["export", "run", "--safetensors", "x", "--opset", "20"], 2, "Invalid value for --opset: it is about the ONNX file"),
        (["export", "net.safetensors", "--safetensors", "x"], 2, "Invalid value for --safetensors: it is for runs; a file of"),
        (["export", "run", "--onnx", "x", "--opset", "3"], 1, "cannot export run: opset must be in [18, "),
        (["export", "run", "--onnx", "no/x"], 1, "cannot write no/x: there is no folder no"),
        (["export", "nowhere", "--onnx", "x"], 2, "nowhere is neither the folder of a run nor a file"),
    ],
)
def test_wrong_requests_give_one_line(arguments, code, says, folder, capsys):
    if not (folder / "net.safetensors").exists():
        ts.save(ts.sparsify(digits_mlp.model(), 0.8), folder / "net.safetensors")
    assert run(arguments) == code
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"truesparse: {says}"), captured.err
    assert not (folder / "x").exists()


def test_runs_that_cannot_be_read(folder, tmp_path, capsys):
    shutil.copytree(folder / "run", tmp_path / "run")
    sparse = tmp_path / "run" / "sparse"

    def said():
        assert run(["pack", str(tmp_path / "run")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    content = (sparse / "average.safetensors").read_bytes()
    (sparse / "average.safetensors").write_bytes(content[:-3])
    assert "average.safetensors is not the network of this run: Error while deserializing header" in said()
    shutil.copy(folder / "run" / "dense" / "average.safetensors", sparse)
    assert "average.safetensors is not the network of this run: Error(s) in loading state_dict" in said()
    for file in sparse.glob("*.safetensors"):
        file.unlink()
    assert "has completed no epoch of sparse: cannot read" in said()
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"recipe_sha256": "0" * 64}))
    (sparse / "model.safetensors").write_bytes(content)
    assert "mine.py has changed since the run in" in said()


def test_networks_that_choose_by_their_input(tmp_path, capsys):
    recipe = RECIPE.replace("x = torch.relu(self.norm(self.stem(x)))", "x = self.stem(x) if x.sum() > 1e9 else self.norm(self.stem(x))")
    (tmp_path / "odd.py").write_text(recipe)
    scope: dict = {}
    exec(recipe, scope)
    ts.save(ts.sparsify(scope["model"](), 0.5), tmp_path / "odd.safetensors")
    source = [str(tmp_path / "odd.safetensors"), "--recipe", str(tmp_path / "odd.py")]
    assert run(["export", *source, "--onnx", str(tmp_path / "x")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "odd.safetensors: torch cannot export Network to ONNX: Could not guard" in line
    assert run(["pack", *source]) == 0
    assert "each layer by itself, nothing folded, removed or joined: " in " ".join(capsys.readouterr().out.split())


def test_a_missing_extra_is_named(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert run(["export", "run", "--onnx", "x"]) == 2
    assert capsys.readouterr().err == "truesparse: export_onnx needs onnx, which is not installed: pip install 'truesparse[onnx]'\n"


def test_a_wrong_packed_network_is_not_shown(folder, capsys, monkeypatch):
    real = ts.inference.pack

    def wrong(model, example, **settings):
        other = copy.deepcopy(model)
        nn.init.zeros_(other.head.bias)
        return real(other, example, **settings)

    monkeypatch.setattr(ts.inference, "pack", wrong)
    assert run(["pack", "run", "--no-tune"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "the packed network computes something else, off by" in captured.err


def test_a_gpu_that_is_not_there(capsys):
    for named, says in (("cuda", "--device cuda: "), ("tpu", "--device: unknown 'tpu'")):
        assert run(["pack", "run", "--device", named]) == 2
        assert says in capsys.readouterr().err
    assert run(["pack", "run", "--device", "cpu", "--values", "float16"]) != 0
    assert "expected one of float32, bfloat16, int8, got 'float16'" in capsys.readouterr().err
