"""A small run, logged, that can be stopped and gone on with; and a logger that remembers what it was told."""

import json
import os
import signal

import pytest

from truesparse.loggers import Logger
from truesparse.loggers.destinations import Destination, destination
from truesparse.loggers.run_log import RunLog
from truesparse.runs import Observers, load_recipe, make_config, resume, start

CHOSEN = {"epochs": 3, "batch_size": 300, "every": 2, "threads": 1, "variants": ("dense", "sparse"), "until": 1.0}


class Heard(Logger):
    """Everything it was told, in order. A class for each test: `Heard.made` are the instances."""

    made: list

    def __init__(self, subject):
        self.subject, self.calls = subject, []
        type(self).made.append(self)

    def settings(self, values):
        self.calls.append(("settings", dict(values)))

    def scalars(self, values, step):
        self.calls.append(("scalars", step, dict(values)))

    def histogram(self, name, distribution, step):
        self.calls.append(("histogram", step, name, distribution))

    def image(self, name, image, step):
        self.calls.append(("image", step, name, image))

    def results(self, values):
        self.calls.append(("results", dict(values)))

    def close(self):
        self.calls.append(("close",))


class Stopper:
    """Sends this process a signal after a step."""

    def __init__(self, stop_at):
        self.stop_at = stop_at

    def begin(self, plan):
        pass

    def step(self, report):
        if (report.variant, report.epoch, report.step) == self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)

    def epoch(self, metrics):
        pass


@pytest.fixture
def heard():
    """A kind of `Heard` of its own, and its destination."""
    kind = type("OwnHeard", (Heard,), {"made": []})
    return kind, Destination("logger", "here", kind)


@pytest.fixture
def logged_run(tmp_path):
    """Starts a run in tmp_path/run that is logged, or goes on with it; gives the outcome and what was warned of."""

    def logged_run(*destinations, stop_at=None, again=False, **chosen):
        folder, warnings, stopper = tmp_path / "run", [], Stopper(stop_at)
        with RunLog(folder, destinations, warnings.append) as log:
            observers = Observers((stopper, log))
            if again:
                outcome = resume(folder, {}, observers)
            else:
                recipe = load_recipe("digits-mlp")
                outcome = start(make_config("digits-mlp", recipe.settings, {**CHOSEN, **chosen}), recipe, folder, observers)
            log.end(outcome)
        return outcome, warnings

    return logged_run


@pytest.fixture
def lines(tmp_path):
    """The lines of metrics.jsonl of a variant, by epoch."""

    def lines(variant="sparse"):
        found = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
        return {line["epoch"]: line for line in found if line["variant"] == variant}

    return lines


@pytest.fixture
def to():
    return destination
