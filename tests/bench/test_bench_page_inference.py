"""Tables of inference, and where it begins to pay, from lines made by hand."""

import pytest

from truesparse.bench import Document, InferenceRow, read_document
from truesparse.bench.page import as_markdown
from truesparse.bench.page_inference import faster_from, inference_tables, short_of


def row(sparsity, packed, *, batch=1, layout="windows (2 steps, 32 columns)", **changes):
    """A line on which dense takes 1 s and the packed form is `packed` times as fast."""
    given = {
        "kind": "layer",
        "model": "8 -> 4",
        "pattern": "Unstructured()",
        "sparsity": sparsity,
        "connections": 10,
        "ablated": 0.0,
        "values": "float32",
        "batch": batch,
        "threads": 1,
        "seconds": {"dense": 1.0, "packed": 1 / packed},
        "times_as_fast": {"packed": packed},
        "csr": "",
        "layouts": {layout: 1},
        "bytes": 250,
        "dense_bytes": 1000,
        "file_bytes": 300,
        "dense_file_bytes": 1200,
        "largest_error": 2e-7,
        "rms_error": 1e-7,
        "accuracy": {},
    }
    return InferenceRow(**{**given, **changes})


def test_faster_from_is_the_lowest_from_which_on_it_holds():
    assert faster_from([row(0.5, 0.9), row(0.7, 1.2), row(0.6, 1.1)]) == 0.6
    assert faster_from([row(0.5, 1.3), row(0.6, 0.9), row(0.7, 1.2)]) == 0.7, "a lucky one below does not count"
    assert faster_from([row(0.5, 1.3), row(0.7, 0.99)]) is None
    assert faster_from([row(0.3, 1.01, layout="dense"), row(0.5, 1.3)]) == 0.5, "a dense layout is not sparse that pays"


def test_layers():
    rows = [row(0.5, 0.9), row(0.9, 4.04), row(0.9, 2.0, batch=16), row(0.5, 3.0, values="bfloat16"), row(0.8, 2.0, pattern="FanIn()")]
    (table,) = inference_tables(rows)
    assert table.splitlines() == [
        "| times as fast as dense | batch | threads | 50% | 80% | 90% | faster from |",
        "|---|---|---|---|---|---|---|",
        "| 8 -> 4 | 1 | 1 | 0.9 |  | 4.0 | 90% |",
        "| 8 -> 4 | 16 | 1 |  |  | 2.0 | 90% |",
        "| 8 -> 4, bfloat16 | 1 | 1 | 3.0 |  |  | 50% |",
        "| 8 -> 4, constant fan-in | 1 | 1 |  | 2.0 |  | 80% |",
    ]
    (table,) = inference_tables([row(0.5, 0.9)])
    assert table.endswith("| 8 -> 4 | 1 | 1 | 0.9 | above 50% |")


def test_windows_of_a_pattern_share_a_line():
    table, windows = inference_tables(
        [row(0.5, 0.9), row(0.8125, 4.0, pattern="NM(n=6, m=32)"), row(0.90625, 9.0, pattern="NM(n=3, m=32)")]
    )
    assert "N:32" not in table
    assert windows.splitlines()[0] == "| times as fast as dense | batch | threads | 81% | 91% | faster from |"
    assert windows.splitlines()[2] == "| 8 -> 4, N:32 | 1 | 1 | 4.0 | 9.0 | 81% |"


def test_ablated_layers_beside_all_rivals():
    def ablated(batch, **seconds):
        return row(0.8, 2.0, batch=batch, ablated=0.5, seconds={"dense": 1.0, "packed": 0.5, **seconds})

    good = ablated(1, ablated=0.6, csr=3.0, csr_features_first=1.5)
    short = ablated(4, ablated=0.4, csr=0.25)
    table, said = inference_tables([good, short])
    assert table.splitlines()[0].endswith("| batch | threads | 80% (50% ablated) |")
    assert table.splitlines()[2:] == ["| 8 -> 4 | 1 | 1 | 2.0 / 1.2 / 6.0 / 3.0 |", "| 8 -> 4 | 4 | 1 | 2.0 / 0.8 / 0.5 / - |"]
    assert short_of([good]) == []
    assert short_of([good, short, ablated(8, ablated=0.45)]) == [
        "dense without ablated neurons at 80%, 1 thread: batch 4 (0.80), 8 (0.90)",
        "torch CSR at 80%, 1 thread: batch 4 (0.50)",
    ]
    assert said == (
        "Not the fastest beside dense without ablated neurons at 80%, 1 thread: batch 4 (0.80); "
        "beside torch CSR at 80%, 1 thread: batch 4 (0.50)."
    )
    assert inference_tables([good])[1] == "The packed layer is the fastest of all in every cell."


def test_networks():
    seconds = {"dense": 6e-3, "masked": 8e-3, "packed": 2e-4}
    (table,) = inference_tables([row(0.9, 30.0, kind="network", model="net", seconds=seconds, batch=100)])
    assert table.splitlines()[2] == "| net | 100 | 1 | float32 | 6.00 ms | 8.00 ms | - | 200 us | **30.0** | **40.0** |"


def test_errors_of_narrow_values():
    narrow = {"values": "int8", "layout": "windows (gathered, int8)", "bytes": 100}
    rows = [
        row(0.8, 2.0),
        row(0.9, 2.0),
        row(0.8, 2.0, **narrow, largest_error=4e-3, rms_error=3e-3),
        row(0.9, 2.0, **{**narrow, "layout": "tiles"}, largest_error=5e-3, rms_error=1e-3),
    ]
    table = inference_tables(rows)[-1]
    assert table.splitlines()[2:] == [
        "| float32 | 8 -> 4 at 80%, 90% | 2 of 2 | 25.0%, 25.0% | 2.0e-07 | 1.0e-07 |",
        "| int8 | 8 -> 4 at 80%, 90% | 1 of 2 | 10.0%, 10.0% | 5.0e-03 | 3.0e-03 |",
    ]
    assert len(inference_tables([*rows, row(0.95, 2.0)])) == 1, "not every line was taken with several kinds"
    trained = {"kind": "network", "model": "net"}
    before = row(0.9, 2.0, **trained, accuracy={"before": 0.985, "packed": 0.985})
    after = row(0.9, 2.0, **trained, **narrow, accuracy={"before": 0.985, "packed": 0.9831})
    table = inference_tables([before, after])[-1]
    assert table.splitlines()[0].endswith("| accuracy | before |")
    assert table.splitlines()[3] == "| int8 | net at 90% | 1 of 1 | 10.0% | 2.0e-07 | 1.0e-07 | 98.31% | 98.50% |"


@pytest.fixture
def saved(tmp_path):
    machine = {"processor": "Abacus 9", "instruction_set": "avx2", "torch": "2.13.0"}
    document = Document("inference", machine, "float32", (), (row(0.5, 0.9), row(0.8, 3.0)))
    path = tmp_path / "x.json"
    path.write_text(document.to_json())
    return path, document


def test_documents_survive_the_disk_and_reach_the_page(saved):
    path, document = saved
    assert read_document(path) == document
    page = as_markdown([read_document(path)], None)
    assert page.startswith("Abacus 9, avx2, float32, torch 2.13.0.")
    assert "| 8 -> 4 | 1 | 1 | 0.9 | 3.0 | 80% |" in page
