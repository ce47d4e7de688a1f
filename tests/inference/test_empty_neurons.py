"""shrink tells of neurons that stay though no connection goes into them: how many, where, why, and what to do; of nothing else."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import truesparse as ts

REMEDY = r"\. ts\.prune\(model, \.\.\., pattern='neurons', example=example\) empties together what can only go together$"


class Around(nn.Module):
    """What a convolution that pads reads, and a sum."""

    def __init__(self, bias=True):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1, bias=bias), nn.Conv2d(8, 8, 3, padding=1, bias=bias)
        self.c, self.last = nn.Conv2d(8, 8, 1, bias=bias), nn.Linear(8, 5)

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        x = x + self.c(F.relu(x))
        return self.last(F.relu(x).mean((2, 3)))


def emptied(model, **rows):
    with torch.no_grad():
        for name, count in rows.items():
            model.get_submodule(name).weight[:count] = 0.0
            if model.get_submodule(name).bias is not None:
                model.get_submodule(name).bias[:count] = 1.0  # ReLU lets it through
    return model


@pytest.fixture
def x():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"a": 3}, r"3 of 'a' \(what reads them cannot take the number of their bias into its own, as a convolution that pads\)"),
        ({"c": 2}, r"2 of 'c' \(what they are added to or multiplied with has connections\)"),
        ({"a": 3, "b": 1, "c": 3}, r"3 of 'a' \(what reads .*\); 2 of 'c' \(what they are added"),
    ],
)
def test_what_stays_is_told_with_the_reason(x, rows, said):
    torch.manual_seed(0)
    model = emptied(Around(), **rows)
    with pytest.warns(UserWarning, match=rf"^neurons without connections stay: {said}"):
        small = ts.shrink(model, x)
    torch.testing.assert_close(small(x), model(x))


def test_in_training_mode_the_reasons_are_the_same(x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1))
    nn.init.ones_(model[1].bias)
    with pytest.warns(UserWarning, match=r"stay: 3 of '0' \(what reads them cannot take"):
        assert ts.shrink(emptied(model, **{"0": 3}), x).training


def test_the_remedy_is_said_and_is_one(x):
    torch.manual_seed(0)
    model = Around()
    alone = ts.prune(copy.deepcopy(model), 0.5, pattern="neurons", exclude=["last"])
    with pytest.warns(UserWarning, match=REMEDY) as told:
        ts.shrink(alone, x)
    assert len(told) == 1
    together = ts.prune(copy.deepcopy(model), 0.5, pattern="neurons", example=x, exclude=["last"])
    assert ts.shrink(together, x).b.out_channels == 4


def test_what_goes_and_what_gives_the_outputs_is_no_news(x):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ts.shrink(emptied(Around(bias=False), a=3), x).a.out_channels == 5
        ts.shrink(emptied(Around(), last=2), x)
        ts.shrink(Around(), x)


def test_an_onnx_file_is_written_without_a_word(x, tmp_path):
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="neurons without connections")
        ts.export_onnx(emptied(Around(), c=2), tmp_path / "model.onnx", x)
