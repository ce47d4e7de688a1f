"""The page of a network that was pruned before: what each round removed, and how sensitive its layers are; damaged files are told."""

import json

import pytest
from browser import Browser, executable

from truesparse.report import read_run, write_page
from truesparse.runs import RunError

ROUNDS = [
    {"sparsity": 0.0, "accuracy": 0.97, "layers": {"1": 8192, "3": 8192, "5": 640}},
    {"sparsity": 0.5, "accuracy": 0.96, "layers": {"1": 4000, "3": 4192, "5": 320}},
    {"sparsity": 0.9, "accuracy": 0.91, "layers": {"1": 800, "3": 838, "5": 64}},
]
PRUNING = {"rounds": ROUNDS, "sensitivity": {name: [[0.0, 0.97], [0.9, 0.5]] for name in ("1", "3", "5")}, "criterion": "magnitude"}


@pytest.fixture
def pruned(copied):
    (copied / "pruning.json").write_text(json.dumps(PRUNING))
    return copied


def test_is_read(pruned):
    assert read_run(pruned).pruning == PRUNING


def test_a_network_that_was_not_trained_since_is_a_run_too(pruned):
    for name in ("metrics.jsonl", "results.json"):
        (pruned / name).unlink()
    found = read_run(pruned)
    assert found.notes == ("pruned, and not trained since",)
    assert set(found.metrics.values()) == {()}


@pytest.mark.parametrize(
    "damage", [{"rounds": [{"sparsity": 0.5}]}, {"sensitivity": 3}, {"rounds": [*ROUNDS, {**ROUNDS[0], "layers": {}}]}]
)
def test_a_damaged_file_is_named(pruned, damage):
    (pruned / "pruning.json").write_text(json.dumps({**PRUNING, **damage}))
    with pytest.raises(RunError, match=r"pruning\.json is damaged"):
        read_run(pruned)


@pytest.mark.skipif(
    executable() is None, reason="no Chromium on this machine: apt-get install chromium, or name one in TRUESPARSE_CHROMIUM"
)
def test_the_page_shows_it(pruned, digits, tmp_path):
    browser = Browser(tmp_path / "profile")
    try:
        for runs, heading in (([pruned], "What pruning removed"), ([digits, pruned], "What pruning removed: copied")):
            write_page([read_run(run) for run in runs], tmp_path / "page.html")
            browser.open(tmp_path / "page.html")
            assert browser.value("document.querySelector('#pruning-0 h2').textContent") == heading
            cells = browser.value(
                "[...document.querySelectorAll('#pruning-0 tbody tr')].map(row => [...row.cells].map(cell => cell.innerText))"
            )
            assert cells[0] == ["1", "8,192", "−4,192", "−3,200", "800\n9.77\u00a0%"]
            assert cells[-1] == ["all", "17,024", "−8,512", "−6,810", "1,702\n10\u00a0%"]
            assert browser.value("document.querySelectorAll('#pruning-0 svg path.line').length") == 7
        for name in ("metrics.jsonl", "results.json"):
            (pruned / name).unlink()
        write_page([read_run(pruned)], tmp_path / "page.html")
        browser.open(tmp_path / "page.html")
        assert browser.value("[...document.querySelectorAll('section')].map(one => one.id)") == ["pruning-0", "settings"]
        assert browser.complaints() == []
    finally:
        browser.close()
