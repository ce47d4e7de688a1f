"""What must a logger be able to do? Take named numbers, and whatever else it likes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..metrics import Distribution

Setting = bool | int | float | str


@dataclass(frozen=True)
class Subject:
    """What a log is about: one network of one run.

    Args:
        run: name of the run, that of its folder.
        variant: "dense", "masked" or "sparse".
        folder: of the run.
        id: of this network in this run; no other run has it, and a resumed run has it again.
        logged: the last epoch that this log has already; -1: it is a new log.
    """

    run: str
    variant: str
    folder: Path
    id: str
    logged: int = -1


class Logger(Protocol):
    """Where the training of one network is recorded. Derive from it, and write the methods you want: the others do nothing.

    `truesparse train --logger FILE.py` makes one for each variant, with a `Subject` as the only argument. Steps are epochs there; epoch
    0 is the network before training, which has pictures only.
    """

    def settings(self, values: Mapping[str, Setting]) -> None:
        """Every choice of the run. Once, before all others, of a new log only."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step. Steps ascend."""

    def histogram(self, name: str, distribution: Distribution, step: int) -> None:
        """How whole numbers are spread, such as the connections of the neurons of a layer."""

    def image(self, name: str, image: Tensor, step: int) -> None:
        """A picture, [height, width, 3] uint8."""

    def results(self, values: Mapping[str, float]) -> None:
        """Numbers of the closing table. Once, when the run is complete."""

    def flush(self) -> None:
        """After this, what was logged survives the end of the process."""

    def close(self) -> None:
        """Nothing comes after this."""
