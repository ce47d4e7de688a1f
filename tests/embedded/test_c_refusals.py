"""What cannot be C is told in one line that names the layer, before any file is there."""

import pytest
import torch
from c_build import Perceptron, Residual, sparse
from torch import nn

import truesparse as ts
from truesparse.embedded import CompilerError, size
from truesparse.export import FileError


class Of(nn.Module):
    """A model that does one thing."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.own = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.own(self, self.layer(x))


WRONG = {
    "gelu": (Of(lambda m, x: m.act(x), act=nn.GELU()), (2, 4), r"layer 'act' \(GELU\) has no C here\. There is C for linear layers"),
    "attention": (
        Of(lambda m, x: m.mha(x, x, x)[0], mha=nn.MultiheadAttention(4, 1, batch_first=True)),
        (2, 3, 4),
        r"has no C here",
    ),
    "function": (Of(lambda m, x: torch.cumsum(x, 1)), (2, 4), r"operation cumsum \(cumsum\) has no C here"),
    "several": (Of(lambda m, x: (x, x)), (2, 4), r"the model must return one, not several"),
    "norm": (Of(lambda m, x: m.norm(x), norm=nn.LayerNorm(4)), (2, 4), r"layer 'norm' \(LayerNorm\) has no C here"),
    "batch": (Of(lambda m, x: x.sum(0, keepdim=True)), (2, 4), r"operation sum .* has no C here"),
    "mixes samples": (
        Of(lambda m, x: x.reshape(-1, 2)),
        (2, 4),
        r"the first dimension must be the samples .* shape \(4, 2\) for 2 samples",
    ),
    "shapes": (Of(lambda m, x: x + x[:, :1]), (2, 4), r"both must have one shape, got \(4,\) and \(1,\)"),
    "values": (Of(lambda m, x: x if x.sum() > 0 else -x), (2, 4), r"cannot trace .* write what depends on values"),
    "pool": (Of(lambda m, x: m.pool(x), pool=nn.AdaptiveAvgPool1d(3)), (2, 5, 4), r"layer 'pool' .* windows are of several sizes"),
    "padding": (
        Of(lambda m, x: m.c(x), c=nn.Conv1d(5, 2, 3, padding=1, padding_mode="circular")),
        (2, 5, 4),
        r"layer 'c' .* pads with circular",
    ),
    "directions": (
        Of(lambda m, x: m.g(x)[0], g=nn.GRU(4, 3, bidirectional=True, batch_first=True)),
        (2, 5, 4),
        r"layer 'g' .* one direction",
    ),
    "steps first": (Of(lambda m, x: m.g(x)[0], g=nn.GRU(4, 3)), (2, 5, 4), r"layer 'g' .* batch_first=True"),
    "cells": (Of(lambda m, x: m.g(x)[1][1][0], g=nn.LSTM(4, 3, batch_first=True)), (2, 5, 4), r"of a recurrent layer there are the states"),
    "transposed": (Of(lambda m, x: m.up(x), up=nn.ConvTranspose1d(5, 2, 3)), (2, 5, 4), r"layer 'up' \(ConvTranspose1d\) has no C here"),
    "softmax": (Of(lambda m, x: x.softmax(1)), (2, 5, 4), r"operation softmax .* over the last dimension"),
}


@pytest.mark.parametrize("case", WRONG)
def test_operations_without_c(case, tmp_path):
    model, shape, said = WRONG[case]
    with pytest.raises(TypeError, match=said):
        ts.export_c(model.eval(), torch.randn(shape), tmp_path / "net.h")
    assert not list(tmp_path.iterdir())


def test_models_and_examples_that_cannot_be(tmp_path):
    model, path = sparse(Perceptron(), 0.5), tmp_path / "net.h"
    x = torch.randn(1, *Perceptron.shape)
    for example, said in (
        ((x, x), "the example must be one"),
        (x.double(), "float32"),
        (x[:0], "float32 with shape"),
        (x[0, 0, 0], "float32"),
    ):
        with pytest.raises(TypeError, match=said):
            ts.export_c(model, example, path)
    with pytest.raises(TypeError, match="export the network that it was packed from"):
        ts.export_c(ts.pack(model, x, tune=False), x, path)
    with pytest.raises(TypeError, match=r"'1\.\w+' is torch.float64: convert it with \.float\(\)"):
        ts.export_c(sparse(Perceptron(), 0.5).double(), x, path)
    hooked = Perceptron().eval()
    hooked[1].register_forward_hook(lambda *_: None)
    with pytest.raises(TypeError, match="hooks of yours are on 1, which no C holds"):
        ts.export_c(hooked, x, path)
    broken = Perceptron().eval()
    with torch.no_grad():
        broken[1].bias[0] = torch.nan
    with pytest.raises(ValueError, match=r"'1\.bias' holds NaN or infinity"):
        ts.export_c(broken, x, path)
    assert not list(tmp_path.iterdir())


def test_what_is_written_in_place_and_read_again(tmp_path):
    model = Of(lambda m, x: m.act(x) + x, act=nn.ReLU(inplace=True)).eval()
    with pytest.raises(TypeError, match=r"another output than the model, off by .*: it writes in place"):
        ts.export_c(model, torch.randn(5, 4), tmp_path / "net.h")
    ts.export_c(Of(lambda m, x: m.act(x) + 1, act=nn.ReLU(inplace=True)).eval(), torch.randn(5, 4), tmp_path / "net.h")


def test_rows_that_are_too_long(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(140_000, 1)).eval()
    with torch.no_grad():
        model[1].weight[0, 70_000:] = 0
    with pytest.raises(TypeError, match=r"layer '1' has no C here: a row of 70,000 connections; at most 65,535 are counted"):
        ts.export_c(model, torch.randn(1, 140_000), tmp_path / "net.h")
    with pytest.raises(TypeError, match=r"layer '0' has no C here: images of 300 x 300: at most 65,535 positions are counted"):
        ts.export_c(nn.Sequential(nn.Conv2d(1, 1, 3)).eval(), torch.randn(1, 1, 300, 300), tmp_path / "net.h")


def test_settings_that_cannot_be(tmp_path):
    model, x = sparse(Perceptron(), 0.5), torch.randn(2, *Perceptron.shape)
    path = tmp_path / "net.h"
    wrong = (
        ({"values": "int4"}, "values is one of float32, int8, got 'int4'"),
        ({"values": "int8"}, "values='int8' needs calibration=batches, inputs like those to come, or a model of ts.quantize"),
        ({"calibration": [x]}, "calibration=batches is for values='int8'; got values='float32' with some"),
        ({"values": "int8", "calibration": []}, "at least one: ranges of activations come from them"),
        ({"values": "int8", "calibration": [x[:, 0]]}, r"expected batches of shape \[batch, 1, 30, 31\], got \(2, 30, 31\) as batch 0"),
        ({"values": "int8", "calibration": [x, x * torch.nan]}, "batch 1 leads to NaN or infinity"),
        ({"name": "2nd"}, "'2nd' cannot begin names in C"),
        ({"flash": 0}, "flash is a number of bytes of at least 1, got 0"),
    )
    for settings, said in wrong:
        with pytest.raises(ValueError, match=said):
            ts.export_c(model, x, path, **settings)
    with pytest.raises(FileError, match="there is no folder"):
        ts.export_c(model, x, tmp_path / "no" / "net.h")
    of_any_size = Of(lambda m, x: m.g(x)[0], g=nn.RNN(4, 3, nonlinearity="relu", batch_first=True)).eval()
    example = torch.randn(2, 5, 4)
    with pytest.raises(TypeError, match=r"layer 'g\.l0' \(RNN_RELU\) has no int8 here, for its state may be of any size"):
        ts.export_c(of_any_size, example, path, values="int8", calibration=[example])
    assert not list(tmp_path.iterdir())


def test_too_large_for_the_machine(tmp_path):
    x = torch.randn(2, *Residual.shape)
    model, path = sparse(Residual(), 0.5), tmp_path / "net.h"
    exported = ts.export_c(model, x, path)
    path.unlink()
    around = exported.input_bytes + exported.output_bytes
    largest = max(exported.rows, key=lambda row: row.flash)
    with pytest.raises(
        ValueError, match=rf"{exported.flash:,} bytes of flash, 1 more than .* '{largest.layer}' .* {largest.flash:,}\. Make it"
    ):
        ts.export_c(model, x, path, flash=exported.flash - 1)
    with pytest.raises(ValueError, match=rf"{exported.memory + around:,} bytes of RAM .*, 1 more than .* during '(wide|add)'"):
        ts.export_c(model, x, path, ram=exported.memory + around - 1)
    assert not path.exists()
    ts.export_c(model, x, path, flash=exported.flash, ram=exported.memory + around)
    assert path.exists()


def test_compilers_that_are_not_there(tmp_path):
    exported = ts.export_c(sparse(Perceptron(), 0.5), torch.randn(1, *Perceptron.shape), tmp_path / "net.h")
    with pytest.raises(CompilerError, match="cannot run no-such-gcc: No such file or directory; install it"):
        size(exported, "no-such-gcc")
