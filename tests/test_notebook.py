"""What notebooks show: names are escaped, pictures show the connections and nothing else, nothing costs rows x columns."""

import io
import re
from base64 import b64decode
from html.parser import HTMLParser

import pytest
import torch
from oracles import topology_of
from PIL import Image
from torch import nn

import truesparse as ts
from truesparse.common.shown import MOST_ROWS, Table
from truesparse.runs import Results, VariantResult
from truesparse.topology.picture import SAFE, USUAL, connections_picture, densities, pixels

NASTY = '<script>alert("x")</script>&[bold]'


class Checked(HTMLParser):
    """Refuses elements that are not closed, and remembers what there is."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def picture_of(html):
    (content,) = re.findall(r"data:image/png;base64,([A-Za-z0-9+/=]+)", html)
    return Image.open(io.BytesIO(b64decode(content)))


def results():
    bytes_ = {"weights": 1000, "total": 1000}
    lines = [VariantResult(name, 1, 0.5, 1.0, 10, bytes_, 1.0, 2.0, 1.0, {"forward": 0.001}, 0.001, 1.0) for name in ("dense", "sparse")]
    machine = {"processor": NASTY, "instruction_set": "avx2", "threads": 1, "torch": "2"}
    return Results(NASTY, 100, machine, tuple(lines))


def packed():
    return ts.pack(nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(1, 8), tune=False)


SHOWN = {
    "topology": lambda: topology_of("x.x .x."),
    "linear": lambda: ts.SparseLinear(6, 4, sparsity=0.5),
    "masked linear": lambda: ts.MaskedLinear(6, 4, sparsity=0.5),
    "convolution": lambda: ts.SparseConv2d(3, 4, 3, padding=1, groups=1, sparsity=0.5),
    "masked convolution": lambda: ts.MaskedConv2d(2, 4, 3, sparsity=0.5),
    "half": lambda: ts.SparseLinear(6, 4).to(torch.float16),
    "summary": lambda: ts.summary(ts.sparsify(nn.Sequential(nn.Linear(8, 8)), 0.5)),
    "explanation": lambda: packed().explain(),
    "packed network": packed,
    "packed layer": lambda: next(module for module in packed().modules() if type(module).__name__ == "PackedLayer"),
    "results": results,
}


@pytest.mark.parametrize("name", SHOWN)
def test_html_is_well_formed_and_escaped(name):
    made = Checked(SHOWN[name]()._repr_html_())
    assert "script" not in made.tags
    assert "table" in made.tags


def test_what_is_said_of_layers():
    text = repr(ts.SparseLinear(6, 4, sparsity=0.5))
    assert text.startswith("SparseLinear(in_features=6, out_features=4, bias=True, connections=12, sparsity=0.5000, pattern=")
    convolution = ts.SparseConv2d(4, 8, 3, stride=2, padding=1, groups=2, sparsity=0.5)
    assert repr(convolution).startswith("SparseConv2d(4, 8, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), groups=2, bias=True, ")
    words = "".join(Checked(ts.SparseLinear(6, 4, sparsity=0.5)._repr_html_()).text)
    for expected in ("SparseLinear(in_features=6, out_features=4)", "12 of 24", "50.00%", "Unstructured()", "cpu.matrix", "4 x 6: white"):
        assert expected in words
    assert "none for its device and dtype" in ts.SparseLinear(6, 4).to(torch.float16)._repr_html_()
    assert "PackedLayer(in_features=8, out_features=6, " in repr(packed())


def test_the_picture_of_a_layer_is_its_mask():
    layer = ts.SparseLinear(60, 40, sparsity=0.9)
    image = picture_of(layer._repr_html_())
    white = torch.tensor(list(image.convert("L").tobytes())).view(40, 60)
    assert torch.equal(white == 255, layer.topology.mask())
    assert torch.equal(white == 0, ~layer.topology.mask())


@pytest.mark.parametrize("shape", [(5, 7), (16, 16), (33, 50), (1, 100)])
def test_densities_against_the_mask(shape, generator):
    """Cells that lie whole in the matrix, and those cut by its edge, are means of the mask."""
    mask = torch.rand(shape, generator=generator) < 0.3
    found = densities(shape, ts.Topology.from_mask(mask).keys, most=(16, 16))
    high, wide = (-(-extent // 16) for extent in shape)
    expected = [[cell.double().mean() for cell in strip.split(wide, 1)] for strip in mask.split(high, 0)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("palette", [USUAL, SAFE])
def test_colours_of_a_change(palette):
    old, new = topology_of("xx.. ..x."), topology_of("x.x. ..x.")
    both = old.keys[new.contains(old.keys)]
    dropped, grown = old.keys[~new.contains(old.keys)], new.keys[~old.contains(new.keys)]
    image = pixels((2, 4), both, dropped, grown, palette).tolist()
    black, white = [0, 0, 0], [255, 255, 255]
    assert image == [[white, list(palette.dropped), list(palette.grown), black], [black, black, white, black]]


def test_large_layers_cost_their_connections_only():
    """A dense array of these positions would take 10^12 bytes."""
    keys = torch.arange(1000) * (10**12 // 1000)
    topology = ts.Topology.from_keys((10**6, 10**6), keys)
    html = topology._repr_html_()
    assert len(html) < 20_000
    assert "each pixel stands for 7813 x 7813 positions" in html
    assert connections_picture(topology.shape, topology.keys).shape == (128, 128, 3)


def test_nothing_to_draw():
    for shape in ((0, 4), (4, 0), (0, 0)):
        html = ts.Topology.from_keys(shape, torch.empty(0, dtype=torch.int64))._repr_html_()
        assert "<img" not in html
    assert connections_picture((3, 4), torch.empty(0, dtype=torch.int64)).sum() == 0
    assert "<img" not in ts.SparseLinear(6, 4).to("meta")._repr_html_()


def test_tables():
    rows = tuple((NASTY, str(number)) for number in range(MOST_ROWS + 7))
    table = Table(("name", "n"), rows, ("all", "x"), frozenset({1}), title=NASTY, caption=NASTY)
    made = Checked(table.html())
    assert made.tags.count("tr") == 1 + MOST_ROWS + 1 + 1
    assert "script" not in made.tags
    assert "… 7 more …" in made.text
    assert NASTY in made.text
    assert "[bold]" in table.text(), "no markup is read from names"
