"""A run on the digits, made once: dense, masked and truly sparse."""

import pytest
import torch

from truesparse.runs import Observers, load_recipe, make_config, start


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    path, before = tmp_path_factory.mktemp("runs") / "digits", torch.get_num_threads()
    recipe = load_recipe("digits-mlp")
    chosen = {"epochs": 3, "sparsity": 0.9, "every": 10, "threads": 1, "variants": ("dense", "masked", "sparse")}
    try:
        start(make_config("digits-mlp", recipe.settings, chosen), recipe, path, Observers(()))
    finally:
        torch.set_num_threads(before)
    return path


@pytest.fixture(scope="session")
def dense(tmp_path_factory):
    path, before = tmp_path_factory.mktemp("runs") / "dense", torch.get_num_threads()
    recipe = load_recipe("digits-mlp")
    try:
        start(make_config("digits-mlp", recipe.settings, {"epochs": 1, "threads": 1, "variants": ("dense",)}), recipe, path, Observers(()))
    finally:
        torch.set_num_threads(before)
    return path
