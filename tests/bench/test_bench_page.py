"""Documents survive the disk; tables go between markers; the plot is drawn."""

import pytest

from truesparse.bench import MemoryRow, StepRow, read_document
from truesparse.bench.page import as_markdown, break_even_lines, write_page
from truesparse.bench.plot import write_plot
from truesparse.runs import ConfigError

STEP = StepRow(
    network="net",
    density="epsilon 20",
    budget="er",
    sparsity=0.981,
    connections=5,
    batch=128,
    threads=2,
    every=100,
    seconds={"dense": 0.1, "masked": 0.2, "sparse": 0.01},
    plain_seconds={"dense": 0.1, "masked": 0.2, "sparse": 0.009},
    rewiring_seconds={"masked": 0.3, "sparse": 0.109},
    times_as_fast={"masked": 0.5, "sparse": 10.0},
    phases={"sparse": {"forward": 0.002, "backward": 0.004, "optimizer": 0.003, "rewiring": 0.001}},
    share_of_multiply_adds=0.1,
)
MEMORY = MemoryRow(3, 16384, 0.99, 8_053_065, 32, 2, {"weights": 1}, 26.31, 240_000_000, 1_190_000_000, 12_884_901_888, 0.1, 3.0)


@pytest.fixture
def curve(layer_row, document):
    rows = [layer_row(s, r, d) for s, r in ((0.5, 0.5), (0.8, 2.0), (0.9, 4.04)) for d in ("forward", "forward + backward")]
    return document(*rows, layer_row(0.9, 3.0, layer="other"))


def test_a_file_without_markers_is_left_alone(tmp_path, curve):
    path = tmp_path / "README.md"
    path.write_text("# a\n")
    with pytest.raises(ConfigError, match=r"README.md: expected <!-- bench -->"):
        write_page(path, "bench", as_markdown([curve], None))
    assert path.read_text() == "# a\n"
    with pytest.raises(ConfigError, match=r"cannot read .*absent: No such file"):
        write_page(tmp_path / "absent", "bench", "")


def test_the_tables(curve, document):
    page = as_markdown([curve, document(STEP), document(MEMORY)], "docs/x.png")
    for line in (
        "Abacus 9, avx2, float32, torch 2.13.0.",
        "| 8 -> 4 | 16 | 1 | 2.0 / 2.0 | 4.0 / 4.0 |  |  |",
        "| other | 16 | 1 |  | 3.0 / - |  |  |",
        "![Speed-up over dense against sparsity](docs/x.png)",
        "* 8 -> 4, batch 16, forward, 1 thread: as fast as dense at 68% sparsity",
        "| net, epsilon 20 (98.1% sparse) | 128 | 2 | 100.0 ms | 200.0 ms | 10.0 ms | **10.0** |",
        "| net, epsilon 20 (98.1% sparse) | 2 | 2.00 ms | 4.00 ms | 3.00 ms | 1.00 ms |",
        "| 3 layers of 16384 x 16384 at 99% | 8,053,065 | 26.3 | 1.19 GB (0.24 before) | 12.9 GB |",
    ):
        assert line in page, f"{line!r} not in\n{page}"


def test_break_even_that_is_not_among_the_points_is_said(layer_row, document):
    always = document(layer_row(0.5, 1.5), layer_row(0.9, 4.0))
    never = document(layer_row(0.5, 0.1), layer_row(0.9, 0.4))
    assert break_even_lines([always]) == ["8 -> 4, batch 16, forward, 1 thread: as fast as dense at 50% sparsity already, or below"]
    assert break_even_lines([never])[0].endswith("as fast as dense at none of the sparsities from 50% to 90%")
    assert break_even_lines([document(STEP)]) == []


def test_documents_survive_the_disk(tmp_path, curve, document):
    for number, written in enumerate((curve, document(STEP), document(MEMORY))):
        path = tmp_path / f"{number}.json"
        path.write_text(written.to_json())
        assert read_document(path) == written


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1, "command": "linear", "rows": [{"layer": 1}]}', '{"schema": 2}'])
def test_what_is_no_document_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json is"):
        read_document(path)
    with pytest.raises(ConfigError, match=r"cannot read .*absent\.json"):
        read_document(tmp_path / "absent.json")


def test_the_plot(tmp_path, curve, document, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")  # text stays text
    path = tmp_path / "images" / "speedup.png"
    write_plot(path, [curve])
    assert path.read_bytes().startswith(b"\x89PNG")
    write_plot(path.with_suffix(".svg"), [curve])
    drawn = path.with_suffix(".svg").read_text()
    for expected in (
        "forward, 1 thread: break-even at 68%",
        "forward + backward, 1 thread",
        "8 -&gt; 4, batch 16 (avx2)",
        "sparsity",
        ">90%<",
    ):
        assert expected in drawn
    with pytest.raises(ConfigError, match="a plot needs what `truesparse bench linear` or `conv` measured"):
        write_plot(path, [document(STEP)])
