"""`truesparse report` and the page at the end of `truesparse train`."""

import pytest

from truesparse.cli import train
from truesparse.cli.main import run

QUICKLY = ["digits-mlp", "--epochs", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        assert run(["train", *QUICKLY, "--algorithm", {"a": "rigl", "b": "set"}[name], "--out", str(folder / name)]) == 0
    return folder


def test_training_ends_with_a_page(runs):
    page = (runs / "a" / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "digits-mlp" in page


def test_a_large_run_names_the_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "QUICK", 1000)
    assert run(["train", *QUICKLY, "--out", str(tmp_path / "my run")]) == 0
    assert capsys.readouterr().out.endswith(f"See it with: truesparse report '{tmp_path / 'my run'}'\n")
    assert not (tmp_path / "my run" / "report.html").exists()


def test_a_page_that_cannot_be_written_is_no_failure_of_the_training(tmp_path, capsys):
    (tmp_path / "run" / "report.html").mkdir(parents=True)
    (tmp_path / "run" / "report.html").rmdir()
    assert run(["train", *QUICKLY, "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "run" / "report.html").unlink()
    (tmp_path / "run" / "report.html").mkdir()
    capsys.readouterr()
    assert run(["train", "--out", str(tmp_path / "run"), "--resume"]) == 0
    captured = capsys.readouterr()
    assert "truesparse: no page: cannot write" in captured.err
    assert captured.out.endswith(f"The run is in {tmp_path / 'run'}\n")


def test_one_run(runs, capsys):
    (runs / "a" / "report.html").unlink()
    assert run(["report", str(runs / "a")]) == 0
    assert capsys.readouterr().out == f"The page is {runs / 'a' / 'report.html'}\n"
    assert (runs / "a" / "report.html").exists()


def test_several_runs(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["report", str(runs / "a"), str(runs / "b")]) == 0
    assert capsys.readouterr().out == "The page is report.html\n"
    assert run(["report", str(runs / "a"), str(runs / "b"), "--out", "both.html"]) == 0
    assert (tmp_path / "both.html").read_text() == (tmp_path / "report.html").read_text(), "equal runs give equal pages"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "truesparse: expected the folder of a run of truesparse train, but nowhere does not exist\n"),
        (
            ["{a}", "--out", "no/page.html"],
            "truesparse: cannot write no/page.html: No such file or directory; choose another place with --out\n",
        ),
    ],
)
def test_what_cannot_be_done(runs, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run(["report", *(argument.format(a=runs / "a") for argument in arguments)]) == 1
    assert capsys.readouterr().err == said


def test_no_run_at_all(capsys):
    assert run(["report"]) == 2
    assert "RUN" in capsys.readouterr().err
