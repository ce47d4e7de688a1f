"""Cells of recurrent networks in C: step after step with a state that the caller keeps, or over a sequence in a loop of the model's own."""

import numpy as np
import pytest
import torch
from c_build import COMPILERS, WARNINGS, called, compiled, needs, run_of, sparse
from torch import nn

import truesparse as ts

CELLS = {"gru": nn.GRUCell, "lstm": nn.LSTMCell, "tanh": nn.RNNCell, "relu": lambda *sizes: nn.RNNCell(*sizes, nonlinearity="relu")}


class Streamed(nn.Module):
    """[batch, inputs + state] in, [batch, answers + state] out: a program calls it for each new measurement."""

    def __init__(self, cell, inputs=5, hidden=7):
        super().__init__()
        self.cell, self.head, self.sizes = cell(inputs, hidden), nn.Linear(hidden, 3), (inputs, hidden)

    def forward(self, x):
        inputs, hidden = self.sizes
        if isinstance(self.cell, nn.LSTMCell) or getattr(self.cell, "mode", "") == "LSTM":
            h, c = self.cell(x[:, :inputs], (x[:, inputs : inputs + hidden], x[:, inputs + hidden :]))
            return torch.cat([self.head(h), h, c], 1)
        h = self.cell(x[:, :inputs], x[:, inputs:])
        return torch.cat([self.head(h), h], 1)


class Unrolled(nn.Module):
    """[batch, steps, inputs] in: a loop over the steps, from zeros, or from no state at all; two cells on top of one another."""

    def __init__(self, cell, from_zeros, steps=6, inputs=5, hidden=7):
        super().__init__()
        self.one, self.two, self.head = cell(inputs, hidden), cell(hidden, hidden), nn.Linear(hidden, 3)
        self.from_zeros, self.steps, self.hidden = from_zeros, steps, hidden
        self.is_lstm = isinstance(self.one, nn.LSTMCell)

    def forward(self, x):
        one = two = None
        if self.from_zeros:
            zeros = x.new_zeros(x.shape[0], self.hidden)
            one = two = (zeros, torch.zeros_like(zeros)) if self.is_lstm else zeros
        for step in range(self.steps):
            one = self.one(x[:, step], one)
            two = self.two(one[0] if self.is_lstm else one, two)
        return self.head(two[0] if self.is_lstm else two)


@torch.no_grad()
def expected(model, x):
    return ts.densify(model)(x).numpy()


@pytest.mark.parametrize("sparsity", [0, 0.6])
@pytest.mark.parametrize("kind", CELLS)
def test_a_step_with_the_state_of_the_caller(kind, sparsity, tmp_path):
    torch.manual_seed(0)
    model = sparse(Streamed(CELLS[kind]), sparsity)
    x = torch.randn(200, 5 + 7 * (1 + (kind == "lstm")))
    exported = ts.export_c(model, x[:2], tmp_path / "net.h")
    want = expected(model, x)
    assert np.abs(called(exported, x.numpy(), want.shape[1:]) - want).max() < 1e-5


@pytest.mark.parametrize("from_zeros", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_a_loop_has_its_weights_once(kind, from_zeros, tmp_path):
    torch.manual_seed(0)
    model = sparse(Unrolled(CELLS[kind], from_zeros), 0.5)
    x = torch.randn(200, 6, 5)
    exported = ts.export_c(model, x[:2], tmp_path / "net.h")
    counts = [layer.topology.nnz for layer in model.modules() if isinstance(layer, ts.SparseLinear)]
    want = expected(model, x)
    assert np.abs(called(exported, x.numpy(), want.shape[1:]) - want).max() < 1e-5
    assert sum(row.connections for row in exported.rows) == sum(counts)
    assert exported.multiply_adds == 6 * sum(counts[:-1]) + counts[-1]
    assert sum("again" in row.operation for row in exported.rows) == 10
    text = exported.path.read_text()
    assert text.count("_input_values[") == 2
    assert "again" in text


def test_a_layer_that_is_called_twice_has_its_weights_once(tmp_path):
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    model = sparse(nn.Sequential(layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(8, 8)), 0.5)
    x = torch.randn(100, 8)
    exported = ts.export_c(model, x[:2], tmp_path / "net.h")
    assert np.abs(called(exported, x.numpy(), (8,)) - expected(model, x)).max() < 1e-5
    assert exported.path.read_text().count("_values[") == 2


@pytest.mark.parametrize("compiler", COMPILERS)
def test_compilers_take_cells_without_a_warning(compiler, tmp_path):
    needs(COMPILERS[compiler][0])
    lines = []
    for kind, cell in CELLS.items():
        model = sparse(Unrolled(cell, False, steps=2), 0.7)
        ts.export_c(model, torch.randn(2, 2, 5), tmp_path / f"{kind}.h")
        lines.append(f'#include "{kind}.h"\n{run_of(kind, "float", 10, 3).replace("run", f"run_{kind}")}')
    (tmp_path / "net.c").write_text("\n".join(lines))
    compiled((*COMPILERS[compiler], "-O2", *WARNINGS, "-c", "-o", tmp_path / "net.o", tmp_path / "net.c"))


def test_cells_that_have_no_c(tmp_path):
    x = torch.randn(20, 12)
    with pytest.raises(TypeError, match=r"layer 'cell' \(GRU cell\) has no int8 here, for a state of 8 bits forgets what changes slowly"):
        ts.export_c(Streamed(nn.GRUCell).eval(), x, tmp_path / "net.h", values="int8", calibration=[x])

    class Half(Streamed):
        def forward(self, x):
            h, _ = self.cell(x[:, :5], (x[:, 5:12], x.new_zeros(x.shape[0], 7)))
            return h

    with pytest.raises(TypeError, match="a state that the model hands on or zeros: of an LSTM both parts, or neither"):
        ts.export_c(Half(nn.LSTMCell).eval(), x, tmp_path / "net.h")
    assert not list(tmp_path.iterdir())
