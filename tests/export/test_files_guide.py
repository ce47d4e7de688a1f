"""docs/guide/files.md says what is: its reader reads, its table is what its program prints."""

import contextlib
import io
import re
from pathlib import Path

import torch
from torch import nn

import truesparse as ts

PAGE = (Path(__file__).parents[2] / "docs" / "guide" / "files.md").read_text()


def program(beginning):
    """The block of Python that begins so."""
    (found,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if block.startswith(beginning))
    return found


def test_the_reader(tmp_path):
    generator = torch.Generator().manual_seed(0)
    model = nn.ModuleDict(
        {
            "full": ts.SparseLinear(5, 4, sparsity=0.0, generator=generator),
            "bits": ts.SparseConv2d(4, 6, (2, 3), groups=2, sparsity=0.6, bias=False, generator=generator),
            "gaps8": ts.SparseLinear(700, 9, sparsity=0.99, generator=generator),
            "gaps16": ts.SparseLinear(90_000, 9, sparsity=0.99999, generator=generator),
            "part": nn.Sequential(nn.BatchNorm1d(3), ts.SparseLinear(3, 2, sparsity=1.0)),
        }
    )
    topology = model["gaps8"].topology
    ts.rewire(model["gaps8"], None, ts.Move.through(topology, topology, topology, acting=torch.rand(topology.nnz) < 0.5))
    scope: dict = {}
    exec(program("import json\n"), scope)
    for network in (model, model["gaps8"]):
        ts.save(network, tmp_path / "net.safetensors")
        weights, tensors = scope["read"](tmp_path / "net.safetensors")
        layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, ts.SparseLinear | ts.SparseConv2d)}
        assert weights.keys() == layers.keys()
        for name, layer in layers.items():
            assert torch.equal(torch.from_numpy(weights[name]), layer.to_dense().detach().flatten(1))
        others = {
            name: array
            for name, array in network.state_dict().items()
            if name.split(".")[-1] not in ("values", "indptr", "indices", "fingerprint", "acting")
        }
        assert tensors.keys() == others.keys()
        assert all(torch.equal(torch.from_numpy(tensors[name]), array) for name, array in others.items())
    codings = {name: layer.topology for name, layer in ts.load(tmp_path / "net.safetensors").layers.items()}
    assert codings.keys() == {""}


def test_the_table_of_sizes():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(program("import tempfile\n"), {})
    table = PAGE.split("<!-- sizes -->\n")[1].split("<!-- /sizes -->")[0]
    assert printed.getvalue().splitlines() == table.splitlines()[2:]
