"""The Python of docs/guide/frameworks.md runs as it stands there; without its library, an integration says what installs it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from timm_alone import import_timm
from torch import nn

import truesparse as ts

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "frameworks.md"
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL))

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script_method"),
]


@pytest.fixture
def given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def network():
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    model = network()
    data = torch.utils.data.TensorDataset(torch.randn(84, 8), torch.randint(4, (84,)))
    loader = torch.utils.data.DataLoader(data, batch_size=6)
    return {"torch": torch, "F": F, "ts": ts, "MyNet": network, "model": model, "total_steps": 1000, "loader": loader}


def run(section, given):
    for block in re.findall(r"^```python\n(.*?)^```$", SECTIONS[section], re.MULTILINE | re.DOTALL):
        exec(compile(block, section, "exec"), given)
        yield


def test_plain_pytorch(given):
    assert len(list(run("Plain PyTorch", given))) == 1
    assert given["rewirer"].steps == 14


def test_lightning(given):
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = given["MyNet"]()

        def training_step(self, batch, number):
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    given |= {"Module": Module, "module": Module()}
    steps = run("Lightning", given)
    next(steps)
    given["trainer"].save_checkpoint("last.ckpt")
    trained = given["module"]
    next(steps)
    assert all(torch.equal(value, given["module"].state_dict()[name]) for name, value in trained.state_dict().items())


def test_transformers(given):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "max_position_embeddings": 4}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=9, **small))
    data = [{"input_ids": torch.tensor([1, 2, number % 9]), "labels": torch.tensor(number % 2)} for number in range(370)]
    given |= {"model": model, "data": data}
    assert len(list(run("Transformers", given))) == 1
    assert given["model"] is not model
    assert all(torch.equal(value, given["model"].state_dict()[name]) for name, value in model.state_dict().items())


def test_accelerate(given):
    accelerate = pytest.importorskip("accelerate")
    ts.sparsify(given["model"], 0.5)
    given |= {"accelerator": accelerate.Accelerator(cpu=True), "optimizer": torch.optim.Adam(given["model"].parameters())}
    assert len(list(run("Accelerate", given))) == 1


def test_timm(given):
    given["timm"] = import_timm()
    assert len(list(run("timm", given))) == 1


def test_optuna(given):
    optuna = pytest.importorskip("optuna")
    given["train"] = lambda model, optimizer, rewirer: rewirer.rewirings
    assert len(list(run("Optuna", given))) == 1
    assert given["objective"](optuna.trial.FixedTrial({"sparsity": 0.6, "rate": 1e-3})) == 0


def test_compile(given):
    assert len(list(run("torch.compile", given))) == 1


def test_a_missing_library_is_named():
    program = """
import sys
sys.modules.update(dict.fromkeys(["lightning", "pytorch_lightning", "transformers"]))  # as if they were not installed
for name in ("lightning", "transformers"):
    try:
        __import__(f"truesparse.integrations.{name}")
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    lightning, transformers = done.stdout.splitlines()
    assert (
        lightning
        == "truesparse.integrations.lightning needs pytorch_lightning, which is not installed: pip install 'truesparse[lightning]'"
    )
    assert transformers.startswith("truesparse.integrations.transformers needs transformers")
    assert transformers.endswith("which is not installed: pip install 'truesparse[transformers]'")
