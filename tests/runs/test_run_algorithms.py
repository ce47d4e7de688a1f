"""Which algorithm a run has, and on which terms: a user's own file, presets, patterns, algorithms that prune on the way."""

import dataclasses
import json

import pytest
import torch

from truesparse import Block, FanIn, SharedFanIn, Unstructured
from truesparse.algorithms import ALGORITHMS
from truesparse.cli.main import run
from truesparse.nn import topology_layers
from truesparse.runs import ConfigError, RunConfig, RunError, make_config, resume
from truesparse.runs.algorithm import algorithm_kind, algorithm_sha256, full_name, short_name, usual_terms
from truesparse.runs.config import as_text, changed_options
from truesparse.runs.made import made_variant
from truesparse.runs.presets import PRESETS

OWN = '''
"""Shuffle: everything goes, anything grows. My own 2025, https://example.org"""

from dataclasses import dataclass
from typing import Literal

from truesparse import Topology


@dataclass(frozen=True)
class Shuffle:
    """All connections drawn anew."""

    share: float = 0.5
    way: Literal["up", "down"] = "up"

    def update(self, topology, signals):
        kept = signals.pattern.drop(topology, signals.values.abs(), int(self.share * topology.nnz))
        return signals.pattern.grow_random(kept, topology.nnz, signals.generator)
'''

PRUNER = """
from dataclasses import dataclass
from truesparse import FanIn

@dataclass(frozen=True)
class Pruner:
    sparsity: float = 0.5
    start_sparsity: float = 0.25
    default_pattern = FanIn()
    each_step = True

    def update_network(self, layers, memory):
        return {name: signals.topology for name, signals in layers.items()}, memory
"""


@pytest.fixture
def own(write_recipe):
    return write_recipe(OWN, "own_rule.py")


def test_an_own_file_is_an_algorithm(own, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = RunConfig("t", algorithm="own_rule.py", algorithm_settings={"share": "0.25", "way": "down"})
    assert config.algorithm == own, "found again from any folder"
    assert dataclasses.astuple(config.make_algorithm()) == (0.25, "down")
    assert RunConfig.from_json(json.loads(as_text(config, {}))) == config
    assert short_name(own) == "own-rule"
    assert algorithm_kind(own) is algorithm_kind(own), "run once"
    with pytest.raises(ConfigError, match="--set: way of own-rule must be up or down, got 'left'"):
        RunConfig("t", algorithm=own, algorithm_settings={"way": "left"})
    with pytest.raises(ConfigError, match="--set: own-rule has no setting 'fraction'; it has share, way"):
        RunConfig("t", algorithm=own, algorithm_settings={"fraction": 0.1})


def test_an_own_file_may_register_and_is_not_listed_among_the_packages_own(write_recipe):
    text = OWN.replace("from dataclasses import dataclass", "from truesparse.algorithms import register").replace(
        "@dataclass(frozen=True)", "@register"
    )
    path = write_recipe(text, "own_rule.py")
    before = dict(ALGORITHMS)
    assert algorithm_kind(path)().share == 0.5
    write_recipe(text.replace("0.5", "0.75"), "own_rule.py")
    assert algorithm_kind(path)().share == 0.75, "another text is another algorithm"
    assert before == ALGORITHMS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", r"the algorithm own_rule\.py must define one class with update\(topology, signals\), found none"),
        (OWN + OWN.replace("class Shuffle", "class Other"), r"must define one class .*, found Shuffle, Other"),
        ("import nowhere", r"the algorithm own_rule\.py could not be imported, own_rule\.py:1: ModuleNotFoundError"),
        ("class A(:", r"the algorithm own_rule\.py is not Python: line 1: "),
        (OWN.replace("@dataclass(frozen=True)", ""), r"the settings of Shuffle in own_rule\.py can change: put @dataclass\(frozen=True\)"),
        (OWN.replace("@dataclass(frozen=True)", "@dataclass"), r"the settings of Shuffle in own_rule\.py can change"),
        (OWN.replace("share: float = 0.5", "share: float"), r"settings of Shuffle in own_rule\.py need default values; share has none"),
    ],
)
def test_files_that_are_no_algorithm(write_recipe, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        RunConfig("t", algorithm=write_recipe(text, "own_rule.py"))
    assert "\n" not in str(caught.value)


def test_no_such_file():
    with pytest.raises(ConfigError, match=r"cannot read the algorithm .*absent\.py: No such file or directory"):
        RunConfig("t", algorithm="absent.py")
    with pytest.raises(
        ConfigError, match=r"unknown 'riggle'; known are .*rigl.*, rigl-itop, set-itop, or give the path of your own, FILE\.py"
    ):
        RunConfig("t", algorithm="riggle")
    assert (full_name("rigl"), algorithm_sha256("rigl")) == ("rigl", None)


def test_a_run_notices_that_its_algorithm_has_changed(begin, own, write_recipe, tmp_path, listener):
    begin(tmp_path / "run", listener(("sparse", 2, 3)), algorithm=own)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["algorithm"], config["algorithm_sha256"]) == (own, algorithm_sha256(own))
    write_recipe(OWN.replace("share: float", "part: float"), "own_rule.py")  # which the settings of the run do not fit either
    with pytest.raises(RunError, match=r"the algorithm .*own_rule\.py has changed since the run in .*run began: restore it, or start anew"):
        resume(tmp_path / "run", {}, listener())
    (tmp_path / "own_rule.py").unlink()
    with pytest.raises(ConfigError, match=r"cannot read the algorithm .*own_rule\.py"):
        resume(tmp_path / "run", {}, listener())
    write_recipe(OWN, "own_rule.py")
    assert resume(tmp_path / "run", {"algorithm": own}, listener()).results is not None


