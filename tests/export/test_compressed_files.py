"""A compressed network comes back bit by bit, into models of every kind; damaged and hostile files are refused."""

import copy
import hashlib
import json
import os
import sys
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import Watched, images, network
from torch import nn

import truesparse as ts
from truesparse.export import FileError, SavedModel, contents
from truesparse.export.compressed.container import MARK, put_together, taken_apart
from truesparse.quantization import quantized_layers

pytest.importorskip("constriction", reason="the extra compress is not installed")

MAKE = {
    "floats": lambda model: model,
    "row": lambda model: ts.quantize(model, 8),
    "row, activations": lambda model: ts.quantize(model, 4, data=images(9)),
    "codebook": lambda model: ts.quantize(model, 2, by="codebook"),
    "half": lambda model: ts.quantize(model, {"0": 4, "5": 3}),
    "bfloat16": lambda model: model.to(torch.bfloat16),
}


def sparse(sparsity=0.7, seed=1, **settings):
    return ts.sparsify(network(), sparsity, generator=torch.Generator().manual_seed(seed), **settings).eval()


def equal(one, other):
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, array in states[0].items():
        if not name.endswith("rounding.trained") or one.get_submodule(name.rpartition(".")[0]).by == "codebook":
            assert torch.equal(array, states[1][name]), name
    for name, layer in ts.nn.topology_layers(one).items():
        assert torch.equal(layer.values, other.get_submodule(name).values)
        assert torch.equal(layer.values.view(torch.uint8), other.get_submodule(name).values.view(torch.uint8)), "also the signs of zeros"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "net.tsz"


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_bit_by_bit(make, path):
    model = make(sparse())
    report = ts.compress(model, path)
    assert report.nbytes == path.stat().st_size
    other = make(sparse(0.5, seed=2))
    assert ts.load(path, other) is other
    equal(model, other)
    saved = ts.load(path)
    assert isinstance(saved, SavedModel)
    for name, weights in quantized_layers(model).items():
        read = saved.layers[name].weights
        assert (read.by, read.bits, read.inputs, read.outputs) == (weights.by, weights.bits, weights.inputs, weights.outputs)
        assert torch.equal(read.numbers, weights.numbers)
        assert torch.equal(read.table, weights.table)
    assert ts.compress(saved, path).nbytes == report.nbytes, "what was read is what was written"
    equal(model, ts.load(path, make(sparse(0.5, seed=3))))


@pytest.mark.parametrize("make", [MAKE["row"], MAKE["codebook"]])
def test_into_models_of_every_kind(make, path):
    model, x = make(sparse()), images()
    ts.compress(model, path)
    for other in (sparse(0.5, seed=2), network().eval(), sparse(0.5, masked=True)):
        torch.testing.assert_close(ts.load(path, other)(x), model(x))
    trained = ts.load(path, sparse(0.5, seed=2))
    assert torch.equal(trained[5].values, model[5].values)
    assert isinstance(trained[5].values, nn.Parameter)


def test_activations_are_for_quantised_models(path):
    model = ts.quantize(ts.prune(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), 0.3), 8, data=torch.randn(9, 6))
    ts.compress(model, path)
    plain = ts.load(path, ts.prune(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)), 0.5))
    assert torch.equal(plain[0].values, model[0].values)
    with pytest.raises(
        FileError, match=r"layer '0' is by row with 8 bits, inputs rounded in the file, by row with 8 bits, inputs as they are"
    ):
        ts.load(path, ts.quantize(copy.deepcopy(plain), 8))
    with pytest.raises(FileError, match="by row with 8 bits, inputs rounded in the file, by codebook with 1 bits"):
        ts.load(path, ts.quantize(copy.deepcopy(plain), 1, "codebook"))
    ts.save(plain, path)
    with pytest.raises(FileError, match="layer '0' is not quantised in the file, by row with 8 bits, inputs as they are in the model"):
        ts.load(path, ts.quantize(copy.deepcopy(plain), 8))


