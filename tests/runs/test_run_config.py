"""What can be asked for, and what is said to the rest."""

import json

import pytest
import torch

from truesparse.runs import ConfigError, RunConfig, make_config, task_names
from truesparse.runs.config import as_text, optimizers, option
from truesparse.topology.budgets import ER, ERK, Uniform


@pytest.mark.parametrize(
    ("chosen", "text"),
    [
        ({"sparsity": 1.0}, r"--sparsity must be in \[0, 1\), got 1\.0"),
        ({"sparsity": -0.1}, r"--sparsity must be in \[0, 1\), got -0\.1"),
        ({"sparsity": float("nan")}, r"--sparsity must be in \[0, 1\), got nan"),
        ({"sparsity": "much"}, "--sparsity must be a number, got 'much'"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, r"--epochs must be a whole number, got 1\.5"),
        ({"epochs": True}, "--epochs must be a whole number, got True"),
        ({"batch_size": 0}, "--batch-size must be at least 1, got 0"),
        ({"every": 0}, "--every must be at least 1, got 0"),
        ({"until": 0.0}, r"--until must be in \(0, 1\], got 0\.0"),
        ({"until": 1.1}, r"--until must be in \(0, 1\], got 1\.1"),
        ({"learning_rate": 0.0}, r"--lr must be greater than 0, got 0\.0"),
        ({"learning_rate": float("inf")}, "--lr must be greater than 0, got inf"),
        ({"weight_decay": -1.0}, r"--weight-decay must be at least 0, got -1\.0"),
        ({"warmup": -1.0}, r"--warmup must be at least 0 and less than the 5 epochs, got -1\.0"),
        ({"warmup": 5.0}, r"--warmup must be at least 0 and less than the 5 epochs, got 5\.0"),
        ({"clip": 0.0}, r"--clip must be greater than 0, got 0\.0"),
        ({"activation_l1": -1.0}, r"--activation-l1 must be at least 0, got -1\.0"),
        ({"activation_l2": float("inf")}, "--activation-l2 must be at least 0, got inf"),
        ({"decay_grace": -1}, r"--decay-grace must be from 0 to 2\^31 - 1, got -1"),
        ({"decay_grace": 3}, "--decay-grace goes with --weight-decay: without decay there is nothing to spare"),
        ({"ema": 1.0}, r"--ema must be in \[0, 1\), got 1\.0"),
        ({"seed": -1}, "--seed must be a whole number from 0"),
        ({"threads": 0}, "--threads must be at least 1, got 0"),
        ({"epsilon": 0.0}, r"--epsilon must be greater than 0, got 0\.0"),
        ({"epsilon": 20.0, "budget": "uniform"}, "--epsilon goes with the budgets er and erk, not with uniform"),
        ({"variants": ("sparse", "spars")}, "--compare: unknown 'spars'; known are dense, masked, sparse"),
        ({"variants": ("sparse", "sparse")}, "--compare must name each variant once, got sparse,sparse"),
        ({"variants": ()}, "--compare must name each variant once, got none"),
        ({"variants": "sparse"}, "--compare must be a list of names, got 'sparse'"),
        ({"algorithm": "riggle"}, "--algorithm: unknown 'riggle'; known are .*rigl.*set.*static"),
        ({"budget": "fair"}, "--budget: unknown 'fair'; known are uniform, er, erk"),
        ({"optimizer": "adm"}, "--optimizer: unknown 'adm'; known are .*adam, adamax, adamw"),
        ({"optimizer": "lbfgs"}, "--optimizer: unknown 'lbfgs'"),
        ({"schedule": "linear"}, "--schedule: unknown 'linear'; known are cosine, constant"),
        ({"algorithm_settings": {"fractoin": "1"}}, "--set: rigl has no setting 'fractoin'; it has fraction"),
        ({"algorithm_settings": {"fraction": "lots"}}, "--set: fraction of rigl must be a number, got 'lots'"),
        ({"algorithm_settings": {"fraction": "2"}}, r"--set: rigl: fraction .* lies in \[0, 1\], got 2\.0"),
        ({"algorithm_settings": 3}, "--set must be names with values, got 3"),
        ({"algorithm": "static", "algorithm_settings": {"a": "1"}}, "--set: static has no setting 'a'; it has none"),
    ],
)
def test_wrong_choices(chosen, text):
    with pytest.raises(ConfigError, match=text) as caught:
        RunConfig("digits-mlp", **chosen)
    assert "\n" not in str(caught.value)


def test_a_config_survives_its_file():
    config = RunConfig(
        "digits-mlp",
        variants=("dense", "sparse"),
        algorithm="set",
        algorithm_settings={"fraction": "0.2"},
        epsilon=20,
        budget="er",
        exclude=("0",),
    )
    assert config.algorithm_settings == {"fraction": 0.2, "grown_std": 0.0, "decay": False}, "defaults are written out: they may change"
    assert config.epsilon == 20.0
    assert RunConfig.from_json(json.loads(as_text(config, {}))) == config
    with pytest.raises(ConfigError, match="expected the settings of a run, got epoch"):
        RunConfig.from_json({"task": "digits-mlp", "epoch": 3})


def test_the_user_then_the_recipe_then_the_defaults():
    recipe = {"sparsity": 0.8, "epochs": 2, "budget": "er"}
    config = make_config("t", recipe, {"epochs": 7})
    assert (config.sparsity, config.epochs, config.budget, config.batch_size) == (0.8, 7, "er", 64)
    with pytest.raises(
        ConfigError, match=r"the recipe sets 'epoch', 'sparse', which are not settings; known are activation_l1, .*weight_decay"
    ):
        make_config("t", {"epoch": 3, "sparse": 1}, {})


def test_sparsity_and_epsilon_exclude_each_other():
    recipe = {"epsilon": 20, "budget": "er"}
    assert make_config("t", recipe, {}).make_budget() == ER(epsilon=20.0)
    assert make_config("t", recipe, {"budget": "erk"}).make_budget() == ERK(epsilon=20.0)
    assert make_config("t", recipe, {"sparsity": 0.9}).make_budget() == ER(), "who gives a sparsity wants that one"
    assert make_config("t", recipe, {"budget": "uniform"}).make_budget() == Uniform()
    with pytest.raises(ConfigError, match="--sparsity and --epsilon both say how many connections to keep; give one of them"):
        make_config("t", recipe, {"sparsity": 0.9, "epsilon": 5.0})


def test_another_algorithm_leaves_the_recipes_settings():
    recipe = {"algorithm": "set", "algorithm_settings": {"grown_std": 0.1}}
    assert make_config("t", recipe, {}).algorithm_settings["grown_std"] == 0.1
    assert "grown_std" not in make_config("t", recipe, {"algorithm": "rigl"}).algorithm_settings


def test_optimizers_are_torchs():
    assert optimizers()["adamw"] is torch.optim.AdamW
    assert not {"lbfgs", "sparseadam", "muon", "optimizer"} & set(optimizers())


def test_options_by_name():
    assert [option(name) for name in ("learning_rate", "variants", "batch_size")] == ["--lr", "--compare", "--batch-size"]


def test_tasks():
    assert set(task_names()) >= {"mnist-cnn", "mnist-mlp", "fashion-cnn", "cifar10-mlp", "digits-mlp"}
