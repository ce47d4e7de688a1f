"""The C of floats gives what PyTorch gives, and every compiler takes it without a warning."""

import re
import subprocess

import numpy as np
import pytest
import torch
from c_build import COMPILERS, NETWORKS, WARNINGS, Perceptron, called, compiled, needs, run_of, settled, sparse
from torch import nn

import truesparse as ts

SAMPLES = 1000


@torch.no_grad()
def expected(model, x):
    """By the dense network of torch: none of our kernels."""
    return ts.densify(model)(x).numpy()


@pytest.mark.parametrize("sparsity", [0, 0.8, 0.98])
@pytest.mark.parametrize("kind", NETWORKS)
def test_equals_torch(kind, sparsity, tmp_path):
    model = sparse(settled(NETWORKS[kind](), *NETWORKS[kind]().shape), sparsity)
    x = torch.randn(SAMPLES, *model.shape)
    exported = ts.export_c(model, x[:3], tmp_path / "net.h")
    want = expected(model, x)
    assert np.abs(called(exported, x.numpy(), want.shape[1:]) - want).max() < 1e-5


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("values", ["float32", "int8"])
@pytest.mark.parametrize("kind", ["residual", "wrist", "lstm"])
def test_compilers_take_it_without_a_warning(kind, values, compiler, tmp_path):
    needs(COMPILERS[compiler][0])
    model = sparse(settled(NETWORKS[kind](), *NETWORKS[kind]().shape), 0.7)
    x = torch.randn(20, *model.shape)
    ts.export_c(model, x, tmp_path / "net.h", values=values, calibration=[x] if values == "int8" else None)
    (tmp_path / "net.c").write_text('#include "net.h"\n' + run_of("net", "float", 1, 1))
    compiled((*COMPILERS[compiler], "-O2", *WARNINGS, "-c", "-o", tmp_path / "net.o", tmp_path / "net.c"))


def layer_of(columns, kept, rows=3):
    """A linear layer with these columns connected in its middle row, and nothing in the others."""
    model = nn.Sequential(nn.Linear(columns, rows))
    with torch.no_grad():
        mask = torch.zeros_like(model[0].weight)
        mask[1, kept] = 1
        model[0].weight *= mask
    return ts.sparsify(model, sparsity=None, from_weights=True).eval()


@pytest.mark.parametrize(
    ("columns", "kept"),
    [(1, []), (3, [0]), (257, [0, 256]), (1030, [255, 510, 766, 1029]), (1100, [256, 512, 1023]), (2000, [1999]), (600, [])],
)
def test_rows_without_connections_and_long_ways(columns, kept, tmp_path):
    model = layer_of(columns, kept)
    x = torch.randn(50, columns)
    exported = ts.export_c(model, x, tmp_path / "net.h")
    assert np.abs(called(exported, x.numpy(), (3,)) - expected(model, x)).max() < 1e-5


def test_a_convolution_without_connections_and_one_of_far_channels(tmp_path):
    model = nn.Sequential(nn.Conv2d(70, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 2, bias=False)).eval()
    with torch.no_grad():
        weight = torch.zeros_like(model[0].weight)
        weight[1, 0, 0, 0], weight[1, 60, 2, 2], weight[3, 69, 1, 1] = 1.5, -2.0, 0.5  # 548 columns apart
        model[0].weight.copy_(weight)
        model[2].weight[1] = 0
    model = ts.sparsify(model, sparsity=None, from_weights=True)
    x = torch.randn(20, 70, 5, 4)
    exported = ts.export_c(model, x, tmp_path / "net.h")
    want = expected(model, x)
    assert np.abs(called(exported, x.numpy(), want.shape[1:]) - want).max() < 1e-5


@pytest.mark.filterwarnings("ignore:Using padding='same' with even")
def test_more_zeros_on_one_side(tmp_path):
    model = sparse(nn.Sequential(nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)), nn.ReLU(), nn.Conv2d(3, 2, 2, stride=3)), 0.5)
    x = torch.randn(20, 2, 5, 7)
    exported = ts.export_c(model, x, tmp_path / "net.h")
    want = expected(model, x)
    assert np.abs(called(exported, x.numpy(), want.shape[1:]) - want).max() < 1e-5


