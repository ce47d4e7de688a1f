"""Recipes that do not fit: one line before anything is begun, and a line with the user's own place for what fails later."""

import random

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from truesparse.cli.main import run
from truesparse.nn import SparseLinear, sparsify
from truesparse.runs import ConfigError, RunError, load_recipe, make_config, start
from truesparse.runs.batches import Batches
from truesparse.runs.rehearsal import rehearse

HEAD = """
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

settings = {"epochs": 2, "batch_size": 8, "every": 2, "sparsity": 0.5, "threads": 1}


class Network(nn.Module):
    def __init__(self, inputs=6, outputs=3):
        super().__init__()
        self.first, self.last = nn.Linear(inputs, 8), nn.Linear(8, outputs)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def model():
    return Network()


def data():
    torch.manual_seed(0)
    x, y = torch.randn(32, 6), torch.arange(32) % 3
    return TensorDataset(x, y), TensorDataset(x, y)

"""


def of(body):
    """`data` with other samples."""
    made = "x, y = torch.randn(32, 6), torch.arange(32) % 3"
    return f"def data():\n    {made}\n    {body}\n    return TensorDataset(x, y), TensorDataset(x, y)\n"


UNUSED = """
class Wide(Network):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(8, 8)

def model(): return Wide()
"""
NORMED = "def model(): return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))\n"

