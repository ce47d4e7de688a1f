"""How does a log become files that TensorBoard reads?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..common.markdown import table_head, table_row
from ..common.optional import library
from ..metrics import Distribution
from .protocol import Logger, Setting

EXTRA, WHAT = "tensorboard", "a TensorBoard log"
BESIDE_SETTINGS = ("accuracy/test", "loss/test", "seconds/training")  # columns of the tab of hyperparameters


class TensorBoard(Logger):
    """Event files in a folder. Watch them with `tensorboard --logdir FOLDER`.

    Args:
        folder: of this log; made if there is none. TensorBoard shows each such folder as a run.
        first_step: what older files in the folder say of this step and later ones is not shown any more.

    Raises:
        MissingLibrary: if tensorboard is not installed.
        OSError: if the folder cannot be written.
    """

    def __init__(self, folder: Path | str, first_step: int = 0) -> None:
        require()
        self._hyperparameters = library("torch.utils.tensorboard.summary", EXTRA, WHAT).hparams
        self._writer = library("torch.utils.tensorboard", EXTRA, WHAT).SummaryWriter(str(folder), purge_step=first_step)

    def settings(self, values: Mapping[str, Setting]) -> None:
        self._writer.add_text("settings", "\n".join([*table_head("setting", "value"), *(table_row(*pair) for pair in values.items())]))
        for summary in self._hyperparameters(dict(values), dict.fromkeys(BESIDE_SETTINGS, 0)):
            self._writer.file_writer.add_summary(summary)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def histogram(self, name: str, distribution: Distribution, step: int) -> None:
        counts, width = distribution.counts, distribution.width
        middles = [index * width + (width - 1) / 2 for index in range(len(counts))]
        self._writer.add_histogram_raw(
            name,
            min=distribution.quantiles[0],
            max=distribution.quantiles[-1],
            num=sum(counts),
            sum=sum(count * at for count, at in zip(counts, middles, strict=True)),
            sum_squares=sum(count * at * at for count, at in zip(counts, middles, strict=True)),
            bucket_limits=[(index + 1) * width - 0.5 for index in range(len(counts))],
            bucket_counts=list(counts),
            global_step=step,
        )

    def image(self, name: str, image: Tensor, step: int) -> None:
        self._writer.add_image(name, image, step, dataformats="HWC")

    def results(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def require() -> None:
    """
    Raises:
        MissingLibrary: if tensorboard is not installed.
    """
    library("tensorboard", EXTRA, WHAT)
