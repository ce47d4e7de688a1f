"""Runs in several processes: as in one, stopped, killed, gone on with by others."""

import json
import os
import signal
import warnings
from pathlib import Path

import pytest
import torch
from pairs import answers
from processes import Command
from safetensors.torch import load_file

from truesparse.cli.main import run
from truesparse.distributed import Processes
from truesparse.runs import Observers, load_recipe, make_config, resume, start

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")

RECIPE = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

settings = {"epochs": 3, "batch_size": 14, "every": 3, "learning_rate": 0.01, "sparsity": 0.6, "threads": 1}


def model():
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 4)).double()


def data():
    x = torch.randn(99, 8, dtype=torch.float64)
    return TensorDataset(x, x[:, :4].argmax(1)), TensorDataset(x, x[:, :4].argmax(1))


def augment(inputs, generator):
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator, dtype=torch.float64)
"""
EPOCHS, STEPS = 3, 8  # the last batch of an epoch has one sample: a process has none


class Stopper:
    """Sends this process a signal after a step."""

    def __init__(self, at):
        self.at, self.steps = at, 0

    def begin(self, plan):
        pass

    def step(self, report):
        self.steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch(self, metrics):
        pass


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "mine.py").write_text(RECIPE)
    return load_recipe(str(tmp_path / "mine.py"))


def lines_of(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def assert_same(path, expected):
    """Two runs have the same topologies, and the same numbers but for rounding."""
    found, others = ({str(file.relative_to(one)) for file in one.rglob("topologies/*")} for one in (path, expected))
    assert found == others
    for name in found:
        here, there = load_file(path / name), load_file(expected / name)
        assert all(torch.equal(here[key], there[key]) for key in there)
    for here, there in zip(lines_of(path), lines_of(expected), strict=True):
        for name in ("train_loss", "test_loss", "test_accuracy", "connections", "rewirings"):
            assert here[name] == pytest.approx(there[name], abs=1e-10)
    here, there = (load_file(one / "sparse" / "model.safetensors") for one in (path, expected))
    for name in there:
        torch.testing.assert_close(here[name], there[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("algorithm", ["rigl", "granet"])
def test_two_processes_make_the_run_of_one_and_one_or_three_go_on_with_it(recipe, tmp_path, algorithm):
    config = make_config(recipe.task, recipe.settings, {"algorithm": algorithm})
    start(config, recipe, tmp_path / "alone", Observers(()))

    def both(rank):
        warnings.simplefilter("ignore")
        processes = Processes.of()
        whole = start(config, recipe, tmp_path / "two", Observers(()), processes)
        stopped = start(config, recipe, tmp_path / "stopped", Stopper(11 if rank == 1 else -1), processes)
        return whole.results is None, stopped.results is None, stopped.stopped_by

    assert answers(both) == [(False, True, None), (True, True, "SIGINT")]
    assert_same(tmp_path / "two", tmp_path / "alone")
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (tmp_path / "stopped").rglob("*"):
        if file.is_file():
            (copy / file.relative_to(tmp_path / "stopped")).parent.mkdir(parents=True, exist_ok=True)
            (copy / file.relative_to(tmp_path / "stopped")).write_bytes(file.read_bytes())
    assert resume(tmp_path / "stopped", {}, Observers(())).results is not None
    assert_same(tmp_path / "stopped", tmp_path / "alone")
    three = answers(lambda rank: resume(copy, {}, Observers(()), Processes.of()).results is None, processes=3)
    assert three == [False, True, True]
    assert_same(copy, tmp_path / "alone")


def workers_of(pid):
    """The processes that train: all that are below the command and have none below them."""
    children = [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [worker for child in children for worker in (workers_of(child) or [child]) if trains(worker)]


def trains(pid):
    """Not the one that only watches over semaphores."""
    return b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked up in /proc")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes need two cores")
def test_a_killed_process_ends_the_run_with_one_line_and_the_run_goes_on(recipe, tmp_path):
    out = tmp_path / "run"
    with Command(["train", recipe.path, "--out", out, "--nproc", 2, "--epochs", 4000], OMP_NUM_THREADS="1") as command:
        command.until((out / "metrics.jsonl").exists)
        workers = workers_of(command.pid)
        os.kill(workers[-1], signal.SIGKILL)
        assert command.wait() == 1
        said = [line for line in command.err.splitlines() if line.startswith("truesparse: ")]
        assert len(said) == 1
        assert " of the run was killed (SIGKILL), and the others have ended; the files written before are whole. Go on with: " in said[0]
        assert "Traceback" not in command.err
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    before = len(lines_of(out))
    stopper = Stopper(2 * STEPS)
    assert resume(out, {}, stopper).stopped_by == "SIGINT"
    assert len(lines_of(out)) > before


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="two processes need two cores")
def test_a_run_of_two_processes_stops_when_asked(recipe, tmp_path):
    out = tmp_path / "run"
    with Command(["train", recipe.path, "--out", out, "--nproc", 2, "--epochs", 4000], OMP_NUM_THREADS="1") as command:
        command.until((out / "metrics.jsonl").exists)
        os.kill(command.pid, signal.SIGTERM)
        assert command.wait() == 130
        assert command.err.splitlines()[-1] == f"stopped by SIGTERM; go on with: truesparse train --out {out} --resume"
        assert "Traceback" not in command.err
    assert (out / "sparse" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--nproc", "0"], "--nproc must be from 1 to "),
        (["--nproc", "1000"], "--nproc must be from 1 to "),
        (["--nproc", "2", "--batch-size", "1"], "--nproc 2: a batch of 1 samples is shared out to the processes, at least one each"),
        (["--nproc", "2", "--threads", "2"], "--nproc 2 with --threads 2 asks for 4 of the 2 cores of this machine"),
    ],
)
def test_what_cannot_be_is_told_before_there_are_processes(recipe, tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.setattr("truesparse.runs.machine.cores", lambda: 2)
    assert run(["train", str(recipe.path), "--out", str(tmp_path / "run"), *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"truesparse: {said}")
    assert not (tmp_path / "run").exists()