WRONG = {
    "too wide": (
        "def model(): return Network(inputs=7)",
        r"the recipe mine\.py cannot be trained: its model cannot take a training batch float32 \[8, 6\] in layer 'first', mine\.py:15: "
        r"ValueError: expected an input of shape \(\.\.\., 7\), got \(8, 6\)",
    ),
    "too few classes": (
        "def model(): return Network(outputs=2)",
        "the labels of a training batch go from 0 to 2, but the model has 2 outputs, for 0 to 1: give its last layer 3 outputs",
    ),
    "labels from 1": (of("y = y + 1"), "labels of a training batch go from 1 to 3, but the model has 3 outputs, .*: number them from 0"),
    "a late label": (of("y[-1] = 7"), "the labels of the training data go from 0 to 7, but the model has 3 outputs"),
    "labels of a wrong dtype": (
        of("y = y.float()"),
        r"the targets of a training batch must be numbers of classes, int64 \[8\] \(labels\.long\(\)\), got float32 \[8\]; or define loss",
    ),
    "labels in a column": (of("y = y[:, None]"), r"int64 \[8\] \(labels\.long\(\), \.flatten\(\)\), got int64 \[8, 1\]"),
    "no scores": (
        "def model(): return nn.Sequential(Network(), nn.Flatten(0))",
        r"scores of classes, \[batch, classes\], got float32 \[24\]",
    ),
    "NaN in the data": (of("x[5, 2] = float('nan')"), "NaN or infinity in the training data, first in sample 5: clean it in data"),
    "an unused layer": (UNUSED, "layer 'spare' takes no part in the loss: use it in forward.*or leave it dense .* with --exclude spare$"),
    "infinite from the start": (
        "def loss(outputs, targets): return outputs.sum() / 0",
        r"the loss of a training batch is -?inf before any step, though its inputs are numbers",
    ),
    "a loss for each sample": (
        "def loss(outputs, targets): return outputs.sum(1)",
        r"loss\(\) must return one number, .*got float32 \[8\]",
    ),
    "a detached loss": ("def loss(outputs, targets): return outputs.sum().detach()", "the loss depends on no weight"),
    "a loss that fails": (
        "def loss(outputs, targets):\n    return outputs.nothing",
        r"loss\(\) fails on a training batch, outputs float32 \[8, 3\] and targets int64 \[8\], mine\.py:28: AttributeError",
    ),
    "an augment that fails": (
        "def augment(inputs, generator):\n    return inputs / []",
        r"its data or augment\(\) fail at a training batch, mine\.py:28: TypeError",
    ),
    "data that fail": (
        "class Own(Dataset):\n    def __len__(self): return 9\n    def __getitem__(self, index):\n        raise KeyError(index)\n"
        "def data(): return Own(), Own()",
        r"its data or augment\(\) fail at a training batch, mine\.py:30: KeyError",
    ),
    "a model for eight": (
        "class Eight(Network):\n    def forward(self, x): return super().forward(x).view(8, 3)\ndef model(): return Eight()\n"
        + of("x, y = x[:20], y[:20]"),
        r"the last batch of an epoch has 4 of 20 samples: choose another --batch-size, such as 10 .*mine\.py:28: RuntimeError: shape",
    ),
    "a model without a copy": (
        "def model():\n    made = Network()\n    made.kept = made.first.weight * 2\n    return made",
        "its model cannot be copied: RuntimeError: Only Tensors created explicitly",
    ),
    "a model that cannot answer for one": (
        "class Some(Network):\n    def forward(self, x):\n        assert len(x) > 1\n        return super().forward(x)\n"
        "def model(): return Some()",
        r"its model cannot take a single test sample float32 \[1, 6\], mine\.py:29: AssertionError",
    ),
    "batch norm": (
        NORMED + of("x, y = x[:25], y[:25]"),
        r"the last batch of an epoch has 1 of 25 samples: choose another --batch-size, such as 7 .*in layer '1': ValueError: Expected more",
    ),
    "data loaders": (
        "from torch.utils.data import DataLoader\ndef data():\n    x = TensorDataset(torch.randn(8, 6), torch.arange(8) % 3)\n"
        "    return DataLoader(x), DataLoader(x)",
        r"the training data of the recipe mine\.py is a DataLoader: return its data set \(loader\.dataset\)",
    ),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_one_line(write_recipe, tmp_path, listener, text, said):
    recipe = load_recipe(write_recipe(HEAD + text))
    with pytest.raises(ConfigError, match=said) as caught:
        start(make_config(recipe.task, recipe.settings, {}), recipe, tmp_path / "run", listener())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing was begun"


RIGHT = {
    "a batch of one without batch norm": of("x, y = x[:25], y[:25]"),
    "batch norm and a batch of two": NORMED + of("x, y = x[:26], y[:26]"),
    "a layer that is left out at random": UNUSED
    + """
class Dropped(Wide):
    def forward(self, x):
        x = self.first(x)
        return self.last(self.spare(x) if torch.rand(()) < 0.5 else x)

def model(): return Dropped()
""",
    "a forward that is a closure": """
def model():
    made = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    made.forward = lambda x: made[1](made[0](x))
    return made
""",
    "ignored labels": of("y[3] = -100"),
    "shares of classes": of("y = nn.functional.one_hot(y, 3).float()"),
    "another loss": of("y = y.float()[:, None]")
    + "def loss(outputs, targets): return nn.functional.mse_loss(outputs, targets.expand(-1, 3))\n",
    "a frozen layer": "def model():\n    made = Network()\n    made.first.requires_grad_(False)\n    return made\n",
}


@pytest.mark.parametrize("text", RIGHT.values(), ids=RIGHT)
def test_what_fits_is_trained(write_recipe, tmp_path, listener, text):
    recipe = load_recipe(write_recipe(HEAD + text))
    config = make_config(recipe.task, recipe.settings, {"algorithm": "static", "variants": ("dense", "sparse")})
    assert start(config, recipe, tmp_path / "run", listener()).results is not None


def test_an_unused_layer_that_is_left_dense(write_recipe, tmp_path, listener):
    recipe = load_recipe(write_recipe(HEAD + UNUSED))
    config = make_config(recipe.task, recipe.settings, {"exclude": ("spare",)})
    assert start(config, recipe, tmp_path / "run", listener()).results is not None


def test_a_rehearsal_changes_nothing(write_recipe):
    """Dropout, batch norm, an augment that draws everywhere: what comes after is what came without it."""
    draws = "def augment(inputs, generator):\n    return inputs + random.random() + numpy.random.rand() + torch.rand(())\n"
    recipe = load_recipe(write_recipe(HEAD + "import random, numpy\n" + draws))
    model = sparsify(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)), 0.5)
    batches = Batches(TensorDataset(torch.randn(20, 6), torch.arange(20) % 3), 8, augment=recipe.augment)

    def everything():
        drawn = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
        return model.state_dict(), drawn, [parameter.grad for parameter in model.parameters()], model.training

    before = [{name: tensor.clone() for name, tensor in everything()[0].items()}, *everything()[1:]]
    rehearse(model, recipe, batches, batches)
    after = everything()
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())
    assert torch.equal(before[1][0], after[1][0])
    assert before[1][1] == after[1][1]
    assert all(numpy.array_equal(one, other) for one, other in zip(before[1][2], after[1][2], strict=True))
    assert (before[2], before[3]) == (after[2], after[3])
    assert isinstance(model[0], SparseLinear)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