def test_the_model_is_left_as_it_is(tmp_path):
    model = sparse(Perceptron(), 0.9).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ts.export_c(model, torch.randn(2, *Perceptron.shape), tmp_path / "net.h")
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Named(nn.Module):
    """Modules that are called as functions, types, tables and keywords of C are."""

    def __init__(self):
        super().__init__()
        self.linear, self.matrix, self.static = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 4)
        self.static_values, self.MEMORY = nn.Linear(4, 4), nn.Linear(4, 3)
        self.predict = nn.ModuleDict({"IN": nn.Linear(3, 3)})
        self.predict_in = nn.Linear(3, 2)
        self.add_module("ends */ this /* and begins", nn.Linear(2, 2))

    def forward(self, x):
        return getattr(self, "ends */ this /* and begins")(self.named(x).sigmoid())

    def named(self, x):
        x = self.static(self.matrix(self.linear(x).sigmoid())).tanh()
        return self.predict_in(self.predict["IN"](self.MEMORY(self.static_values(x).sigmoid())).sigmoid())


def test_names_of_modules_are_no_trouble(tmp_path):
    x = torch.randn(30, 4)
    model = sparse(Named(), 0.5)
    exported = ts.export_c(model, x, tmp_path / "static-net 2.h")
    assert exported.name == "static_net_2"
    assert np.abs(called(exported, x.numpy(), (2,)) - expected(model, x)).max() < 1e-5


def test_calls_without_a_pointer_are_refused_and_memory_may_be_yours(tmp_path):
    needs("gcc")
    exported = ts.export_c(sparse(Perceptron(), 0.9), torch.randn(1, *Perceptron.shape), tmp_path / "net.h")
    (tmp_path / "main.c").write_text(
        """
#define NET_STORAGE static
#include "net.h"
#include <string.h>
int main(void)
{
    static float x[930] = {1.0f}, y[5], z[5], memory[NET_MEMORY / sizeof(float)];
    if (net_predict(NULL, y) != -1 || net_predict(x, NULL) != -1 || net_predict_in(x, y, NULL) != -1)
        return 1;
    if (net_predict(x, y) != 0 || net_predict_in(x, z, memory) != 0)
        return 2;
    return memcmp(y, z, sizeof y) == 0 ? 0 : 3;
}
"""
    )
    compiled(("gcc", "-std=c99", *WARNINGS, "-o", tmp_path / "main", tmp_path / "main.c", "-lm"))
    assert subprocess.run([tmp_path / "main"], check=False).returncode == 0
    assert f"#define NET_MEMORY {exported.memory} " in exported.path.read_text()


def test_the_comment_tells_what_the_table_tells_and_the_lines_are_short(tmp_path):
    exported = ts.export_c(sparse(NETWORKS["residual"](), 0.8), torch.randn(2, 3, 16, 13), tmp_path / "net.h")
    text = exported.path.read_text()
    assert all(f"   {line}" in text for line in str(exported).splitlines())
    assert max(map(len, text.splitlines())) <= 140
    assert re.search(r"^int net_predict|^   int net_predict\(const float \*x, float \*y\)$", text, re.MULTILINE)
    assert exported.multiply_adds < sum(row.dense_multiply_adds for row in exported.rows)


def test_multiply_adds_and_flash_by_hand(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(18, 4)).eval()
    with torch.no_grad():
        weight = torch.zeros(2, 1, 3, 3)
        weight[0, 0, 1, 1], weight[1, 0, 0, 0] = 1.0, 2.0  # sees all 9 positions; only 4 of them
        model[0].weight.copy_(weight)
        weight = torch.zeros(4, 18)
        weight[0, :2] = weight[2, 3] = weight[3, 17] = 1.0
        model[2].weight.copy_(weight)
    exported = ts.export_c(ts.sparsify(model, sparsity=None, from_weights=True), torch.randn(1, 1, 3, 3), tmp_path / "net.h")
    conv, linear = exported.rows
    assert (conv.multiply_adds, conv.dense_multiply_adds) == (13, 2 * (9 + 4 * 6 + 4 * 4))
    assert conv.flash == 2 * 5 + 2 * 1 + 2 * 4 + 9 * 10  # connections, counts, biases, positions of the kernel
    assert (linear.connections, linear.multiply_adds, linear.weights) == (4, 4, 72)
    assert linear.flash == 4 * 5 + 4 * 1 + 4 * 4
    assert exported.memory == 2 * 9 * 4


def test_dense_layers_stay_dense_where_that_is_smaller(tmp_path):
    model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 5)).eval()
    ts.export_c(model, torch.randn(1, 20), tmp_path / "net.h")
    assert "gaps[" not in (tmp_path / "net.h").read_text()


def test_the_same_network_gives_the_same_bytes(tmp_path):
    model = sparse(NETWORKS["wrist"](), 0.8)
    for name in ("one", "two"):
        ts.export_c(model, torch.randn(1, 21, 6), tmp_path / f"{name}.h", name="net")
    assert (tmp_path / "one.h").read_bytes() == (tmp_path / "two.h").read_bytes()
