"""`truesparse compare`: real runs of digits-mlp in processes. What is complete stays, what was interrupted goes on, what failed is said."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from statistics import mean, stdev

import pytest
from PIL import Image
from processes import PATIENCE, Command

from truesparse.cli.main import run
from truesparse.common.processor import cores

pytest.importorskip("matplotlib")

SMALL = ["--epochs", "1", "--seeds", "2", "--jobs", str(min(2, cores()))]


def files_of(path):
    """The networks and topologies of a run."""
    files = {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*.safetensors"))}
    assert files
    return files


def results_of(out, name):
    return json.loads((out / "runs" / name / "results.json").read_text())["variants"][0]


@pytest.fixture(scope="module")
def made(tmp_path_factory, own):
    """A comparison with an algorithm that raises: (folder, arguments, exit code)."""
    out = tmp_path_factory.mktemp("made") / "out"
    names = ",".join(["static", own["raising"], "rigl"])
    arguments = ["compare", "digits-mlp", "--algorithms", names, "--sparsity", "0.9,0.5", *SMALL, "--out", str(out)]
    return out, arguments, run(arguments)


def test_the_table_says_what_the_runs_came_to(made):
    out, _, code = made
    assert code == 1, "some have failed"
    page = (out / "comparison.md").read_text()
    for algorithm in ("static", "rigl"):
        cells = []
        for sparsity in (0.5, 0.9):
            found = [100 * results_of(out, f"{algorithm}-{sparsity}-seed{seed}")["test_accuracy"] for seed in (0, 1)]
            cells.append(f"{mean(found):.2f} ± {stdev(found):.2f}")
        assert f"| {algorithm} | {cells[0]} | {cells[1]} |" in page
    assert len(list((out / "runs").glob("dense-seed*"))) == 2, "once for each seed"
    document = json.loads((out / "comparison.json").read_text())
    assert [run["status"] for run in document["runs"]].count("complete") == 10
    assert {run["connections"] for run in document["runs"] if run["sparsity"] == 0.5 and run["status"] == "complete"} == {8512}


def test_what_failed_is_listed_with_its_reason_and_takes_nothing_with_it(made):
    page = (made[0] / "comparison.md").read_text()
    assert "| raising | failed | failed |" in page
    assert "* raising, 50%, seed 0: training of sparse failed in epoch 1, step 20, raising.py:9: KeyError: 'nothing\\nthere'" in page
    assert page.count("\n* ") == 4


def test_a_process_that_dies_takes_no_other_run_with_it(tmp_path, own, capsys):
    names = f"{own['dying']},static"
    few = ["--sparsity", "0.9", "--seeds", "1", "--epochs", "1", "--no-dense", "--out", str(tmp_path)]
    assert run(["compare", "digits-mlp", "--algorithms", names, *few]) == 1
    assert "failed: dying, 90%, seed 0: the process ended by SIGKILL (out of memory?)" in capsys.readouterr().err
    page = (tmp_path / "comparison.md").read_text()
    assert re.search(r"\| dying \| failed \|\n\| static \| \d+\.\d\d \|\n", page)


def test_the_picture_is_one(made):
    with Image.open(made[0] / "comparison.png") as picture:
        picture.load()
        assert picture.width > 500


def test_a_run_of_a_comparison_is_that_of_train(made, tmp_path):
    """Whatever ran in the process before, and however many run beside it."""
    train = ["train", "digits-mlp", "--epochs", "1", "--threads", "1", "--seed", "1", "--out", str(tmp_path / "run")]
    assert run([*train, "--algorithm", "rigl", "--sparsity", "0.9"]) == 0
    assert files_of(tmp_path / "run") == files_of(made[0] / "runs" / "rigl-0.9-seed1")


def test_what_is_complete_is_not_trained_again(made, capsys, own):
    out, arguments, _ = made
    before = {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("*") if "raising" not in str(file)}
    fewer = [argument if "static" not in argument else f"rigl,static,{own['slow']}" for argument in arguments]
    assert run(fewer) == 0
    said = capsys.readouterr()
    assert said.err.startswith("14 runs, 10 of them complete\n"), "another algorithm adds a row"
    assert len(said.err.splitlines()) == 1 + 4
    assert "slow 50% seed 0: test accuracy" in said.err
    assert all(file.stat().st_mtime_ns == at for file, at in before.items())
    page = (out / "comparison.md").read_text()
    assert page.index("| rigl |") < page.index("| static |") < page.index("| slow |")
    assert "raising" not in page
    # The same again trains nothing, and writes the same.
    machine = json.loads((out / "comparison.json").read_text())["machine"]
    assert run(fewer) == 0
    assert (out / "comparison.md").read_text() == page
    assert json.loads((out / "comparison.json").read_text())["machine"] == machine


def test_without_matplotlib_there_is_a_table(made, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(["compare", "digits-mlp", "--algorithms", "rigl", "--sparsity", "0.9", *SMALL, "--out", str(made[0])]) == 0
    shown = capsys.readouterr()
    assert "no picture: the picture needs matplotlib: pip install 'truesparse[bench]'" in shown.err
    assert "rigl" in shown.out


def test_compare_page(made, tmp_path, capsys):
    page = tmp_path / "docs" / "page.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- digits-mlp -->\nold\n<!-- /digits-mlp -->\nafter\n")
    assert run(["compare-page", str(made[0]), "--into", str(page), "--images", str(tmp_path / "docs" / "images")]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- digits-mlp -->\n1 epoch, batch 32")
    assert "](images/compare-digits-mlp.png)" in text
    assert "old" not in text
    assert (tmp_path / "docs" / "images" / "compare-digits-mlp.png").exists()
    page.write_text("nothing")
    assert run(["compare-page", str(made[0]), "--into", str(page), "--images", str(tmp_path)]) == 2
    assert "page.md: expected <!-- digits-mlp --> and, after it" in capsys.readouterr().err


def test_other_terms_in_one_folder_are_refused(made, capsys, tmp_path, own):
    out, _, _ = made
    contents = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    again = ["compare", "digits-mlp", "--algorithms", "rigl", "--sparsity", "0.9", *SMALL]
    (tmp_path / "note").write_text("x")
    cases = [
        ([*again, "--epochs", "2", "--out", str(out)], f"the comparison in {out} was made with --epochs 1, not 2: choose another --out"),
        ([*again, "--lr", "1", "--out", str(out)], f"the comparison in {out} was made with --lr 0.01, not 1.0: choose another --out"),
        ([*again, "--out", str(tmp_path)], f"the folder {tmp_path} is not empty and holds no comparison; choose another --out"),
        ([*again, "--out", str(tmp_path / "note")], f"cannot use {tmp_path / 'note'} as the comparison's folder: Not a directory"),
        (["compare", "mnist-mlp", "--out", str(out)], f"the comparison in {out} is of digits-mlp, not mnist-mlp; choose another --out"),
    ]
    for arguments, said in cases:
        assert run(arguments) == 2
        shown = capsys.readouterr()
        assert shown.err.startswith(f"truesparse: {said}"), shown.err
        assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == contents


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["compare"], "Missing argument 'task'."),
        (["compare", "minst"], "unknown task 'minst'; known are"),
        (["compare", "digits-mlp", "--algorithms", "riggle"], "--algorithm: unknown 'riggle'; known are"),
        (["compare", "digits-mlp", "--algorithms", "set,mine.py"], "cannot read the algorithm"),
        (["compare", "digits-mlp", "--algorithms", ""], "--algorithm: unknown ''"),
        (["compare", "digits-mlp", "--algorithms", "dense,set"], "--algorithms: the dense network is trained by itself"),
        (["compare", "digits-mlp", "--algorithms", "set,set"], "--algorithms must name each once, got set,set"),
        (
            ["compare", "digits-mlp", "--algorithms", "set:every"],
            "--algorithms: expected NAME:SETTING=VALUE, such as set:every=100, got 'set",
        ),
        (["compare", "digits-mlp", "--algorithms", "set:every=no"], "--algorithms: expected a number, got 'no' in 'set:every=no'"),
        (["compare", "digits-mlp", "--algorithms", "set:every=0"], "--every must be at least 1, got 0"),
        (["compare", "digits-mlp", "--algorithms", "set:fractoin=1"], "--set: set has no setting 'fractoin'"),
        (["compare", "digits-mlp", "--sparsity", "0.9,1"], "--sparsity must be in [0, 1), got 1.0"),
        (["compare", "digits-mlp", "--sparsity", "a"], "--sparsity must be numbers with commas between them, got 'a'"),
        (["compare", "digits-mlp", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["compare", "digits-mlp", "--jobs", "0"], f"--jobs must be from 1 to the {cores()} cores of this machine, got 0"),
        (["compare", "digits-mlp", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["compare", "digits-mlp", "--jobs", str(cores() + 1)], f"--jobs must be from 1 to the {cores()} cores of this machine"),
        (["compare", "digits-mlp", "--threads", "0"], "--threads must be at least 1, got 0"),
        (["compare", "digits-mlp", "--threads", str(cores() + 1)], f"--threads must be from 1 to the {cores()} cores of this machine"),
        (
            ["compare", "digits-mlp", "--algorithms", "set:fraction=1:fraction=0"],
            "--algorithms: fraction is given twice in",
        ),
        (["compare", "digits-mlp", "--pattern", "dots"], "--pattern: unknown pattern 'dots'"),
        (["compare-page", "absent", "--into", "x.md", "--images", "."], "cannot read absent/comparison.json: No such file"),
    ],
)
def test_wrong_requests_give_one_line(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith(f"truesparse: {said}"), shown.err
    assert list(tmp_path.iterdir()) == [], "nothing is begun"


def test_two_files_of_one_name_are_refused(tmp_path, own, capsys):
    (tmp_path / "slow.py").write_text(Path(own["slow"]).read_text())
    assert run(["compare", "digits-mlp", "--algorithms", f"{own['slow']},{tmp_path / 'slow.py'}", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "truesparse: --algorithms must name each once, got slow,slow\n"


def test_an_own_algorithm_that_changed_is_refused(made, capsys, own):
    out, arguments, _ = made
    file = Path(own["raising"])
    text = file.read_text()
    file.write_text(text + "# another\n")
    try:
        assert run(arguments) == 2
    finally:
        file.write_text(text)
    said, folder = capsys.readouterr().err, f"{out}/runs/raising-0.5-seed0"
    assert f"the algorithm {file} has changed since the run in {folder} began" in said
    assert said.endswith(f"or remove {folder} to train it anew\n")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="children are found in /proc")
def test_ctrl_c_and_a_kill_lose_nothing(tmp_path, own):
    out = tmp_path / "out"
    few = ["--sparsity", "0.9", "--seeds", "1", "--epochs", "4", "--no-dense", "--every", "1", "--out", str(out)]
    arguments = ["compare", "digits-mlp", "--algorithms", f"{own['slow']},gse", *few]
    checkpoint = out / "runs" / "slow-0.9-seed0" / "sparse" / "checkpoint.pt"

    def begun():
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        command = Command(arguments, SECONDS_OF_SLOW="0.01")
        command.until(lambda: checkpoint.exists() and checkpoint.stat().st_mtime_ns > before)
        return command

    with begun() as interrupted:
        at = time.time_ns()
        os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does
        assert interrupted.wait() == 130, interrupted.err
        assert interrupted.err.endswith("stopped by SIGINT; the same command goes on\n")
        assert "Traceback" not in interrupted.err
    assert checkpoint.stat().st_mtime_ns > at, "saved in the middle of an epoch"
    assert [run["status"] for run in json.loads((out / "comparison.json").read_text())["runs"]] == ["waiting", "waiting"]

    with begun() as killed:
        children = descendants_of(killed.pid)
        assert children
        killed.process.kill()
        killed.wait()
    end = time.monotonic() + PATIENCE
    while any(map(alive, children)):
        assert time.monotonic() < end
        time.sleep(0.01)

    assert run(arguments) == 0
    train = ["train", "digits-mlp", "--epochs", "4", "--threads", "1", "--every", "1", "--sparsity", "0.9", "--algorithm", own["slow"]]
    assert run([*train, "--out", str(tmp_path / "whole")]) == 0
    assert files_of(out / "runs" / "slow-0.9-seed0") == files_of(tmp_path / "whole")


def descendants_of(parent):
    children = children_of(parent)
    return [*children, *(each for child in children for each in descendants_of(child))]


def children_of(parent):
    """Processes begun by one, those that wait to be buried left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, owner = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(owner) == parent and state != "Z":
            found.append(int(path.parent.name))
    return found


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
