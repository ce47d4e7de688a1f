"""A run that is stopped, killed or starved of disk space goes on as if nothing had been: the same files, byte by byte."""

import errno
import json
import os
import signal

import pytest
import torch
from processes import Command

from truesparse.cli.main import run
from truesparse.common import files
from truesparse.runs import RunError, resume

COMPARED = ("dense", "masked", "sparse")
STOPS = [
    ("dense", 1, 3),  # before anything is on disk
    ("masked", 1, 10),  # after the last step of an epoch
    ("sparse", 2, 4),  # just before a rewiring
    ("sparse", 2, 5),  # just after it
    ("sparse", 3, 9),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The files of uninterrupted runs, each made once."""
    return {}


@pytest.mark.parametrize("stop_at", STOPS)
def test_resume_is_bit_equal(begin, tmp_path, listener, files_of, whole, stop_at):
    if "rigl" not in whole:
        begin(tmp_path / "whole", variants=COMPARED)
        whole["rigl"] = files_of(tmp_path / "whole")
    heard = listener(stop_at)
    outcome = begin(tmp_path / "run", heard, variants=COMPARED)
    assert (outcome.results, outcome.stopped_by) == (None, "SIGINT")
    assert heard.steps[-1] == stop_at, "the step under way is finished, no other begins"
    again = listener()
    assert resume(tmp_path / "run", {}, again).results is not None
    assert again.plan.done == len(heard.steps), "no step is done twice"
    assert again.plan.done + len(again.steps) == again.plan.total
    assert_equal_files(files_of(tmp_path / "run"), whole["rigl"])


def assert_equal_files(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


@pytest.mark.parametrize(("algorithm", "optimizer"), [("set", "sgd"), ("set", "adagrad"), ("static", "nadam"), ("rigl", "rmsprop")])
def test_resume_with_other_algorithms_and_optimizers(begin, tmp_path, listener, files_of, algorithm, optimizer):
    chosen = {"algorithm": algorithm, "optimizer": optimizer, "learning_rate": 0.01, "epochs": 2}
    begin(tmp_path / "whole", **chosen)
    begin(tmp_path / "run", listener(("sparse", 1, 7), signal.SIGTERM), **chosen)
    resume(tmp_path / "run", {}, listener())
    assert_equal_files(files_of(tmp_path / "run"), files_of(tmp_path / "whole"))


STABLE = {"warmup": 0.5, "clip": 1.0, "activation_l1": 1e-3, "activation_l2": 1e-3, "weight_decay": 0.1, "decay_grace": 4, "ema": 0.9}


@pytest.mark.parametrize(
    ("stop_at", "chosen"),
    [
        (("sparse", 1, 7), {"algorithm": "rigl", "optimizer": "adamw"}),  # looked at every second rewiring, and the first was at step 5
        (("masked", 1, 8), {"algorithm": "set", "optimizer": "sgd", "learning_rate": 0.01}),
        (("sparse", 2, 5), {"algorithm": "set", "optimizer": "adam", "every": 1}),
    ],
)
def test_resume_with_all_that_keeps_training_stable(begin, tmp_path, listener, files_of, stop_at, chosen):
    chosen = {**STABLE, **chosen, "variants": (stop_at[0],), "epochs": 2}
    begin(tmp_path / "whole", **chosen)
    begin(tmp_path / "run", listener(stop_at), **chosen)
    resume(tmp_path / "run", {}, listener())
    assert_equal_files(files_of(tmp_path / "run"), files_of(tmp_path / "whole"))
    assert f"{stop_at[0]}/average.safetensors" in files_of(tmp_path / "run")


def test_a_run_keeps_the_threads_it_began_with(begin, tmp_path, listener):
    """Other threads, other rounding: what torch chose is written down, and is used where it would choose otherwise."""
    chosen = {"threads": None, "epochs": 1}
    before = torch.get_num_threads()
    begin(tmp_path / "run", listener(("sparse", 1, 2)), **chosen)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["threads"] == before
    torch.set_num_threads(before + 1)
    resume(tmp_path / "run", {}, listener())
    assert torch.get_num_threads() == before


def test_stopped_again_and_again(begin, tmp_path, listener, files_of):
    begin(tmp_path / "whole", epochs=2)
    begin(tmp_path / "run", listener(("sparse", 1, 1)), epochs=2)
    for step in range(2, 21):
        outcome = resume(tmp_path / "run", {}, listener(("sparse", 1 + (step - 1) // 10, 1 + (step - 1) % 10)))
        assert (outcome.results is None) == (step < 20), "a signal after the last step of all stops nothing"
    assert_equal_files(files_of(tmp_path / "run"), files_of(tmp_path / "whole"))


def test_a_second_signal_is_not_caught(begin, tmp_path):
    class Impatient:
        def begin(self, plan):
            pass

        def step(self, report):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

        def epoch(self, metrics):
            pass

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore the signal
    try:
        with pytest.raises(KeyboardInterrupt):
            begin(tmp_path / "run", Impatient())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_resuming_a_finished_run_gives_its_results(begin, tmp_path, listener, files_of):
    before = begin(tmp_path / "run", epochs=1).results
    contents = files_of(tmp_path / "run")
    heard = listener()
    after = resume(tmp_path / "run", {}, heard).results
    assert heard.steps == []
    assert after.variants[0].test_loss == before.variants[0].test_loss
    assert files_of(tmp_path / "run") == contents


def test_metrics_lost_to_a_crash_come_back(begin, tmp_path, listener, files_of):
    """The process may die between the checkpoint and the metrics."""
    begin(tmp_path / "run", epochs=2)
    contents = files_of(tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines(keepends=True)[0])
    resume(tmp_path / "run", {}, listener())
    assert files_of(tmp_path / "run") == contents


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"", lambda content: b"x" * 100])
def test_a_damaged_checkpoint_is_named(begin, tmp_path, listener, damage):
    begin(tmp_path / "run", listener(("sparse", 2, 3)))
    path = tmp_path / "run" / "sparse" / "checkpoint.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"the checkpoint .*sparse/checkpoint\.pt is damaged \(.*\); restore it from a copy, or") as caught:
        resume(tmp_path / "run", {}, listener())
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_something_else_is_named(begin, tmp_path, listener):
    begin(tmp_path / "run", listener(("sparse", 2, 3)))
    torch.save({"model": {}}, tmp_path / "run" / "sparse" / "checkpoint.pt")
    with pytest.raises(RunError, match=r"the checkpoint .* is damaged"):
        resume(tmp_path / "run", {}, listener())


def test_a_checkpoint_cannot_run_code(begin, tmp_path, listener):
    begin(tmp_path / "run", listener(("sparse", 2, 3)))
    torch.save({"model": os.system}, tmp_path / "run" / "sparse" / "checkpoint.pt")
    with pytest.raises(RunError, match="is damaged"):
        resume(tmp_path / "run", {}, listener())


def test_a_damaged_config_is_named(begin, tmp_path, listener):
    begin(tmp_path / "run", listener(("sparse", 1, 3)))
    path = tmp_path / "run" / "config.json"
    for text, reason in (("{", "Expecting"), ("{}", "recipe_sha256"), ("[]", ""), (path.read_text().replace("epochs", "epoch"), "epoch")):
        path.write_text(text)
        with pytest.raises(RunError, match=rf"config\.json is damaged: .*{reason}.*restore it, or start anew"):
            resume(tmp_path / "run", {}, listener())


def test_nothing_to_resume(tmp_path, listener):
    with pytest.raises(RunError, match=r"there is no run to resume in .*nowhere: cannot read .*config\.json: No such file or directory"):
        resume(tmp_path / "nowhere", {}, listener())


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"sparsity": 0.5}, "--sparsity 0.8, not 0.5"),
        ({"epochs": 9, "learning_rate": 0.1}, "--epochs 3, not 9; --lr 0.003, not 0.1"),
        ({"variants": ("sparse", "dense")}, "--compare sparse, not sparse,dense"),
        ({"algorithm_settings": {"fraction": "0.5"}}, "--set fraction=0.3, not fraction=0.5"),
        ({"algorithm": "set"}, "--algorithm rigl, not set"),
        ({"threads": 2}, "--threads 1, not 2"),
        ({"task": "mnist-cnn"}, r"TASK .*mine\.py, not mnist-cnn"),
    ],
)
def test_changed_options_are_refused(begin, tmp_path, listener, chosen, text):
    begin(tmp_path / "run", listener(("sparse", 1, 3)))
    with pytest.raises(RunError, match=rf"the run in .* was started with .*{text}.*: leave the option out, or start anew"):
        resume(tmp_path / "run", chosen, listener())


def test_options_that_say_the_same_are_not(begin, tmp_path, listener):
    begin(tmp_path / "run", listener(("sparse", 1, 3)), epochs=1)
    same = {"sparsity": 0.8, "epochs": 1, "algorithm": "rigl", "algorithm_settings": {"fraction": "0.3"}, "threads": 1}
    assert resume(tmp_path / "run", same, listener()).results is not None


def test_a_changed_recipe_is_refused(begin, tmp_path, listener, write_recipe):
    begin(tmp_path / "run", listener(("sparse", 1, 3)))
    write_recipe((tmp_path / "mine.py").read_text() + "\n# changed\n")
    with pytest.raises(RunError, match=r"the recipe .*mine\.py has changed since the run in .* began: restore it"):
        resume(tmp_path / "run", {}, listener())


def test_a_folder_that_is_not_empty_is_refused(begin, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match=r"the folder .*full is not empty; choose another --out"):
        begin(tmp_path / "full")
    begin(tmp_path / "a run", epochs=1)
    with pytest.raises(RunError, match=r"is not empty; to go on with the run in it: truesparse train --out '.*/a run' --resume"):
        begin(tmp_path / "a run")


def test_an_impossible_folder(begin, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError, match=r"cannot use .*file as the run's folder: Not a directory; choose another --out"):
        begin(tmp_path / "file")
    with pytest.raises(RunError, match=r"cannot make the folder .*file/below: Not a directory|cannot use .*Not a directory"):
        begin(tmp_path / "file" / "below")


@pytest.mark.parametrize("writes", [4, 5, 6, 7, 8])
def test_a_full_disk_leaves_whole_files(begin, tmp_path, listener, files_of, monkeypatch, writes):
    begin(tmp_path / "whole", epochs=2)
    real, done = os.fsync, []

    def full(descriptor):
        done.append(descriptor)
        if len(done) > 2 * writes:  # each file is followed by its folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    text = r"cannot write .*: the disk is full; the files written before are whole\. Free space, then go on with: truesparse"
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "fsync", full)
        with pytest.raises(
            RunError,
            match=text,
        ):
            begin(tmp_path / "run", epochs=2)
    assert not list((tmp_path / "run").rglob("*.partial"))
    resume(tmp_path / "run", {}, listener())
    assert_equal_files(files_of(tmp_path / "run"), files_of(tmp_path / "whole"))


SLOW = """
import time


class Slow(nn.Module):
    def forward(self, x):
        if self.training:
            time.sleep(0.03)
        return x


fast = model
model = lambda: nn.Sequential(Slow(), fast())
"""


def test_killed_in_the_middle_of_an_epoch(write_recipe, recipe, tmp_path, files_of):
    path = write_recipe((tmp_path / "mine.py").read_text() + SLOW, "slow.py")
    assert run(["train", path, "--out", str(tmp_path / "whole")]) == 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    with Command(["train", path, "--out", tmp_path / "run"]) as command:
        command.until(metrics.exists)  # after the first epoch; the second takes 0.3 s at least
        command.process.kill()
        assert command.wait() == -signal.SIGKILL
    epochs = len(metrics.read_text().splitlines())
    assert epochs < 3, "it was killed before its end"
    (tmp_path / "run" / "sparse" / ".model.safetensors.x1.partial").write_text("half a file")
    with Command(["train", "--out", tmp_path / "run", "--resume"]) as command:
        assert command.wait() == 0
        assert f"{10 * epochs} of 30 steps behind" in command.err
    assert_equal_files(files_of(tmp_path / "run"), files_of(tmp_path / "whole"))
    assert not list((tmp_path / "run").rglob("*.partial"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_says_how_to_go_on(write_recipe, recipe, tmp_path, number):
    path = write_recipe((tmp_path / "mine.py").read_text() + SLOW, "slow.py")
    with Command(["train", path, "--out", tmp_path / "run", "--epochs", "200"]) as command:
        command.until((tmp_path / "run" / "metrics.jsonl").exists)
        os.kill(command.pid, number)
        assert command.wait() == 130
        said = command.err
    assert said.splitlines()[-1] == f"stopped by {number.name}; go on with: truesparse train --out {tmp_path / 'run'} --resume"
    assert (tmp_path / "run" / "sparse" / "checkpoint.pt").exists()
