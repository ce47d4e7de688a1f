"""The training examples run as they are, at toy size, and learn something; each is short enough to copy."""

import importlib.util
import sys
from pathlib import Path

import pytest
from timm_alone import import_timm

EXAMPLES = Path(__file__).parents[2] / "examples"
NEEDS = {"lightning_digits": "lightning", "transformers_vit": "accelerate", "optuna_search": "optuna"}
CHANCE = 0.1

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*is nearly pruned away"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
]


def example(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_resnet_goes_on_where_it_stopped(tmp_path):
    main = example("resnet_cifar10").main
    main(["--toy", "--epochs", "1"])
    assert main(["--toy", "--epochs", "2"]) > 2 * CHANCE
    assert (tmp_path / "resnet.safetensors").exists()


def test_lightning(tmp_path):
    main = example("lightning_digits").main
    assert main(["--toy", "--epochs", "2", "--folder", "runs"]) > 3 * CHANCE
    assert main(["--toy", "--epochs", "3", "--folder", "runs", "--resume", "runs/last.ckpt"]) > 3 * CHANCE


def test_transformers(tmp_path):
    main = example("transformers_vit").main
    assert main(["--toy", "--epochs", "1"]) > CHANCE
    assert main(["--toy", "--epochs", "2", "--resume"]) > CHANCE


def test_timm(tmp_path):
    import_timm()
    assert example("timm_finetune").main(["--toy"]) > CHANCE
    assert (tmp_path / "finetuned.safetensors").exists()


def test_a_relu_transformer_reads_mostly_zeros_and_is_packed_for_that():
    accuracy, zeros, layout = example("relu_transformer").main(["--toy", "--epochs", "6"])
    assert accuracy > 5 * CHANCE
    assert zeros.layers["block.down"].share > 0.7
    assert layout == "columns (whole)"


def test_optuna_prunes_and_goes_on(tmp_path):
    optuna = pytest.importorskip("optuna")
    main = example("optuna_search").main
    main(["--trials", "3", "--epochs", "2"])
    study = main(["--trials", "3", "--epochs", "2"])
    assert len(study.trials) == 6
    states = {trial.state for trial in study.trials}
    assert states <= {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}
    assert study.best_trial.user_attrs["accuracy"] > 3 * CHANCE


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_each_is_short(path):
    assert len(path.read_text().splitlines()) < 150
