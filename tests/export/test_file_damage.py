"""A file that is damaged or hostile is refused with one error, before anything of the size it claims is there."""

import copy
import json
import math
import struct
import tracemalloc
import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from oracles import Watched, pairs_of
from oracles.files import WIDTHS, connections_of, put_together, taken_apart, whole_numbers
from torch import nn

import truesparse as ts
from truesparse.export import FileError, contents

GENERATOR = torch.Generator().manual_seed(3)
# A layer of each coding, a convolution, a norm, and a layer without a bias.
LAYERS = {
    "bits": ts.SparseConv2d(2, 3, (1, 2), sparsity=0.4, generator=GENERATOR),
    "norm": nn.BatchNorm2d(3),
    "gaps": ts.SparseLinear(40, 3, sparsity=0.95, bias=False, generator=GENERATOR),
    "full": ts.SparseLinear(3, 2, sparsity=0.0, pattern=ts.FanIn(), generator=GENERATOR),
}
MODEL = nn.ModuleDict(LAYERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def whole(folder):
    """The bytes of the file that is going to be damaged."""
    ts.save(MODEL, folder / "whole.safetensors")
    with Watched():  # torch imports half of itself when it is watched first; no test shall count that
        ts.load(folder / "whole.safetensors")
    return (folder / "whole.safetensors").read_bytes()


def outcome(folder, content):
    """What `load` gives for these bytes, or the text of its error."""
    path = folder / "damaged.safetensors"
    path.write_bytes(content)
    found, header = attempt(ts.load, path), attempt(contents, path)
    assert isinstance(found, str) or not isinstance(header, str), "what inspect refuses, load refuses"
    return found


def attempt(read, path):
    try:
        return read(path)
    except FileError as error:
        return str(error)


def test_the_examples_have_each_coding(whole):
    assert [said["coding"] for said in taken_apart(whole)[0]["layers"].values()] == ["bits", "gaps8", "full"]


def test_every_truncation(whole, folder):
    for end in range(len(whole)):
        said = outcome(folder, whole[:end])
        assert isinstance(said, str), end
        assert "\n" not in said
    assert isinstance(outcome(folder, whole + b"\0"), str)
    assert isinstance(outcome(folder, b"\x80\x04" + whole), str)


def test_every_byte(whole, folder):
    """Whichever bit is altered, in any byte of the file."""
    for at in range(len(whole)):
        altered = bytearray(whole)
        altered[at] ^= 1 << at % 8
        assert isinstance(outcome(folder, bytes(altered)), str), (at, whole[at : at + 20])


@settings(max_examples=200)
@given(edits=st.lists(st.tuples(st.integers(0, 10**6), st.binary(max_size=4), st.integers(0, 4)), min_size=1, max_size=4))
def test_cut_and_paste(whole, folder, edits):
    altered = whole
    for at, pasted, cut in edits:
        at %= len(altered) + 1
        altered = altered[:at] + pasted + altered[at + cut :]
    found = outcome(folder, altered)
    assert isinstance(found, str) == (altered != whole)


def edited(whole, change):
    """The file after `change(description, tensors)`, with the right digest."""
    description, tensors = taken_apart(whole)
    change(description, tensors)
    return put_together(description, tensors)


def layer(name, **said):
    return lambda description, _: description["layers"][name].update(said)


def arguments(name, **said):
    return lambda description, _: description["layers"][name]["arguments"].update(said)


def tensor(name, dtype, shape, array=None):
    """Sets a tensor; without bytes for it, to zeros."""
    size = WIDTHS[dtype]
    for extent in shape:
        size *= extent
    return lambda _, tensors: tensors.update({name: (dtype, shape, bytes(size) if array is None else array)})


def both(*changes):
    def change(description, tensors):
        for one in changes:
            one(description, tensors)

    return change


HOSTILE = {
    "version of tomorrow": (lambda d, _: d.update(version=2), "it has version 2 of the format, this program reads version 1"),
    "version of no kind": (lambda d, _: d.update(version=True), "it has version True of the format"),
    "no version": (lambda d, _: d.pop("version"), "it has version None of the format"),
    "no layers": (lambda d, _: d.pop("layers"), "its description must have sha256, version and layers, got 'sha256', 'version'"),
    "more than layers": (lambda d, _: d.update(more=1), "its description must have sha256, version and layers"),
    "layers of no kind": (lambda d, _: d.update(layers=[]), r"layers must be a JSON object, got \[\]"),
    "a layer of no kind": (lambda d, _: d["layers"].update(full="x"), "layer 'full': the description must be a JSON object"),
    "half a layer": (lambda d, _: d["layers"]["full"].pop("coding"), "expected module, arguments, pattern and coding, got"),
    "a layer that is not there": (lambda d, _: d["layers"].update(other=d["layers"]["full"]), "layer 'other': the file has no tensor"),
    "unknown module": (
        layer("full", module="Embedding"),
        "expected one of the modules Linear, Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d, got 'Embedding'",
    ),
    "unknown coding": (layer("full", coding="zip"), "expected one of the codings full, bits, gaps8, gaps16, got 'zip'"),
    "another coding": (layer("full", coding="bits"), "layer 'full': the file has no tensor 'full.bits'"),
    "too wide a coding": (layer("gaps", coding="gaps16"), "gaps must be one of U16, got U8"),
    "no coding": (layer("bits", coding="full"), "a full layer has 12 values, got 8"),
    "pattern of no kind": (layer("full", pattern=3), "pattern must be a JSON string, got 3"),
    "a pattern it does not obey": (layer("gaps", pattern="NM(n=1, m=2)"), r"NM\(n=1, m=2\) cannot have 6 connections in shape \(3, 40\)"),
    "blocks it does not have": (layer("gaps", pattern="Block(size=2)"), "needs rows divisible by 2"),
    "a pattern of nothing": (layer("gaps", pattern="NM(n=0, m=2)"), "NM needs 0 < n <= m"),
    "a pattern with other settings": (layer("gaps", pattern="FanIn(size=2)"), r"there is no pattern FanIn\(size=2\)"),
    "too many arguments": (arguments("full", device="cuda"), "Linear takes bias, in_features, out_features; got"),
    "too few arguments": (lambda d, _: d["layers"]["full"]["arguments"].pop("bias"), "Linear takes bias, in_features, out_features"),
    "a negative extent": (arguments("full", out_features=-2), "there is no layer with out_features=-2"),
    "a fraction": (arguments("full", out_features=2.0), "there is no layer with out_features=2.0"),
    "a truth": (arguments("full", out_features=True), "there is no layer with out_features=True"),
    "half a bias": (arguments("full", bias=1), "there is no layer with bias=1"),
    "no bias": (arguments("full", bias=False), "bias=False, but the file has a tensor for it"),
    "a bias that is not there": (arguments("gaps", bias=True), "bias=True, but the file has no tensor for it"),
    "a bias of another shape": (tensor("full.bias", "F32", [3]), r"expected a bias of shape \(2,\), got \(3,\)"),
    "more rows": (arguments("full", out_features=3), "a full layer has 9 values, got 6|one for each row"),
    "too many rows": (arguments("full", out_features=2**31), "there is no layer with out_features=2147483648"),
    "rows for a terabyte": (arguments("gaps", out_features=2**31 - 1), "expected 2147483647 row lengths, one for each row, got shape"),
    "too many columns": (arguments("bits", in_channels=2**31 - 1), "rows and columns lie in"),
    "columns for a petabyte": (arguments("bits", in_channels=2**30 - 1), "expected one dimension of 805306368 bits for 8 connections"),
    "columns without an end": (arguments("full", in_features=10**400), "there is no layer with in_features=1000"),
    "no kernel": (arguments("bits", kernel_size=[0, 2]), r"there is no layer with kernel_size=\[0, 2\]"),
    "a kernel of one extent": (arguments("bits", kernel_size=[2]), r"there is no layer with kernel_size=\[2\]"),
    "no stride": (arguments("bits", stride=[0, 1]), r"there is no layer with stride=\[0, 1\]"),
    "no dilation": (arguments("bits", dilation=[1, True]), r"there is no layer with dilation=\[1, True\]"),
    "negative padding": (arguments("bits", padding=[-1, 0]), r"there is no layer with padding=\[-1, 0\]"),
    "padding by a wish": (arguments("bits", padding="more"), "there is no layer with padding='more'"),
    "padding mode by a wish": (arguments("bits", padding_mode=["zeros"]), r"there is no layer with padding_mode=\['zeros'\]"),
    "groups of a half": (arguments("bits", groups=2), "there is no layer with groups=2"),
    "no groups": (arguments("bits", groups=0), "there is no layer with groups=0"),
    "whole values": (tensor("full.values", "I32", [6]), "values must be one of F16, BF16, F32, F64, got I32"),
    "values in a matrix": (tensor("full.values", "F32", [2, 3]), r"expected one dimension of at most 6 values, got shape \(2, 3\)"),
    "too many values": (tensor("full.values", "F32", [7]), r"expected one dimension of at most 6 values, got shape \(7,\)"),
    "too few values": (tensor("gaps.values", "F32", [5]), "lengths of its rows must add up to 5 connections"),
    "no values": (lambda _, t: t.pop("gaps.values"), "the file has no tensor 'gaps.values'"),
    "row lengths with a sign": (tensor("gaps.row_lengths", "I32", [3]), "row_lengths must be one of U8, U16, U32, got I32"),
    "row lengths of another row": (tensor("gaps.row_lengths", "U8", [4]), "expected 3 row lengths, one for each row, got shape"),
    "row lengths in a matrix": (tensor("gaps.row_lengths", "U8", [3, 1]), "expected 3 row lengths, one for each row, got shape"),
    "rows of other lengths": (tensor("gaps.row_lengths", "U8", [3], b"\x01\x01\x01"), "lengths of its rows must add up to 6 connections"),
    "row lengths that wrap": (
        tensor("gaps.row_lengths", "U32", [3], struct.pack("<3I", 2**32 - 1, 1, 6)),
        "lengths of its rows must add up to 6 connections, none longer than 40; they add up to 4294967302",
    ),
    "gaps out of the row": (tensor("gaps.gaps", "U8", [6], b"\x28" * 6), "gaps lead to column"),
    "gaps without an end": (tensor("gaps.gaps", "U8", [100], b"\xff" * 100), "gaps must end in a connection and have 6, got 0"),
    "too few gaps": (tensor("gaps.gaps", "U8", [5]), "expected one dimension of at least 6 gaps for 6 connections, got shape"),
    "too many gaps": (tensor("gaps.gaps", "U8", [7]), "gaps must end in a connection and have 6, got 7"),
    "bits of nothing": (tensor("bits.bits", "U8", [2]), "bits must mark 8 of 12 positions, they mark 0"),
    "bits outside": (tensor("bits.bits", "U8", [2], b"\x0f\xf0"), "bits must mark 8 of 12 positions, they mark 8"),
    "bits in other rows": (tensor("bits.bits", "U8", [2], b"\xff\x00"), "other numbers of connections in the rows"),
    "half of what acts": (tensor("gaps.acting", "BOOL", [5]), "acting must say of each of 6 connections whether it acts"),
    "what acts in numbers": (tensor("gaps.acting", "U8", [6]), "acting must be one of BOOL, got U8"),
    "neither true nor false": (tensor("gaps.acting", "BOOL", [6], b"\2" * 6), "'gaps.acting' must have bytes of 0 and 1"),
    "neither true nor false elsewhere": (tensor("more", "BOOL", [1], b"\2"), "'more' must have bytes of 0 and 1"),
    "rows that differ": (
        layer("gaps", pattern="FanIn()"),
        r"FanIn\(\) needs the same count, give or take one",
    ),
    "more than its coding": (tensor("gaps.bits", "U8", [15]), "a layer with coding gaps8 has no tensor 'bits'"),
    "what a state_dict has": (tensor("gaps.indices", "I32", [6]), "a layer with coding gaps8 has no tensor 'indices'"),
}


@pytest.mark.parametrize(("change", "says"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files(change, says, whole, folder):
    """Their digest is right: whoever wrote them can compute one."""
    path = folder / "hostile.safetensors"
    path.write_bytes(edited(whole, change))
    tracemalloc.start()
    try:
        with Watched() as watched, pytest.raises(FileError, match=f"cannot read .*hostile.safetensors: .*(?:{says})"):
            ts.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 500_000, "python and numpy"
    assert watched.largest < 1000, "torch"


def test_an_edit_of_nothing_is_accepted(whole, folder):
    """So that the files above are refused for what was changed."""
    found = outcome(folder, edited(whole, lambda description, tensors: None))
    assert list(found.layers) == ["bits", "gaps", "full"]
    found = outcome(folder, edited(whole, both(layer("gaps", pattern="Mine(size=3)"), tensor("more", "I64", []))))
    assert found.layers["gaps"].pattern == "Mine(size=3)", "what a user's own pattern means is not known"
    assert found.tensors["more"].shape == ()


TEXTS = {
    "no JSON": ("{", "Expecting property name"),
    "not an object": ("[]", r"the description must be a JSON object, got \[\]"),
    "too deep": ("[" * 100_000, "maximum recursion depth|recursion"),
    "a layer twice": ('{"sha256":"%s","version":1,"layers":{"a":{},"a":{}}}' % ("0" * 64), "its description says 'a' twice"),
    "no number": ('{"sha256":"%s","version":NaN,"layers":{}}' % ("0" * 64), "its description has NaN, which is no JSON"),
    "a number without an end": ('{"sha256":"","version":%s,"layers":{}}' % ("1" * 5000), "Exceeds the limit"),
    "no digest": ('{"version":1,"layers":{}}', "expected 64 hexadecimal digits of SHA-256, got None"),
    "an empty digest": ('{"sha256":"","version":1,"layers":{}}', "expected 64 hexadecimal digits of SHA-256, got ''"),
    "the digest of another": ('{"sha256":"%s","version":1,"layers":{}}' % ("a" * 64), r"its bytes are not those that were written"),
}


@pytest.mark.parametrize(("text", "says"), TEXTS.values(), ids=TEXTS)
def test_descriptions_that_are_none(text, says, folder):
    found = outcome(folder, put_together(text, {}))
    assert isinstance(found, str)
    with pytest.raises(AssertionError, match=says):
        raise AssertionError(found)


def test_extents_that_torch_cannot_have(whole, folder):
    for extent in (2**62, 2**64 - 1):
        found = outcome(folder, edited(whole, lambda _, tensors, extent=extent: tensors.update(x=("F32", [extent, 0], b""))))
        assert isinstance(found, str) or found.tensors["x"].numel() == 0


def test_files_of_others(folder):
    path = folder / "other.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(FileError, match=r"expected a file of truesparse.save, but its metadata has no entry 'truesparse'"):
        ts.load(path)
    head = json.dumps({"__metadata__": {"truesparse": json.dumps({"epoch": 3})}}).encode()
    path.write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(FileError, match=r"it is a file of a training run, not of truesparse.save: load it with model.load_state_dict"):
        ts.load(path)


NUMBERS = st.one_of(st.integers(-2, 50), st.sampled_from([2**31 - 1, 2**31, 2**63, 2.0, None, "x", True, [1, 1], [2, 2]]))


@st.composite
def changes(draw):
    """Changes of a description and its tensors that leave much of it whole."""
    name = draw(st.sampled_from(["bits", "gaps", "full"]))
    kind = draw(st.sampled_from(["argument", "said", "entries", "entries", "tensor", "rename"]))
    if kind == "argument":
        key = st.sampled_from(["in_features", "out_features", "in_channels", "out_channels", "kernel_size", "stride", "groups", "bias"])
        return arguments(name, **{draw(key): draw(NUMBERS)})
    if kind == "said":
        values = ["bits", "gaps8", "gaps16", "full", "Linear", "Conv2d", "FanIn()", "NM(n=1, m=1)", "Block(size=1)", "Block(size=3)", ""]
        return layer(name, **{draw(st.sampled_from(["module", "pattern", "coding"])): draw(st.sampled_from(values))})
    part = f"{name}.{draw(st.sampled_from(['values', 'row_lengths', 'gaps', 'bits', 'bias']))}"
    if kind == "rename":
        return lambda _, tensors: tensors.update({part: tensors.pop(next(iter(tensors)))})
    if kind == "entries":
        entries = draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=3))
        return lambda _, tensors: part in tensors and tensors.update({part: overwritten(tensors[part], entries)})
    dtype = draw(st.sampled_from(["U8", "U16", "U32", "F32", "BF16", "I32"]))
    return tensor(part, dtype, draw(st.lists(st.integers(0, 12), max_size=2)))


def overwritten(stored, entries):
    dtype, shape, array = stored
    array = bytearray(array)
    for at, byte in entries:
        if array:
            array[at % len(array)] = byte
    return dtype, shape, bytes(array)


@settings(max_examples=250)
@given(made=st.lists(changes(), min_size=1, max_size=3))
def test_any_change_is_refused_or_read_as_the_slow_reader_reads_it(made, whole, folder):
    content = edited(whole, both(*made))
    found = outcome(folder, content)
    description, tensors = taken_apart(content)
    if isinstance(found, str):
        return
    for name, saved in found.layers.items():
        said = description["layers"][name]
        part = {"bits": "bits", "full": None}.get(said["coding"], "gaps")
        positions = whole_numbers(*tensors[f"{name}.{part}"][::2]) if part else []
        lengths = whole_numbers(*tensors[f"{name}.row_lengths"][::2])
        assert pairs_of(saved.topology) == connections_of(saved.topology.shape, said["coding"], lengths, positions)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            weight = getattr(nn, said["module"])(**said["arguments"], device="meta").weight
        assert saved.topology.shape == (weight.shape[0], math.prod(weight.shape[1:]))
        assert saved.values.numel() == saved.topology.nnz
        assert tensors[f"{name}.values"][2] == saved.values.view(torch.uint8).numpy().tobytes()


def test_a_damaged_file_changes_no_model(whole, folder):
    path = folder / "damaged.safetensors"
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    model = copy.deepcopy(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(3.0)
    with pytest.raises(FileError, match=r"its bytes are not those that were written \(SHA-256 differs\); get the file again"):
        ts.load(path, model)
    assert all(bool((parameter == 3.0).all()) for parameter in model.parameters())
