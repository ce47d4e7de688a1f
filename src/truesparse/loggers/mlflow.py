"""How does a log become a run of MLflow?"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..common.optional import library
from .protocol import Logger, Setting

EXTRA, WHAT = "mlflow", "an MLflow log"
EXPERIMENT = "truesparse"
TAG = "truesparse.id"
MOST = 100  # parameters or metrics that one call may bring
LONGEST = 500  # characters of a value that every version takes


class MLflow(Logger):
    """A run of MLflow: parameters, metrics and tags. It has no histograms, and no pictures are sent.

    The experiment is that of the environment's MLFLOW_EXPERIMENT_NAME, else "truesparse". A run with the same id is gone on with.

    Args:
        uri: of the tracking server or data base, such as "sqlite:///runs/mlflow.db"; None: where MLflow looks by itself
            (MLFLOW_TRACKING_URI).
        name: of the run.
        id: of the run, in its tag `truesparse.id`; None: a new run.
        tags: further ones.

    Raises:
        MissingLibrary: if mlflow is not installed.
        Exception: of mlflow's own, if the server cannot be used.
    """

    def __init__(
        self, uri: str | None = None, name: str = "truesparse", id: str | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        self._client = client(uri)
        self._entities = library("mlflow.entities", EXTRA, WHAT)
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
        found = self._client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found is not None else self._client.create_experiment(experiment)
        runs = self._client.search_runs([experiment_id], f"tags.`{TAG}` = '{id}'") if id is not None else []
        if runs:
            self.run_id: str = runs[0].info.run_id
            self._client.update_run(self.run_id, status="RUNNING")
        else:
            tags = {**(tags or {}), **({TAG: id} if id is not None else {})}
            self.run_id = self._client.create_run(experiment_id, tags=tags, run_name=name).info.run_id
        self._complete = False

    def settings(self, values: Mapping[str, Setting]) -> None:
        parameters = [self._entities.Param(name, str(value)[:LONGEST]) for name, value in values.items()]
        for start in range(0, len(parameters), MOST):
            self._client.log_batch(self.run_id, params=parameters[start : start + MOST])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(_legal(name), value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), MOST):
            self._client.log_batch(self.run_id, metrics=metrics[start : start + MOST])

    def results(self, values: Mapping[str, float]) -> None:
        self.scalars(values, 0)
        self._complete = True

    def close(self) -> None:
        self._client.set_terminated(self.run_id, "FINISHED" if self._complete else "KILLED")


def client(uri: str | None) -> Any:
    """
    Raises:
        MissingLibrary: if mlflow, or what the address asks for, is not installed.
    """
    made = library("mlflow.tracking", EXTRA, WHAT).MlflowClient
    if (uri or "").startswith("sqlite:"):
        library("sqlalchemy", EXTRA, f"{WHAT} in a data base")
    return made(uri)


def address(uri: str | None) -> str:
    """`uri`, or where MLflow looks by itself; the file of a data base by its full path, so that it is found again from anywhere."""
    uri = uri or str(library("mlflow", EXTRA, WHAT).get_tracking_uri())
    start, _, path = uri.partition("sqlite:///")
    return uri if start or not path else f"sqlite:///{Path(path).expanduser().resolve()}"


def _legal(name: str) -> str:
    """Names of metrics have letters, digits and a few signs."""
    return "".join(sign if sign.isalnum() or sign in "_-./ " else "_" for sign in name)