def test_models_with_everything(path):
    class Everything(nn.Module):
        def __init__(self):
            super().__init__()
            self.empty = ts.SparseLinear(5, 4, sparsity=1.0)
            self.full = ts.SparseConv1d(2, 3, 2, sparsity=0.0, bias=False)
            self.pattern = ts.SparseLinear(8, 4, pattern=ts.NM(1, 2))
            self.dense = nn.Linear(3, 3)
            self.register_buffer("count", torch.tensor(7))
            self.register_buffer("truth", torch.tensor([True, False]))
            self.pattern.acting = torch.arange(16) % 3 > 0

    model = Everything()
    ts.compress(model, path)
    equal(model, ts.load(path, Everything()))
    assert ts.load(path).layers["pattern"].pattern == "NM(n=1, m=2)"
    quantised = ts.quantize(model, 3, by="codebook", exclude=["full"])
    ts.compress(quantised, path)
    other = ts.quantize(Everything(), 3, by="codebook", exclude=["full"])
    equal(quantised, ts.load(path, other))


def test_the_report(path):
    torch.manual_seed(0)
    model = nn.Sequential(ts.SparseLinear(700, 500, sparsity=0.9, bias=False), ts.SparseLinear(500, 200, sparsity=0.8))
    report = ts.compress(ts.quantize(model, 5, by="codebook"))
    assert report.coded <= 1.03 * report.entropy
    assert report.dense_nbytes == 4 * (700 * 500 + 500 * 200 + 200)
    assert report.ratio == report.dense_nbytes / report.nbytes
    first = report.layers[0]
    assert (first.connections, first.size, first.values) == (35_000, 350_000, "codebook, 5 bits")
    text = str(report)
    assert f"{8 * first.value_bytes / 35_000:.2f}" in text
    assert f"{first.gap_entropy / 35_000:.2f}" in text
    assert "<table" in report._repr_html_()
    assert sum(layer.nbytes for layer in report.layers) + report.tensor_bytes < report.nbytes
    assert ts.compress(nn.Sequential(nn.Linear(2, 2))).layers == ()


def test_without_the_library(path, monkeypatch):
    model = ts.quantize(sparse(), 2, by="codebook")
    ts.compress(model, path)
    monkeypatch.setitem(sys.modules, "constriction", None)
    for call in (lambda: ts.compress(model, path), lambda: ts.load(path)):
        with pytest.raises(ImportError, match=r"the coder of .* needs constriction, .*pip install 'truesparse\[compress\]'"):
            call()


def test_places(path, tmp_path):
    with pytest.raises(FileError, match="it is a folder; name a file in it"):
        ts.compress(sparse(), tmp_path)
    with pytest.raises(FileError, match="there is no folder"):
        ts.compress(sparse(), tmp_path / "no" / "net.tsz")
    with pytest.raises(FileError, match="cannot read"):
        ts.load(tmp_path / "absent.tsz")
    ts.compress(sparse(), path)
    with pytest.raises(FileError, match="is a compressed network: `truesparse compress"):
        contents(path)


