"""The table of a model, against counting its arrays."""

import pytest
import torch
from oracles import network, topology_of
from torch import nn

from truesparse import SparseLinear, Uniform, sparsify, summary


def nbytes(module):
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("masked", [False, True])
def test_counts_and_bytes(masked):
    model = sparsify(network(), 0.75, Uniform(dense_first=False), exclude=("0",), masked=masked)
    found = {layer.name: layer for layer in summary(model).layers}
    assert list(found) == ["0", "3.0", "5", "7"]
    for name, shape in {"3.0": (8, 6, 3, 3), "5": (20, 32), "7": (5, 20)}.items():
        size = torch.Size(shape).numel()
        assert (found[name].shape, found[name].connections, found[name].sparsity) == (shape, size // 4, 0.75)
        assert found[name].nbytes == nbytes(model.get_submodule(name))
        assert found[name].pattern == "Unstructured()"
        assert found[name].kernel == "dense + mask" if masked else found[name].kernel.startswith("cpu.")
        assert found[name].kind == type(model.get_submodule(name)).__name__
    dense = found["0"]
    assert (dense.kind, dense.shape, dense.connections, dense.sparsity, dense.kernel) == ("Conv2d", (6, 2, 3, 3), 108, 0.0, "dense")


def test_totals_and_text():
    model = summary(sparsify(network(), 0.75, Uniform(dense_first=False)))
    assert (model.size, model.connections) == (1280, 320)
    assert model.sparsity == 0.75
    assert model.nbytes == sum(layer.nbytes for layer in model.layers)
    text = str(model)
    for word in ("SparseConv2d", "20 x 32", "160", "75.00%", "cpu.matrix", "Unstructured()", "320"):
        assert word in text


def test_ablated_neurons_are_counted():
    model = nn.Sequential(SparseLinear.from_dense(nn.Linear(4, 3), topology_of("xx.. .... xxx.")), nn.Linear(3, 2))
    found = summary(model)
    assert [layer.empty_rows for layer in found.layers] == [1, 0]
    assert found.empty_rows == 1
    assert "empty rows" in str(found)


def test_other_layers_and_no_layers():
    mixed = summary(nn.ModuleDict({"words": nn.Embedding(7, 3), "attention": nn.LSTM(2, 3), "norm": nn.BatchNorm1d(4)}))
    assert [(layer.name, layer.connections) for layer in mixed.layers] == [("words", 21), ("attention", 24 + 36)]
    nothing = summary(nn.ReLU())
    assert (nothing.layers, nothing.size, nothing.sparsity) == ((), 0, 0.0)
    assert summary(nn.Linear(3, 2)).layers[0].name == "(model)"


def test_a_layer_that_no_kernel_runs():
    model = sparsify(nn.Sequential(nn.Linear(30, 20)), 0.75).to(torch.float16)
    assert summary(model).layers[0].kernel == "none"
