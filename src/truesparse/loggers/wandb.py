"""How does a log become a run of Weights & Biases?"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..common.optional import library
from ..metrics import Distribution
from .protocol import Logger, Setting

EXTRA, WHAT = "wandb", "a log of Weights & Biases"
PROJECT = "truesparse"


class WandB(Logger):
    """A run of Weights & Biases. With WANDB_MODE=offline nothing leaves the machine; `wandb sync` sends it later.

    Args:
        project: None: the environment's WANDB_PROJECT, else "truesparse".
        name: of the run.
        id: a run with the same id is gone on with; None: a new run.
        group: runs of one group stand together.
        folder: where its files go; None: as wandb chooses.

    Raises:
        MissingLibrary: if wandb is not installed.
        Exception: of wandb's own, if the run cannot begin.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        id: str | None = None,
        group: str | None = None,
        folder: Path | str | None = None,
    ) -> None:
        self._wandb = library("wandb", EXTRA, WHAT)
        self._run: Any = self._wandb.init(
            project=project or os.environ.get("WANDB_PROJECT") or PROJECT,
            name=name,
            id=id,
            group=group,
            dir=None if folder is None else str(folder),
            resume="allow",
            reinit="create_new",  # the variants of a run are open at the same time
            settings=self._wandb.Settings(console="off", quiet=True),
        )

    def settings(self, values: Mapping[str, Setting]) -> None:
        self._run.config.update(dict(values), allow_val_change=True)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def histogram(self, name: str, distribution: Distribution, step: int) -> None:
        edges = [index * distribution.width for index in range(len(distribution.counts) + 1)]
        self._run.log({name: self._wandb.Histogram(np_histogram=(list(distribution.counts), edges))}, step=step)

    def image(self, name: str, image: Tensor, step: int) -> None:
        self._run.log({name: self._wandb.Image(image.numpy())}, step=step)

    def results(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def close(self) -> None:
        self._run.finish()


def require() -> None:
    """
    Raises:
        MissingLibrary: if wandb is not installed.
    """
    library("wandb", EXTRA, WHAT)