def test_a_file_is_whole_or_not_there(path, monkeypatch):
    ts.compress(sparse(), path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError(5, "no power")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(FileError, match=r"cannot write .*: no power"):
        ts.compress(sparse(0.2), path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


SMALL = nn.ModuleDict({"layer": ts.SparseLinear(9, 4, sparsity=0.5, generator=torch.Generator().manual_seed(0))})
QUANTISED = ts.quantize(copy.deepcopy(SMALL), 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "whole.tsz"
    ts.compress(QUANTISED, path)
    with Watched():
        ts.load(path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged")


def outcome(folder, content):
    path = folder / "damaged.tsz"
    path.write_bytes(content)
    try:
        return ts.load(path)
    except FileError as error:
        said = str(error)
    assert "\n" not in said
    return said


def test_every_truncation_and_every_byte(whole, folder):
    for end in range(len(whole)):
        assert isinstance(outcome(folder, whole[:end]), str), end
        altered = bytearray(whole)
        altered[end] ^= 1 << end % 8
        assert isinstance(outcome(folder, bytes(altered)), str), end
    assert "SHA-256 differs" in outcome(folder, whole + b"\0")


def edited(whole, change):
    """The file with another description, and the right digest."""
    description, pieces = taken_apart(whole)
    rest = pieces.take(len(pieces._content) - pieces._at)
    replaced = change(description)
    return b"".join(put_together(description, [rest if replaced is None else replaced(rest)]))


def layer(**said):
    return lambda description: description["layers"]["layer"].update(said)


def arguments(**said):
    return lambda description: description["layers"]["layer"]["arguments"].update(said)


def array(place, **said):
    return lambda description: description["layers"]["layer"]["arrays"][place].update(said)


HOSTILE = {
    "version of tomorrow": (lambda d: d.update(version=2), "it has version 2 of the format, this program reads version 1"),
    "version of no kind": (lambda d: d.update(version=True), "it has version True"),
    "no layers": (lambda d: d.pop("layers") and None, "expected an object with version"),
    "more": (lambda d: d.update(more=1), "expected an object with version"),
    "half a layer": (lambda d: d["layers"]["layer"].pop("low") and None, "layer 'layer': expected an object with module"),
    "no low": (layer(low="1"), "expected an object with module"),
    "unknown module": (layer(module="Embedding"), "expected one of the modules Linear"),
    "more rows": (arguments(out_features=2**31 - 1), "bytes cannot hold 2147483647 entries"),
    "too many rows": (arguments(out_features=2**31), "there is no layer with out_features=2147483648"),
    "columns without an end": (arguments(in_features=10**400), "there is no layer with in_features"),
    "fewer columns": (arguments(in_features=3), "cannot have 18 connections|lead to position"),
    "more connections than places": (layer(connections=37), "cannot have 37 connections"),
    "negative connections": (layer(connections=-1), "cannot have -1 connections"),
    "fewer connections": (layer(connections=17), "must end in a connection and have 17, got 18|bytes are not"),
    "many low bits": (layer(low=10**9), "a piece of .* bytes is not there"),
    "negative low bits": (layer(low=-8), "a piece of -18 bytes is not there"),
    "no gaps": (layer(gaps=[]), "gaps are a number of symbols and one of bytes"),
    "gaps in words": (layer(gaps=["18", 9]), "gaps are a number of symbols and one of bytes"),
    "gaps without an end": (layer(gaps=[18, 10**9]), "a piece of 1000000000 bytes is not there"),
    "a pattern it does not obey": (layer(pattern="NM(n=1, m=3)"), r"cannot have 18 connections|NM\(n=1, m=3\)"),
    "by a wish": (layer(by="tensor"), "expected numbers by row or codebook with 1 to 8 bits, got 'tensor'"),
    "a codebook": (layer(by="codebook"), "expected a codebook of at most 8 entries and numbers below"),
    "no bits": (layer(bits=0), "with 1 to 8 bits, got 'row' and 0"),
    "fewer bits": (layer(bits=2), "expected 4 scales above 0 and numbers up to 2, got 4 and"),
    "floats": (layer(by="", bits=0), "acting must say of each of 18 connections whether it acts"),
    "one array": (lambda d: d["layers"]["layer"]["arrays"].pop() and None, "expected 2 or 3 arrays, got 1"),
    "no shape": (array(0, shape=[]), r"expected 18 values, got shape \(\)|expected 1 symbols|CRC"),
    "a large shape": (array(0, shape=[2**40]), "cannot hold 1099511627776 entries"),
    "a negative shape": (array(0, shape=[-18]), "a tensor of uint8 has 1 planes and a shape"),
    "another dtype": (array(1, dtype="int32"), "expected numbers of one byte and a table of finite floats"),
    "unknown dtype": (array(1, dtype="complex64"), "expected a dtype of bool"),
    "planes of another": (array(0, dtype="int16"), "a tensor of int16 has 2 planes"),
    "half of activations": (layer(activations=[[1.0, 0]]), "activations are those of inputs and outputs"),
    "activations of nothing": (layer(activations=[[0.0, 0], [1.0, 0]]), "activations have a scale above 0"),
    "activations in words": (layer(activations=["1", "2"]), "activations have a scale above 0"),
    "activations out of int8": (layer(activations=[[1.0, 128], [1.0, 0]]), r"a zero point in \[-128, 127\]"),
    "no bias": (arguments(bias=False), "bias=False, but the file has a tensor for it"),
    "another bias": (
        lambda d: d["tensors"].update({"other": d["tensors"].pop("layer.bias")}),
        "bias=True, but the file has no tensor for it",
    ),
    "a name twice": (lambda d: d["tensors"].update({"layer.values": d["tensors"]["layer.bias"]}), "is not there|of its own"),
    "bytes after": (lambda d: lambda rest: rest + b"\0", "1 bytes follow that nothing is said of"),
    "bytes missing": (lambda d: lambda rest: rest[:-1], "is not there"),
}


@pytest.mark.parametrize(("change", "says"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(change, says, whole, folder):
    path = folder / "hostile.tsz"
    path.write_bytes(edited(whole, change))
    tracemalloc.start()
    try:
        with Watched() as watched, pytest.raises(FileError, match=f"cannot read .*hostile.tsz: .*(?:{says})"):
            ts.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000
    assert watched.largest < 1000


def test_an_edit_of_nothing_is_accepted(whole, folder):
    assert list(outcome(folder, edited(whole, lambda description: None)).layers) == ["layer"]


def signed(text, length=None, packed=None):
    """A file of any description."""
    packed = zlib.compress(text) if packed is None else packed
    rest = len(packed).to_bytes(4, "little") + (len(text) if length is None else length).to_bytes(4, "little") + packed
    return MARK + hashlib.sha256(rest).digest() + rest


TEXTS = {
    "not an object": (signed(b"[]"), "its description is no JSON object"),
    "no JSON": (signed(b"{"), "Expecting property name"),
    "no text": (signed(b"\xff"), "codec can't decode"),
    "too deep": (signed(b"[" * 100_000), "recursion"),
    "a name twice": (signed(b'{"version":1,"version":1}'), "its description says 'version' twice"),
    "no number": (signed(b'{"version":NaN}'), "has NaN, which is no JSON"),
    "longer than said": (signed(b'{"version":1}', length=3), "its description has not the 3 bytes that it says"),
    "a bomb": (signed(b" " * 10_000_000, length=100), "its description has not the 100 bytes that it says"),
    "a long one": (signed(b"{}", length=2**31), "its description has 2147483648 bytes, more than"),
    "not compressed": (signed(b"{}", packed=b"{}"), "its description is damaged"),
    "without layers": (signed(json.dumps({"version": 1}).encode()), "expected an object with version"),
}


@pytest.mark.parametrize(("content", "says"), TEXTS.values(), ids=TEXTS)
def test_descriptions_that_are_none(content, says, folder):
    found = outcome(folder, content)
    assert isinstance(found, str)
    assert any(word in found for word in says.split("|")), found


@settings(max_examples=100)
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_change_of_the_pieces_is_refused_or_read(whole, folder, edits):
    def change(description):
        def pieces(rest):
            altered = bytearray(rest)
            for at, byte in edits:
                altered[at % len(altered)] = byte
            return bytes(altered)

        return pieces

    found = outcome(folder, edited(whole, change))
    if not isinstance(found, str):
        assert found.layers["layer"].topology.nnz == SMALL["layer"].topology.nnz
        assert int(found.layers["layer"].weights.numbers.abs().max()) <= 3


def test_a_damaged_file_changes_no_model(whole, folder):
    path = folder / "damaged.tsz"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    model = copy.deepcopy(SMALL)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FileError, match="SHA-256 differs"):
        ts.load(path, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
