"""How did the variants do, side by side?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..common.shown import Table, nbytes_said
from .machine import hardware
from .phases import PHASES

INFERENCE_SAMPLES = 100
NAMES = {"dense": "dense", "masked": "dense + mask", "sparse": "truly sparse"}


@dataclass(frozen=True)
class VariantResult:
    """One line of the closing table. Ratios are to the dense variant of the same run, None without one.

    Args:
        test_accuracy: after the last epoch, 0 to 1; None if the task has no classes.
        connections: weights that exist.
        bytes: of weights, gradients, optimizer state and topology, as measured in the last epoch.
        peak_bytes: the most that the network had on a GPU at once while it trained, what layers pass on included; None on a CPU, where
            torch does not count them.
        seconds_per_epoch: of training, the median over epochs.
        step_seconds: of a training step, the mean over all epochs, by where they go: forward, dx, dW, rewiring, optimizer, other.
        inference_seconds: for `samples` samples, the median over rounds in which the variants took turns.
    """

    variant: str
    epochs: int
    test_accuracy: float | None
    test_loss: float
    connections: int
    bytes: Mapping[str, int]
    share_of_dense_bytes: float | None
    seconds_per_epoch: float
    times_as_fast: float | None
    step_seconds: Mapping[str, float]
    inference_seconds: float
    inference_times_as_fast: float | None
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Results:
    """The closing table of a run, and the machine it was measured on."""

    task: str
    samples: int
    machine: Mapping[str, Any]
    variants: tuple[VariantResult, ...]

    def table(self) -> Table:
        """A row for each variant."""
        compared = any(line.variant == "dense" for line in self.variants) and len(self.variants) > 1
        ratio = ("vs dense",) if compared else ()
        peaks = ("peak",) if any(line.peak_bytes is not None for line in self.variants) else ()
        heads = ("", "test accuracy", "test loss", "weights", "bytes", *(("of dense",) if compared else ()), *peaks, "s / epoch", *ratio)
        heads = (*heads, f"inference, {self.samples} samples", *ratio)
        return Table(
            heads,
            tuple(_row(line, compared, bool(peaks)) for line in self.variants),
            numeric=frozenset(range(1, len(heads))),
            title=self.task,
            caption=f"bytes: weights + gradients + optimizer state + topology. {hardware(self.machine)}, torch {self.machine['torch']}",
        )

    def _repr_html_(self) -> str:
        return self.table().html()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _row(line: VariantResult, compared: bool, peaks: bool) -> tuple[str, ...]:
    accuracy = f"{line.test_accuracy:.2%}" if line.test_accuracy is not None else "-"
    share = f"{line.share_of_dense_bytes:.1%}" if line.share_of_dense_bytes is not None else "-"
    row = [NAMES[line.variant], accuracy, f"{line.test_loss:.4f}", f"{line.connections:,}", nbytes_said(line.bytes["total"])]
    row += (
        [share] * compared
        + [nbytes_said(line.peak_bytes) if line.peak_bytes is not None else "-"] * peaks
        + [f"{line.seconds_per_epoch:.2f}"]
        + [_times(line.times_as_fast)] * compared
    )
    return (*row, f"{line.inference_seconds * 1e3:.2f} ms", *[_times(line.inference_times_as_fast)] * compared)


def _times(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio is not None else "-"


def make_results(
    task: str,
    samples: int,
    machine: Mapping[str, Any],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    inference: Mapping[str, float],
    shares_of_dx: Mapping[str, float],
    steps: int,
) -> Results:
    """The table from each variant's metrics (at least one epoch of `steps`), inference seconds and share of dx in its backward pass."""
    epoch_seconds = {name: median(line["seconds"] for line in history) for name, history in histories.items()}
    total = {name: history[-1]["bytes"]["total"] for name, history in histories.items()}

    def over_dense(values: Mapping[str, float], name: str) -> float | None:
        return values[name] / values["dense"] if values.get("dense") else None

    def speed(seconds: Mapping[str, float], name: str) -> float | None:
        return seconds["dense"] / seconds[name] if "dense" in seconds and seconds[name] else None

    return Results(
        task,
        samples,
        machine,
        tuple(
            VariantResult(
                variant=name,
                epochs=history[-1]["epoch"],
                test_accuracy=history[-1]["test_accuracy"],
                test_loss=history[-1]["test_loss"],
                connections=history[-1]["connections"],
                bytes=history[-1]["bytes"],
                share_of_dense_bytes=over_dense(total, name),
                seconds_per_epoch=epoch_seconds[name],
                times_as_fast=speed(epoch_seconds, name),
                step_seconds=_step_seconds(history, shares_of_dx[name], steps),
                inference_seconds=inference[name],
                inference_times_as_fast=speed(inference, name),
                peak_bytes=max((line["peak_bytes"] for line in history if "peak_bytes" in line), default=None),
            )
            for name, history in histories.items()
        ),
    )


def _step_seconds(history: Sequence[Mapping[str, Any]], share_of_dx: float, steps: int) -> dict[str, float]:
    count = steps * len(history)
    mean = {phase: sum(line["seconds_of"][phase] for line in history) / count for phase in PHASES}
    backward = mean["backward"]
    dx = share_of_dx * backward
    parts = {"forward": mean["forward"], "dx": dx, "dW": backward - dx}
    return parts | {phase: mean[phase] for phase in ("rewiring", "optimizer", "other")}
