"""What MLflow's own client reads of a log is what the run's files say."""

import json

import pytest

import truesparse as ts

pytest.importorskip("mlflow", reason="mlflow is not installed: the extra `mlflow`")
pytest.importorskip("sqlalchemy", reason="sqlalchemy is not installed: the extra `mlflow`")

# What MLflow asks of SQLAlchemy is its own affair.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:sqlalchemy", "ignore::DeprecationWarning:mlflow")


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """One data base for all tests of this file: to make one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def runs(uri, folder):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("truesparse")
    identity = json.loads((folder / "logs.json").read_text())["id"]
    found = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags.get("truesparse.id", "").startswith(identity)]
    return client, {run.data.tags["truesparse.variant"]: run for run in found}


@pytest.mark.parametrize("stop_at", [None, ("sparse", 2, 3)])
def test_a_run(logged_run, to, lines, tmp_path, uri, stop_at):
    logged_run(to("mlflow", uri), stop_at=stop_at)
    if stop_at:
        assert {run.info.status for run in runs(uri, tmp_path / "run")[1].values()} == {"KILLED"}
        logged_run(to("mlflow", uri), again=True)
    client, found = runs(uri, tmp_path / "run")
    assert set(found) == {"dense", "sparse"}
    for variant, run in found.items():
        assert run.info.status == "FINISHED"
        assert run.info.run_name == f"run {variant}"
        for tag, name in (("loss/train", "train_loss"), ("accuracy/test", "test_accuracy")):
            history = sorted((metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, tag))
            assert history == [(epoch, line[name]) for epoch, line in lines(variant).items()]
    sparse = found["sparse"].data
    assert (sparse.params["sparsity"], sparse.params["algorithm_settings/fraction"]) == ("0.8", "0.3")
    assert sparse.metrics["itop_rate/1"] == lines()[3]["layers"]["1"]["itop_rate"]
    result = json.loads((tmp_path / "run" / "results.json").read_text())["variants"][1]
    assert sparse.metrics["results/bytes/total"] == result["bytes"]["total"]


def test_two_runs_in_one_folder_after_each_other_are_two(logged_run, to, tmp_path, uri):
    import shutil

    names = set()
    for _ in range(2):
        logged_run(to("mlflow", uri), epochs=1, variants=("sparse",))
        names.add(runs(uri, tmp_path / "run")[1]["sparse"].info.run_id)
        shutil.rmtree(tmp_path / "run")
    assert len(names) == 2


def test_by_hand(uri, tmp_path, monkeypatch):
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    logger = ts.loggers.MLflow(uri, "by hand")
    logger.settings({f"setting {number}": "x" * 10_000 for number in range(150)})
    logger.scalars({f"number {number}": number for number in range(150)} | {"fan (in)%": 1.0}, 3)
    logger.close()
    run = MlflowClient(uri).get_run(logger.run_id)
    assert len(run.data.params) == 150
    assert run.data.metrics["number 149"] == 149
    assert run.data.metrics["fan _in__"] == 1.0


def test_addresses(to, tmp_path, monkeypatch, uri):
    from truesparse.runs import ConfigError

    monkeypatch.chdir(tmp_path)
    assert to("mlflow", "sqlite:///mine.db").place == f"sqlite:///{tmp_path}/mine.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert to("mlflow", "").place == uri
    with pytest.raises(ConfigError, match="--mlflow: leave the password out of the address"):
        to("mlflow", "https://someone:secret@example.org")
    with pytest.raises(ConfigError, match="--mlflow: cannot use nonsense://x: "):
        to("mlflow", "nonsense://x")
