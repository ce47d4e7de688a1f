"""Recipes: the built-in ones are what they say, and a wrong one is told in one line."""

import pytest
import torch
from torch import nn

from truesparse.algorithms import ALGORITHMS
from truesparse.runs import ConfigError, load_recipe, make_config, task_names
from truesparse.topology.budgets import ER

WEIGHTS = {
    "mnist-cnn": 1_305_272,
    "fashion-cnn": 1_305_272,
    "mnist-mlp": 266_200,
    "cifar10-mlp": 3072 * 4000 + 4000 * 1000 + 1000 * 4000 + 4000 * 10,
    "digits-mlp": 64 * 128 + 128 * 64 + 64 * 10,
}
IMAGES = {"mnist": (1, 28, 28), "fashion": (1, 28, 28), "cifar10": (3, 32, 32), "digits": (1, 8, 8)}


@pytest.mark.parametrize("task", task_names())
def test_built_in_networks(task):
    recipe = load_recipe(task)
    model = recipe.make_model()
    assert sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1) == WEIGHTS[task]
    assert model(torch.zeros(2, *IMAGES[task.split("-")[0]])).shape == (2, 10)
    config = make_config(recipe.task, recipe.settings, {})
    assert config.task == task


def test_cifar10_has_the_density_of_the_paper():
    recipe = load_recipe("cifar10-mlp")
    config = make_config(recipe.task, recipe.settings, {})
    assert config.algorithm == "set"
    assert config.make_budget() == ER(epsilon=20.0)
    assert config.steps_between_rewirings(500) == 500, "once an epoch"


def test_deep_rewiring_rewires_each_step_unless_told():
    assert make_config("t", {}, {"algorithm": "deepr"}).steps_between_rewirings(500) == 1
    assert make_config("t", {}, {"algorithm": "deepr", "every": 7}).steps_between_rewirings(500) == 7
    assert make_config("t", {}, {"algorithm": "rigl"}).steps_between_rewirings(500) == 100


def test_every_setting_of_every_algorithm_can_be_given_as_text():
    for name in ALGORITHMS:
        config = make_config("t", {}, {"algorithm": name})
        given = {setting: str(value) for setting, value in config.algorithm_settings.items()}
        assert make_config("t", {}, {"algorithm": name, "algorithm_settings": given}).algorithm_settings == config.algorithm_settings


def test_digits_are_normalised():
    train, test = load_recipe("digits-mlp").make_data()
    assert (len(train), len(test)) == (1433, 364)
    inputs = torch.cat([train.tensors[0], test.tensors[0]])
    assert abs(float(inputs.mean())) < 0.01
    assert abs(float(inputs.std()) - 1) < 0.01


def test_an_own_recipe(write_recipe):
    path = write_recipe()
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert recipe.task == path
    assert recipe.loss is nn.functional.cross_entropy
    assert recipe.augment is not None


def test_a_recipe_may_import_its_neighbours(write_recipe):
    write_recipe("from torch import nn\nnetwork = nn.Linear(2, 2)\n", "recipe_neighbour_of_a_test.py")
    path = write_recipe("import recipe_neighbour_of_a_test as n\n\ndef model(): return n.network\ndef data(): return [1], [1]\n")
    assert isinstance(load_recipe(path).make_model(), nn.Linear)


GOOD_MODEL = "from torch import nn\ndef model(): return nn.Linear(2, 2)\n"
GOOD = GOOD_MODEL + "def data(): return [1], [1]\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def data(): return 1, 2\n", r"mine\.py defines no function model\(\); a recipe defines model\(\) and data\(\)"),
        (GOOD_MODEL, r"mine\.py defines no function data\(\)"),
        ("model = 3\n", r"must define model as a function, got int"),
        ("def model(size): pass\n", r"model\(\) of the recipe mine\.py must take no arguments: missing a required argument: 'size'"),
        (GOOD + "def loss(outputs): pass\n", r"loss\(\) of the recipe mine\.py must take two arguments: too many"),
        (GOOD + "def augment(): pass\n", r"augment\(\) of the recipe mine\.py must take two arguments"),
        (GOOD + "settings = [1]\n", "must define settings as a dict, got list"),
        ("def model(:\n", r"mine\.py is not Python: line 1: "),
        (
            "import torch\n\nimport nowhere_to_be_found\n",
            r"could not be imported, mine\.py:3: ModuleNotFoundError: No module named 'nowhere",
        ),
    ],
)
def test_wrong_recipes(write_recipe, text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        load_recipe(write_recipe(text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def model(): return 3", r"model\(\) of the recipe mine\.py must return a torch\.nn\.Module, got int"),
        ("def model():\n    return 1 / 0", r"the recipe mine\.py failed in model\(\), mine\.py:2: ZeroDivisionError: division by zero"),
    ],
)
def test_wrong_models(write_recipe, text, said):
    recipe = load_recipe(write_recipe(text + "\ndef data(): return [1], [1]\n"))
    with pytest.raises(ConfigError, match=said):
        recipe.make_model()


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("[1]", r"data\(\) of the recipe mine\.py must return \(training data, test data\), got list"),
        ("None", r"must return \(training data, test data\), got NoneType"),
        ("[1], 3", r"the test data of the recipe mine\.py must be a data set with a length and items, got int"),
        ("[], [1]", r"the training data of the recipe mine\.py is empty"),
        ("open('/no/such/file')", r"failed in data\(\), mine\.py:3: FileNotFoundError"),
    ],
)
def test_wrong_data(write_recipe, returned, said):
    recipe = load_recipe(write_recipe(GOOD_MODEL + f"def data(): return {returned}\n"))
    with pytest.raises(ConfigError, match=said):
        recipe.make_data()


def test_no_such_recipe(tmp_path):
    with pytest.raises(
        ConfigError, match=r"unknown task 'minst'; known are cifar10-mlp, .*mnist-mlp, or give the path of a recipe, FILE\.py"
    ):
        load_recipe("minst")
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*absent\.py: No such file or directory"):
        load_recipe(str(tmp_path / "absent.py"))
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ConfigError, match=r"cannot read the recipe .*folder\.py: Is a directory"):
        load_recipe(str(tmp_path / "folder.py"))