@pytest.mark.parametrize("name", PRESETS)
def test_presets_stand_for_what_they_say(name):
    preset = PRESETS[name]
    config = make_config("t", {"every": 20, "until": 0.5}, {"algorithm": name})
    assert config.algorithm == preset.algorithm
    assert preset.algorithm_settings.items() <= config.algorithm_settings.items()
    assert (config.every, config.until) == (preset.settings["every"], 1.0), "before what a recipe sets"
    own = make_config("t", {}, {"algorithm": name, "every": 7, "algorithm_settings": {"fraction": "0.1"}})
    assert (own.every, own.algorithm_settings["fraction"]) == (7, 0.1), "after what the user chooses"
    assert make_config("t", {"algorithm": name, "every": 9}, {}).every == 9
    assert changed_options(config, {"algorithm": name}) == []
    assert changed_options(config, {"algorithm": "static"})[0].startswith(f"--algorithm {preset.algorithm}, not static")


def test_itop_has_the_settings_of_the_authors_commands():
    """Liu et al. 2021: the intervals of their README, the rate 0.5 and its cosine to the end of training of their code."""
    rigl, set_ = (make_config("t", {}, {"algorithm": name}) for name in ("rigl-itop", "set-itop"))
    assert (rigl.every, rigl.until, rigl.algorithm_settings) == (4000, 1.0, {"fraction": 0.5})
    assert (set_.every, set_.until, set_.algorithm_settings) == (1500, 1.0, {"fraction": 0.5, "grown_std": 0.0, "decay": True})


@pytest.mark.parametrize(
    ("text", "pattern"), [("fan-in", FanIn()), ("shared-fan-in:8", SharedFanIn(8)), ("block:2", Block(2)), ("unstructured", Unstructured())]
)
def test_patterns_reach_the_model(text, pattern):
    config = RunConfig("t", pattern=text, sparsity=0.75, exclude=("1",))
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 3))
    (layer,) = topology_layers(made_variant("sparse", config, model)).values()
    assert layer.pattern == pattern
    assert RunConfig("t").make_pattern() == Unstructured()
    with pytest.raises(ConfigError, match="--pattern: unknown pattern 'spotted'; known: unstructured, fan-in"):
        RunConfig("t", pattern="spotted")


def test_an_algorithm_that_prunes_gets_the_runs_sparsity_and_its_own_beginning(write_recipe):
    path = write_recipe(PRUNER, "pruner.py")
    config = RunConfig("t", algorithm=path, sparsity=0.75, budget="uniform")
    assert config.algorithm_settings == {"start_sparsity": 0.25}, "the sparsity is said once"
    assert config.make_algorithm().sparsity == 0.75
    assert dataclasses.replace(config, sparsity=0.5).make_algorithm().sparsity == 0.5
    assert config.steps_between_rewirings(500) == 1
    model = made_variant("sparse", config, torch.nn.Linear(8, 16))
    assert model.topology.nnz == 96, "of 128: a quarter is left out, not three"
    assert model.pattern == FanIn()
    assert RunConfig("t", algorithm=path, pattern="unstructured").make_pattern() == Unstructured()
    with pytest.raises(ConfigError, match="--set: the sparsity of pruner is the run's: give --sparsity"):
        RunConfig("t", algorithm=path, algorithm_settings={"sparsity": 0.5})
    with pytest.raises(ConfigError, match="--epsilon: pruner prunes to a sparsity; give --sparsity instead"):
        RunConfig("t", algorithm=path, epsilon=20, budget="er")


def test_algorithms_lists_presets_and_terms(capsys):
    assert run(["algorithms"]) == 0
    shown = capsys.readouterr().out
    for expected in ("rigl-itop", "--every 4000", "set-itop", "--every 1500", "2102.02887", "each epoch", "every 100 steps", "decay=False"):
        assert expected in shown


def test_each_algorithm_rewires_as_long_as_its_paper_unless_the_user_says_otherwise():
    to_the_end = {"set", "snfs", "deepr", "cht", "chts"}
    for name in ALGORITHMS:
        expected = 1.0 if name in to_the_end else 0.95 if name == "dsr" else 0.75
        assert make_config("t", {}, {"algorithm": name}).rewiring_ends == expected
        assert make_config("t", {"until": 0.6}, {"algorithm": name}).rewiring_ends == 0.6
        assert make_config("t", {"until": 0.6}, {"algorithm": name, "until": 0.3}).rewiring_ends == 0.3
        assert (" to " in usual_terms(ALGORITHMS[name])[0]) == (expected != 0.75)
    assert usual_terms(ALGORITHMS["dsr"])[0] == "every 100 steps, to 95% of the training"
