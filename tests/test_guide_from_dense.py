"""The walk of docs/guide/from-dense.md runs, on a few random images in the place of MNIST."""

import re
from pathlib import Path

import pytest
import torch

from truesparse.data import DataSet
from truesparse.runs import load_recipe, make_config, start
from truesparse.runs.trainer import Observers

PAGE = Path(__file__).parent.parent / "docs" / "guide" / "from-dense.md"


@pytest.fixture
def trained_dense(tmp_path, monkeypatch):
    """A run as the first command of the page leaves it."""
    generator = torch.Generator().manual_seed(0)
    (train, train_labels), (test, test_labels) = (
        (torch.randint(256, (n, 1, 28, 28), generator=generator, dtype=torch.uint8), torch.arange(n) % 10) for n in (160, 40)
    )
    images = DataSet("mnist", tuple("0123456789"), train, train_labels, test, test_labels)
    monkeypatch.setattr("truesparse.data.load", {"mnist": images}.__getitem__)
    monkeypatch.setattr("truesparse.inference.choice.SECONDS", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe("mnist-cnn")
    config = make_config(recipe.task, recipe.settings, {"variants": ("dense",), "epochs": 1, "batch_size": 80})
    start(config, recipe, Path("runs/mnist-dense"), Observers(()))


@pytest.mark.filterwarnings("ignore:nearly pruned away")  # the network is hardly trained, so its smallest weights are all in one layer
def test_the_walk_from_dense_to_sparse_runs(trained_dense, capsys):
    given = {}
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, "docs/guide/from-dense.md", "exec"), given)
    model = given["model"]
    assert given["ts"].summary(model).sparsity == pytest.approx(0.98, abs=0.001)
    assert Path("sparse.safetensors").stat().st_size < 0.1 * Path("dense.safetensors").stat().st_size
    assert "98% gone" in capsys.readouterr().out
    with torch.inference_mode():
        x = given["images"][:1]
        torch.testing.assert_close(given["fast"](x), model(x), rtol=1e-4, atol=1e-4)