LATER = {
    "a late label": (
        "class Own(Dataset):\n    def __len__(self): return 64\n"
        "    def __getitem__(self, index): return torch.ones(6), index // 21\n"
        "def data(): return Own(), TensorDataset(torch.ones(4, 6), torch.arange(4) % 3)\n",
        r"training of sparse failed in epoch 1, step \d: IndexError: Target 3 is out of bounds.*; --traceback shows all of it",
    ),
    "augment": (
        "calls = []\ndef augment(inputs, generator):\n    calls.append(1)\n"
        "    if len(calls) > 6:\n        raise OSError('gone')\n    return inputs\n",
        r"training of sparse failed in epoch 2, step \d, mine\.py:31: OSError: gone",
    ),
    "NaN from augment": (
        "calls = []\ndef augment(inputs, generator):\n    calls.append(1)\n    return inputs * (float('nan') if len(calls) > 6 else 1)\n",
        r"the loss of sparse is nan in epoch 2, step \d: the inputs of that step hold NaN or infinity: clean them in data\(\)",
    ),
}


@pytest.mark.parametrize(("text", "said"), LATER.values(), ids=LATER)
def test_what_fails_later_says_where(write_recipe, tmp_path, listener, text, said):
    recipe = load_recipe(write_recipe(HEAD + text))
    with pytest.raises(RunError, match=said) as caught:
        start(make_config(recipe.task, recipe.settings, {"seed": 1}), recipe, tmp_path / "run", listener())
    assert "\n" not in str(caught.value)


def test_the_command_line_shows_all_of_it_when_asked(write_recipe, tmp_path, capsys):
    path = write_recipe(HEAD + "def loss(outputs, targets):\n    return outputs.nothing\n")
    assert run(["train", path, "--out", str(tmp_path / "run")]) == 2
    short = capsys.readouterr().err
    assert short.count("\n") == 1
    assert run(["train", path, "--traceback", "--out", str(tmp_path / "run")]) == 2
    whole = capsys.readouterr().err
    assert whole.endswith(short)
    assert f'File "{path}", line 28, in loss' in whole
    assert "has no attribute 'nothing'" in whole


def test_a_neighbour_is_the_users_code_too(write_recipe, tmp_path, listener):
    write_recipe("def fail(x):\n    raise ValueError('two\\n lines')\n", "neighbour_of_a_rehearsal.py")
    recipe = load_recipe(write_recipe(HEAD + "import neighbour_of_a_rehearsal as n\ndef loss(o, t):\n    return n.fail(o)\n"))
    with pytest.raises(ConfigError, match=r", neighbour_of_a_rehearsal\.py:2: ValueError: two lines; --traceback"):
        start(make_config(recipe.task, recipe.settings, {}), recipe, tmp_path / "run", listener())
